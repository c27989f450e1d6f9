//! What the holder keeps of a mount: descriptors, and a record that says which they are and how the volume is served.
//!
//! | descriptor | what it is |
//! | --- | --- |
//! | control | our end of the client's socket: while a process has it the client continues, and its other end is closed when the client is dead |
//! | arena | what the client has taken responsibility for |
//! | memory | requests that were read and not answered, and what INIT negotiated |
//! | devices | the FUSE device, then its clones |
//!
//! The record is JSON. A release that changes it adds fields; one that can't be served by earlier releases raises `readableBy`,
//! and those leave the mount with the holder. The cluster's key is in it, since nobody else on the node could tell it to a
//! successor: kubelet passes it on with Stage and Publish only. It is in the memory of the holder, and never on a disk.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use atoll_fuse::bundle::Bundle;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::mount_host::protocol::Start;

/// The version of the record that this release writes.
pub const VERSION: u32 = 1;
/// The oldest version of the record's readers that can serve such a mount.
const READABLE_BY: u32 = 1;
/// Descriptors before the devices.
const FIXED: usize = 3;

/// Why a mount can't be taken over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A later release wrote it.
    #[error(
        "a later release wrote the record of this mount (version {version}), and this one can't serve it"
    )]
    Later {
        /// The record's version.
        version: u32,
    },
    /// It isn't a record, or lacks something.
    #[error("the record of this mount can't be read: {0}")]
    Damaged(String),
}

/// A record's text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    version: u32,
    readable_by: u32,
    start: Start,
    /// The kernel checks permissions on this mount.
    default_permissions: bool,
    /// How many of the descriptors are devices; what comes after them is a later release's.
    devices: usize,
}

/// What every version has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    version: u32,
    readable_by: u32,
}

/// Everything that a successor of a mount's client needs.
#[derive(Debug)]
pub struct Mount {
    /// How the client is started.
    pub start: Start,
    /// Our end of its control socket.
    pub control: OwnedFd,
    /// Its arena.
    pub arena: OwnedFd,
    /// The device, its clones, and the request memory.
    pub bundle: Bundle,
}

/// A mount that is to be kept, as its owner has it.
#[derive(Debug, Clone, Copy)]
pub struct Borrowed<'a> {
    /// How the client is started.
    pub start: &'a Start,
    /// Our end of its control socket.
    pub control: BorrowedFd<'a>,
    /// Its arena.
    pub arena: BorrowedFd<'a>,
    /// The device, its clones, and the request memory.
    pub bundle: &'a Bundle,
}

impl<'a> Borrowed<'a> {
    /// The record's text.
    ///
    /// # Errors
    /// It can't be written as JSON.
    pub fn record(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Record {
            version: VERSION,
            readable_by: READABLE_BY,
            start: self.start.clone(),
            default_permissions: self.bundle.default_permissions(),
            devices: self.bundle.devices().len(),
        })
    }

    /// The descriptors, in the record's order.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'a>> {
        let fixed = [self.control, self.arena, self.bundle.memory_fd()];
        fixed.into_iter().chain(self.bundle.devices()).collect()
    }
}

