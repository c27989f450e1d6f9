//! The tables, row by row.

use super::*;

const VOLUME: &str = "v1/atoll-volumes/pvc-1";
const STAGING: &str = "/kubelet/staging";
const TARGET: &str = "/kubelet/pods/a/mount";

fn cluster() -> ClusterId {
    ClusterId(0xab)
}

fn mount(path: &str, minor: u32, read_only: bool) -> Mount {
    Mount {
        id: 7,
        device: (0, minor),
        root: "/".into(),
        path: path.into(),
        read_only,
        options: if read_only { "ro,relatime" } else { "rw,relatime" }.into(),
        filesystem: FILESYSTEM_TYPE.into(),
        source: source(cluster(), VOLUME),
        filesystem_options: "rw,user_id=0".into(),
    }
}

fn foreign(path: &str) -> Mount {
    Mount { filesystem: "tmpfs".into(), source: "tmpfs".into(), ..mount(path, 99, false) }
}

#[test]
fn paths_are_absolute_and_plain() {
    assert!(matches!(NodePath::parse("target_path", ""), Err(CsiError::Missing("target_path"))));
    for wrong in ["some/path", "/a/../b", "/a/./b", "/a/..", "/a\0b", &format!("/{}", "x".repeat(5000))] {
        assert!(matches!(NodePath::parse("p", wrong), Err(CsiError::Invalid(_))), "{wrong}");
    }
    assert_eq!(NodePath::parse("p", "/a//b/").unwrap().as_path(), Path::new("/a/b"));
}

#[test]
fn the_mount_table_says_which_volume_a_mount_is() {
    let ours = mount(STAGING, 1, false);
    assert!(is_volume(&ours, VOLUME));
    assert!(!is_volume(&ours, "v1/atoll-volumes/pvc-2"));
    assert!(!is_volume(&ours, "pvc-1"), "a part of a handle is none");
    assert!(!is_volume(&Mount { filesystem: "fuse.other".into(), ..ours.clone() }, VOLUME));
    assert!(!is_volume(&Mount { source: source_name(cluster()), ..ours }, VOLUME), "mounted by hand");
}

#[test]
fn a_volume_is_staged_in_one_way() {
    let ours = source(cluster(), VOLUME);
    let plan = |found: &Mount, flags: &[&str], has_selinux| {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        plan_stage(Some(found), Liveness::Alive, &ours, &MountFlags::parse(&flags).unwrap(), has_selinux)
    };
    let hard = Mount { options: "rw,nosuid,nodev,noexec,noatime".into(), ..mount(STAGING, 1, false) };
    assert_eq!(plan(&hard, &["nosuid", "nodev", "noexec", "noatime", "buffer=16Mi"], true), Ok(Stage::Done));
    for without in 0..4 {
        let mut flags = vec!["nosuid", "nodev", "noexec", "noatime"];
        let name = flags.remove(without);
        let error = plan(&hard, &flags, true).unwrap_err();
        assert!(matches!(&error, CsiError::Exists(why) if why.contains(name)), "{error}");
        let error = plan(&mount(STAGING, 1, false), &[name], true).unwrap_err();
        assert!(matches!(error, CsiError::Exists(_)), "{error}");
    }
    let context = "u:r:container_file_t:s0:c1,c2";
    let labelled = Mount {
        filesystem_options: format!("rw,context=\"{context}\",user_id=0"),
        ..mount(STAGING, 1, false)
    };
    let asked = format!("context=\"{context}\"");
    assert_eq!(plan(&labelled, &[&asked], true), Ok(Stage::Done));
    assert!(matches!(plan(&labelled, &[], true), Err(CsiError::Exists(_))));
    assert!(matches!(plan(&labelled, &["context=u:r:nfs_t:s0"], true), Err(CsiError::Exists(_))));
    assert_eq!(plan(&mount(STAGING, 1, false), &[&asked], false), Ok(Stage::Done), "it means nothing there");
}

