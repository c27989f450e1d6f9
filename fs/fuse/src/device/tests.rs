use super::*;

/// A mount of a folder that is taken away again however the test ends.
struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    fn new(device: &Device, source: &str) -> Mounted {
        let folder = tempfile::tempdir().expect("folder");
        let options = MountOptions { source: source.to_owned(), ..MountOptions::new(ClusterId(1)) };
        device.mount(folder.path(), &options).expect("mounts");
        Mounted { folder }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        while find_mount(self.folder.path()).ok().flatten().is_some() {
            if unmount(self.folder.path(), true).is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_dead_mount_of_our_own_is_detached_and_nothing_else() {
    let device = Device::open().expect("device");
    let mounted = Mounted::new(&device, "atoll:one");
    let path = mounted.folder.path();
    let found = find_mount(path).expect("table").expect("mounted");
    assert_eq!((found.filesystem.as_str(), found.source.as_str()), (FILESYSTEM_TYPE, "atoll:one"));

    assert!(matches!(detach_dead(path, "atoll:two"), Err(MountError::Occupied { .. })));
    // The connection ends with its last descriptor: now it is dead.
    drop(device);
    assert!(
        matches!(detach_dead(path, "atoll:two"), Err(MountError::Occupied { .. })),
        "not ours, dead or not"
    );
    assert!(detach_dead(path, "atoll:one").expect("detaches"));
    assert!(find_mount(path).expect("table").is_none());
    assert!(!detach_dead(path, "atoll:one").expect("nothing to do"));
}

#[test]
fn an_aborted_mount_is_dead_too() {
    mount_fusectl().expect("fusectl");
    let device = Device::open().expect("device");
    let mounted = Mounted::new(&device, "atoll:three");
    let found = find_mount(mounted.folder.path()).expect("table").expect("mounted");
    assert!(waiting(found.connection()).expect("waiting") >= 1, "INIT waits");
    abort(found.connection()).expect("aborts");
    assert!(detach_dead(mounted.folder.path(), "atoll:three").expect("detaches"));
    drop(device);
}

#[test]
fn only_a_mounted_device_can_be_cloned() {
    let device = Device::open().expect("device");
    device.try_clone().expect_err("not mounted");
    let _mounted = Mounted::new(&device, "atoll:four");
    device.try_clone().expect("clones");
}