impl Mount {
    /// Puts a mount together from what was kept.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn parse(record: &str, descriptors: Vec<OwnedFd>) -> Result<Mount, RecordError> {
        // The text isn't shown: a key is in it.
        let damaged = |error: serde_json::Error| RecordError::Damaged(format!("line {}", error.line()));
        let Versions { version, readable_by } = serde_json::from_str(record).map_err(damaged)?;
        if readable_by > VERSION {
            return Err(RecordError::Later { version });
        }
        let Record { start, default_permissions, devices, .. } =
            serde_json::from_str(record).map_err(damaged)?;
        let mut descriptors = descriptors.into_iter();
        let (Some(control), Some(arena), Some(memory), true) = (
            descriptors.next(),
            descriptors.next(),
            descriptors.next(),
            devices > 0 && descriptors.len() >= devices,
        ) else {
            return Err(RecordError::Damaged(format!(
                "there are fewer descriptors than its {}",
                FIXED + devices
            )));
        };
        let bundle = Bundle::from_parts(descriptors.take(devices).collect(), memory, default_permissions);
        Ok(Mount { start, control, arena, bundle })
    }

    /// The mount, to be kept elsewhere as well.
    #[must_use]
    pub fn borrow(&self) -> Borrowed<'_> {
        let (control, arena) = (self.control.as_fd(), self.arena.as_fd());
        Borrowed { start: &self.start, control, arena, bundle: &self.bundle }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;
    use crate::mount_flags::MountFlags;
    use crate::mount_host::protocol::Key;

    /// The record of a mount as version 1 wrote it. It is never changed: mounts last longer than releases.
    const WRITTEN_BY_1: &str = r#"{"version":1,"readableBy":1,"start":{"volume":"v1/atoll-volumes/pvc-1","cluster":"0123456789abcdef0123456789abcdef","key":"5ec4e7","encrypt":true,"metadata":["a:1","b:2"],"node":"node-1","flags":{"read_only":true,"nosuid":false,"nodev":true,"noexec":false,"buffer_bytes":8388608,"timeout_seconds":30,"readers":4}},"defaultPermissions":true,"devices":2}"#;

    fn start() -> Start {
        Start {
            volume: "v1/atoll-volumes/pvc-1".into(),
            cluster: "0123456789abcdef0123456789abcdef".into(),
            key: Key::new("5ec4e7".into()),
            encrypt: true,
            metadata: vec!["a:1".into(), "b:2".into()],
            node: "node-1".into(),
            flags: MountFlags {
                read_only: true,
                nodev: true,
                buffer_bytes: Some(8 << 20),
                timeout_seconds: Some(30),
                readers: Some(4),
                ..MountFlags::default()
            },
        }
    }

    /// Descriptors that can be told from each other.
    fn marked(count: u8) -> Vec<OwnedFd> {
        let mark = |number: u8| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[number]).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            OwnedFd::from(file)
        };
        (0..count).map(mark).collect()
    }

    fn marks<'a>(descriptors: impl IntoIterator<Item = BorrowedFd<'a>>) -> Vec<u8> {
        let mark = |descriptor: BorrowedFd<'_>| {
            let mut mark = [0];
            let mut file = File::from(descriptor.try_clone_to_owned().unwrap());
            std::io::Seek::rewind(&mut file).unwrap();
            file.read_exact(&mut mark).unwrap();
            mark[0]
        };
        descriptors.into_iter().map(mark).collect()
    }

    #[test]
    fn a_mount_is_the_same_after_it_was_kept() {
        let mount = Mount::parse(WRITTEN_BY_1, marked(5)).unwrap();
        assert_eq!(mount.start, start());
        assert!(mount.bundle.default_permissions());
        assert_eq!(marks(mount.bundle.devices()), [3, 4]);
        assert_eq!(marks(mount.borrow().descriptors()), [0, 1, 2, 3, 4], "the same order again");
        let again = Mount::parse(&mount.borrow().record().unwrap(), marked(5)).unwrap();
        assert_eq!(again.start, start());
        assert!(!format!("{again:?}").contains("5ec4e7"), "a key is never shown");
    }

    #[test]
    fn a_later_release_says_whether_this_one_can_serve_its_mounts() {
        let more = WRITTEN_BY_1.replace(r#""version":1,"#, r#""version":9,"ring":"uring","#);
        let mount = Mount::parse(&more, marked(7)).unwrap();
        assert_eq!(marks(mount.bundle.devices()), [3, 4], "what it doesn't know is closed");
        let other = r#"{"version":9,"readableBy":2,"everything":"else"}"#;
        assert_eq!(Mount::parse(other, marked(9)).unwrap_err(), RecordError::Later { version: 9 });
    }

    #[test]
    fn what_is_no_record_is_said_so_without_showing_it() {
        for (record, descriptors) in [("", 5), ("{}", 5), (&WRITTEN_BY_1[..200], 5), (WRITTEN_BY_1, 4)] {
            let error = Mount::parse(record, marked(descriptors)).unwrap_err();
            assert!(matches!(error, RecordError::Damaged(_)), "{error}");
            assert!(!error.to_string().contains("5ec4e7"), "{error}");
        }
    }
}
