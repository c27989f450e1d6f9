//! The mount table: anybody who may mount chooses names in it.

use atoll_fuse::device::mountinfo;

pub(crate) fn read(data: &[u8]) -> bool {
    let lines = data.split(|byte| *byte == b'\n').count();
    let mounts: Vec<mountinfo::Mount> = mountinfo::parse(data).collect();
    assert!(mounts.len() <= lines, "a mount without a line");
    let mut backwards: Vec<mountinfo::Mount> = mountinfo::parse(data).rev().collect();
    backwards.reverse();
    assert_eq!(mounts, backwards);
    for mount in &mounts {
        let _ = mount.connection();
    }
    !mounts.is_empty()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"22 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
          90 22 0:45 / /mnt/a\\040b rw,nosuid shared:3 master:1 - fuse.atoll atoll:00ff rw,user_id=0\n\
          91 90 0:46 /sub /mnt/c\\134d ro,nodev - fuse.atoll atoll:00aa rw\n"
            .to_vec(),
    ]
}
