//! The mount table, `/proc/self/mountinfo` (see proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Names the mount as long as it exists.
    pub id: u64,
    /// Major and minor number of `st_dev`.
    pub device: (u32, u32),
    /// Which folder of the filesystem is mounted; anything but "/" is a bind mount of a part.
    pub root: PathBuf,
    /// Where.
    pub path: PathBuf,
    /// Nothing can be changed through this mount; others of the same filesystem may allow it.
    pub read_only: bool,
    /// How it is mounted here, e.g. `rw,nosuid,relatime`.
    pub options: String,
    /// Type, e.g. `fuse.atoll`.
    pub filesystem: String,
    /// What is mounted, e.g. `atoll:<cluster id>`.
    pub source: String,
    /// How the filesystem is mounted everywhere, e.g. `rw,user_id=0,group_id=0`.
    pub filesystem_options: String,
}

impl Mount {
    /// Whether it is mounted here with an option, e.g. `nosuid`.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }

    /// The SELinux context of all files of the filesystem, if it was mounted with one.
    pub fn context(&self) -> Option<&str> {
        let (_, rest) = self.filesystem_options.split_once("context=").filter(|(before, _)| {
            // Not one of its relatives: rootcontext=, fscontext=, defcontext=.
            before.is_empty() || before.ends_with(',')
        })?;
        // One that has a comma is in quotes.
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => rest.split(',').next(),
        }
    }

    /// The number of a FUSE connection, its folder's name below `/sys/fs/fuse/connections`.
    pub fn connection(&self) -> u32 {
        // The kernel prints `dev_t` as one number: 20 bits of minor below major, which is 0.
        self.device.0 << 20 | self.device.1
    }
}

/// All mounts in the table's order: later ones lie above earlier ones on the same path. Lines that can't be
/// understood are left out.
pub fn parse(table: &[u8]) -> impl DoubleEndedIterator<Item = Mount> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(line)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let id = text(fields.next()?).parse().ok()?;
    let _parent = fields.next()?;
    let device = text(fields.next()?);
    let (major, minor) = device.split_once(':')?;
    let root = path(fields.next()?);
    let mount_path = path(fields.next()?);
    let options = text(fields.next()?);
    let read_only = options.split(',').any(|option| option == "ro");
    // Any number of optional fields, then a hyphen.
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        path: mount_path,
        read_only,
        options,
        filesystem: text(fields.next()?),
        source: text(fields.next()?),
        filesystem_options: fields.next().map(text).unwrap_or_default(),
    })
}

/// Blanks, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..] if *first == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = more;
            }
            _ => plain.push(*first),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
90 22 0:45 / /mnt/a\\040b rw,nosuid shared:3 master:1 - fuse.atoll atoll:00ff rw,user_id=0,allow_other
91 90 0:46 /sub /mnt/c\\134d ro,nodev - fuse.atoll atoll:00aa rw,context=\"u:r:t:s0:c1,c2\",user_id=0
garbage
92 22 0:47 / /mnt/x rw no hyphen
";

    #[test]
    fn lines_with_and_without_optional_fields() {
        let mounts: Vec<Mount> = parse(TABLE).collect();
        assert_eq!(mounts.len(), 3, "{mounts:?}");
        assert_eq!(mounts[1].path, PathBuf::from("/mnt/a b"));
        assert_eq!((mounts[1].filesystem.as_str(), mounts[1].source.as_str()), ("fuse.atoll", "atoll:00ff"));
        assert_eq!(mounts[1].connection(), 45);
        assert_eq!(mounts.iter().map(|mount| mount.read_only).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!((mounts[2].path.clone(), mounts[2].root.clone()), ("/mnt/c\\d".into(), "/sub".into()));
        assert!(mounts[2].has_option("nodev") && !mounts[2].has_option("nosuid"));
        assert_eq!((mounts[1].context(), mounts[2].context()), (None, Some("u:r:t:s0:c1,c2")));
        let only_root = Mount { filesystem_options: "rw,rootcontext=u:r:t:s0".into(), ..mounts[1].clone() };
        assert_eq!(only_root.context(), None);
    }
}