#[test]
fn staging() {
    let ours = source(cluster(), VOLUME);
    let found = mount(STAGING, 1, false);
    let plan = |found: Option<&Mount>, liveness, read_only| {
        plan_stage(found, liveness, &ours, &MountFlags { read_only, ..MountFlags::default() }, true)
    };
    assert_eq!(plan(None, Liveness::Alive, false), Ok(Stage::Mount));
    assert_eq!(plan(Some(&found), Liveness::Alive, false), Ok(Stage::Done));
    assert_eq!(plan(Some(&found), Liveness::Dead, true), Ok(Stage::Replace));
    assert!(matches!(plan(Some(&found), Liveness::Silent, false), Err(CsiError::Pending(_))));
    assert!(matches!(plan(Some(&found), Liveness::Alive, true), Err(CsiError::Exists(_))));
    assert!(matches!(plan(Some(&foreign(STAGING)), Liveness::Dead, false), Err(CsiError::Precondition(_))));
    let other = Mount { source: source(ClusterId(1), VOLUME), ..found.clone() };
    assert!(matches!(plan(Some(&other), Liveness::Dead, false), Err(CsiError::Precondition(_))));
}

#[test]
fn unstaging() {
    let plan = |table: &[Mount], liveness| plan_unstage(table, Path::new(STAGING), VOLUME, liveness);
    let staged = mount(STAGING, 1, false);
    assert_eq!(plan(&[], Liveness::Alive), Ok(Unstage::Done));
    assert_eq!(plan(std::slice::from_ref(&staged), Liveness::Alive), Ok(Unstage::Unmount));
    assert_eq!(plan(std::slice::from_ref(&staged), Liveness::Silent), Ok(Unstage::Unmount));
    let published = [staged.clone(), mount(TARGET, 1, true)];
    assert!(matches!(plan(&published, Liveness::Alive), Err(CsiError::Pending(Pending::NotYet(_)))));
    assert_eq!(plan(&published, Liveness::Dead), Ok(Unstage::Detach), "nobody can use it any more");
    let another = [staged, mount(TARGET, 2, false)];
    assert_eq!(plan(&another, Liveness::Alive), Ok(Unstage::Unmount), "another volume's bind");
    assert!(matches!(plan(&[foreign(STAGING)], Liveness::Alive), Err(CsiError::Precondition(_))));
}

#[test]
fn publishing_follows_the_table_of_the_specification() {
    let staged = mount(STAGING, 1, false);
    let (here, there) = (mount(TARGET, 1, false), mount("/kubelet/pods/b/mount", 1, false));
    let plan = |table: &[Mount], access, read_only| {
        plan_publish(table, &staged, Path::new(TARGET), VOLUME, access, read_only)
    };
    for access in [Access::MultiNode, Access::SingleNode, Access::SingleReader, Access::SingleWriter] {
        let nothing = [staged.clone()];
        assert_eq!(plan(&nothing, access, false), Ok(Publish::Bind), "{access:?}: first target");
        let same = [staged.clone(), here.clone()];
        assert_eq!(plan(&same, access, false), Ok(Publish::Done), "{access:?}: same target, same arguments");
        let other_arguments = plan(&same, access, true);
        assert!(matches!(other_arguments, Err(CsiError::Exists(_))), "{access:?}: {other_arguments:?}");
        let second = plan(&[staged.clone(), there.clone()], access, false);
        if access == Access::SingleWriter {
            assert!(matches!(second, Err(CsiError::Precondition(_))), "{second:?}");
        } else {
            assert_eq!(second, Ok(Publish::Bind), "{access:?}: other target");
        }
    }
    let dead = [staged.clone(), mount(TARGET, 5, false)];
    assert_eq!(plan(&dead, Access::SingleWriter, false), Ok(Publish::Rebind));
    assert!(matches!(
        plan(&[staged.clone(), foreign(TARGET)], Access::MultiNode, false),
        Err(CsiError::Precondition(_))
    ));
}

#[test]
fn unpublishing_goes_layer_by_layer_and_touches_nothing_else() {
    let plan = |table: &[Mount]| plan_unpublish(table, Path::new(TARGET), VOLUME);
    assert_eq!(plan(&[mount(STAGING, 1, false)]), Ok(Unpublish::RemoveFolder));
    assert_eq!(plan(&[mount(TARGET, 1, false), mount(TARGET, 2, false)]), Ok(Unpublish::Unmount));
    assert!(matches!(plan(&[mount(TARGET, 1, false), foreign(TARGET)]), Err(CsiError::Precondition(_))));
}
