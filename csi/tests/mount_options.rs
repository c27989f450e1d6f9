//! Mount options mean what they say, on real mounts: the kernel's flags, access times, and mounts of user namespaces.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod node_support;

use std::ffi::CString;
use std::fs::{self, File, FileTimes};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use atoll_csi::mount_flags::MountFlags;
use node_support::{Machine, wait_until};

/// A user id of the machine that is root in the namespace.
const ROOT_OUTSIDE: u32 = 100_000;

fn flags(flags: &[&str]) -> MountFlags {
    MountFlags::parse(&flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Writes a file that is older than what it was last read.
fn old_file(path: &Path) -> SystemTime {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fs::write(path, b"content").unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_accessed(then)).unwrap();
    then
}

#[test]
fn mount_options_mean_what_they_say() {
    let mut machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    let file = machine.place().join("file");
    let read = |path: &Path| {
        assert_eq!(fs::read(path).unwrap(), b"content");
        fs::metadata(path).unwrap().accessed().unwrap()
    };

    machine.stage();
    let then = old_file(&file);
    assert_ne!(read(&file), then, "relatime: it was changed after it was last read");
    fs::copy("/bin/true", machine.place().join("program")).unwrap();
    nix::sys::stat::mknod(
        &machine.place().join("null"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 3),
    )
    .unwrap();
    assert!(Command::new(machine.place().join("program")).status().unwrap().success());
    assert_eq!(fs::read(machine.place().join("null")).unwrap(), b"");
    machine.unstage();

    machine.flags = flags(&["noatime", "noexec", "nodev", "nosuid"]);
    machine.stage();
    machine.publish("pod");
    for place in [machine.place(), machine.path("pod")] {
        let then = old_file(&place.join("file"));
        assert_eq!(read(&place.join("file")), then, "{}", place.display());
        assert_eq!(errno(Command::new(place.join("program")).status()), Some(libc::EACCES));
        assert_eq!(errno(fs::read(place.join("null"))), Some(libc::EACCES));
        let found = nix::sys::statvfs::statvfs(&place).unwrap().flags();
        assert!(found.contains(nix::sys::statvfs::FsFlags::ST_NOSUID), "{found:?}");
    }
    // Who takes the mount over goes by the same flags.
    host.kill();
    host = machine.mount_host("a");
    machine.settled("a");
    let then = old_file(&file);
    assert_eq!(read(&file), then, "after a takeover");
    machine.unpublish("pod");
    machine.unstage();

    machine.flags = flags(&["ro"]);
    machine.stage();
    machine.publish("pod");
    for place in [machine.place(), machine.path("pod")] {
        assert_eq!(errno(fs::write(place.join("file"), b"changed")), Some(libc::EROFS));
        assert_eq!(fs::read(place.join("file")).unwrap(), b"content");
    }
    machine.unpublish("pod");
    machine.unstage();
    host.end();
    holder.end();
}

/// A user namespace, as that of a pod with `hostUsers: false`: a process that does nothing in it.
struct UserNamespace(Child);

impl UserNamespace {
    fn start() -> UserNamespace {
        let child = Command::new("unshare").args(["--user", "sleep", "600"]).stdin(Stdio::null()).spawn();
        let child = UserNamespace(child.unwrap());
        let ours = fs::read_link("/proc/self/ns/user").unwrap();
        wait_until("it has a namespace of its own", || {
            fs::read_link(child.path("ns/user")).is_ok_and(|theirs| theirs != ours)
        });
        for map in ["uid_map", "gid_map"] {
            fs::write(child.path(map), format!("0 {ROOT_OUTSIDE} 65536")).unwrap();
        }
        child
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Mounts what is at a path a second time, with the ids of a user namespace, as container runtimes do.
fn mount_with_ids_of(namespace: &UserNamespace, from: &Path, to: &Path) -> io::Result<()> {
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (from, to) = (text(from), text(to));
    let users = File::open(namespace.path("ns/user"))?;
    let checked = |result: libc::c_long| match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(i32::try_from(result).unwrap()),
    };
    // SAFETY: the path is a C string, and the result is a descriptor of our own.
    let tree = unsafe {
        let result = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, from.as_ptr(), OPEN_TREE_CLONE);
        OwnedFd::from_raw_fd(checked(result)?)
    };
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd().try_into().unwrap(),
    };
    let (fd, empty) = (tree.as_raw_fd(), c"".as_ptr());
    // SAFETY: the structure is the kernel's, with its size, and outlives the call.
    checked(unsafe {
        let (place, size) = (&raw const attributes, size_of::<MountAttributes>());
        libc::syscall(libc::SYS_mount_setattr, fd, empty, libc::AT_EMPTY_PATH, place, size)
    })?;
    // SAFETY: both paths are C strings.
    checked(unsafe {
        let flags = MOVE_MOUNT_F_EMPTY_PATH;
        libc::syscall(libc::SYS_move_mount, fd, empty, libc::AT_FDCWD, to.as_ptr(), flags)
    })?;
    Ok(())
}

/// Pods with `hostUsers: false`: what they write belongs to the ids that they see, on every node and without a user namespace.
#[test]
fn a_pod_with_user_ids_of_its_own_sees_them_on_its_volume() {
    let machine = Machine::start();
    let mut holder = machine.holder();
    let mut host = machine.mount_host("a");
    machine.stage();
    fs::set_permissions(machine.place(), PermissionsExt::from_mode(0o755)).unwrap();
    let pod = machine.path("pod");
    fs::create_dir(&pod).unwrap();
    let namespace = UserNamespace::start();
    mount_with_ids_of(&namespace, &machine.place(), &pod).unwrap();
    fs::write(machine.place().join("of-root"), b"content").unwrap();
    assert_eq!(fs::metadata(pod.join("of-root")).unwrap().uid(), ROOT_OUTSIDE);
    let as_root_inside = |program: &str, path: &Path| {
        let mut command = Command::new(program);
        command.arg(path).uid(ROOT_OUTSIDE).gid(ROOT_OUTSIDE).current_dir("/");
        assert!(command.status().unwrap().success(), "{program} {}", path.display());
    };
    // The volume's root directory is root's, who is this user inside.
    as_root_inside("touch", &pod.join("made"));
    as_root_inside("mkdir", &pod.join("folder"));
    as_root_inside("rm", &pod.join("of-root"));
    for name in ["made", "folder"] {
        let (inside, outside) = (pod.join(name), machine.place().join(name));
        assert_eq!(fs::metadata(inside).unwrap().uid(), ROOT_OUTSIDE, "{name}");
        let found = fs::metadata(outside).unwrap();
        assert_eq!((found.uid(), found.gid()), (0, 0), "{name}");
    }
    // Nobody of the machine is anybody there.
    assert_eq!(errno(fs::write(pod.join("other"), b"")), Some(libc::EOVERFLOW));
    nix::mount::umount2(&pod, nix::mount::MntFlags::empty()).unwrap();
    drop(namespace);
    machine.unstage();
    host.end();
    holder.end();
}
