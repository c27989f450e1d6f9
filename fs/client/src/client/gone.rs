//! What an application hears when an inode is gone that its request is about: what a local filesystem would say.
//!
//! The kernel knows inodes that another mount has removed. The service says `Stale` of them, and the kernel's number for
//! that, `ESTALE`, belongs to who came by a file's handle some other way than by its name (an NFS server, for which the
//! kernel makes it of `ENOENT`). It is sent for one purpose only: the kernel walks a path once more when it gets it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use atoll_core::ids::InodeId;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::vfs::{Errno, Result};

/// Callers that are remembered to look again; beyond, who was told first is forgotten first.
const LOOKING_MAX: usize = 256;
/// How long they are remembered. The kernel looks again at once, and mostly doesn't come here then: it finds the name.
/// Who comes later does so for something else.
const LOOKING: Duration = Duration::from_secs(1);

/// What a request is about, to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name in a directory: lookup and everything that makes, removes or moves one; listing the directory.
    Name,
    /// An inode, however it was found: attributes, extended attributes, a link's target, opening.
    Inode(InodeId),
    /// An open file: its content and its locks.
    OpenFile,
}

impl Target {
    /// The errno if it is gone. `is_open`: whether an inode is open on this mount; it would be there on a local filesystem.
    fn errno(self, is_open: impl FnOnce(InodeId) -> bool) -> i32 {
        match self {
            Target::Name => libc::ENOENT,
            Target::Inode(ino) if is_open(ino) => libc::EIO,
            Target::Inode(_) => libc::ENOENT,
            Target::OpenFile => libc::EIO,
        }
    }
}

/// The result as the application is to hear it.
pub fn told<T>(result: Result<T>, target: Target, is_open: impl FnOnce(InodeId) -> bool) -> Result<T> {
    match result {
        Err(Errno(libc::ESTALE)) => Err(Errno(target.errno(is_open))),
        result => result,
    }
}

/// Who was told to look again, and when. The kernel does so once; a second `ESTALE` would reach the application.
#[derive(Default)]
pub struct LookAgain(Mutex<HashMap<(u32, InodeId, Bytes), Instant>>);

impl LookAgain {
    /// What a thread is told that wants to make a file whose name somebody else has given to something that the kernel has
    /// to open (a link, a fifo): to look again. If it is there for the second time in a row, somebody removes and makes the
    /// name again and again, and it was absent in between.
    pub fn answer(&self, thread: u32, parent: InodeId, name: Bytes) -> Errno {
        self.answer_at(Instant::now(), (thread, parent, name))
    }

    fn answer_at(&self, now: Instant, who: (u32, InodeId, Bytes)) -> Errno {
        let mut looking = self.0.lock();
        looking.retain(|_, told| now.saturating_duration_since(*told) < LOOKING);
        if looking.remove(&who).is_some() {
            return Errno(libc::ENOENT);
        }
        if looking.len() >= LOOKING_MAX {
            let first = looking.iter().min_by_key(|(_, told)| **told).map(|(who, _)| who.clone());
            if let Some(first) = first {
                looking.remove(&first);
            }
        }
        looking.insert(who, now);
        Errno(libc::ESTALE)
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::error::FsError;

    use super::*;

    #[test]
    fn what_is_gone_is_told_as_a_local_filesystem_would() {
        let ino = InodeId(5);
        let table = [
            (Target::Name, true, libc::ENOENT),
            (Target::Name, false, libc::ENOENT),
            (Target::Inode(ino), true, libc::EIO),
            (Target::Inode(ino), false, libc::ENOENT),
            (Target::OpenFile, true, libc::EIO),
            (Target::OpenFile, false, libc::EIO),
        ];
        for (target, is_open, errno) in table {
            let gone: Result<()> = Err(FsError::Stale.into());
            assert_eq!(told(gone, target, |_| is_open), Err(Errno(errno)), "{target:?}, open: {is_open}");
            let other: Result<()> = Err(FsError::Exists.into());
            assert_eq!(told(other, target, |_| is_open), other, "{target:?}");
            assert_eq!(told(Ok(7), target, |_| is_open), Ok(7));
        }
    }

    #[test]
    fn nobody_is_told_twice_in_a_row_to_look_again() {
        let looking = LookAgain::default();
        let ask =
            |thread, name: &'static [u8]| looking.answer(thread, InodeId(1), Bytes::from_static(name)).0;
        assert_eq!(ask(1, b"a"), libc::ESTALE);
        assert_eq!(ask(2, b"a"), libc::ESTALE);
        assert_eq!(ask(1, b"b"), libc::ESTALE);
        assert_eq!(ask(1, b"a"), libc::ENOENT);
        assert_eq!(ask(1, b"a"), libc::ESTALE);
    }

    #[test]
    fn who_has_found_the_name_is_told_to_look_again_the_next_time() {
        let looking = LookAgain::default();
        let began = Instant::now();
        let ask =
            |thread, at| looking.answer_at(began + at, (thread, InodeId(1), Bytes::from_static(b"a"))).0;
        assert_eq!(ask(1, Duration::ZERO), libc::ESTALE);
        assert_eq!(ask(1, LOOKING), libc::ESTALE);
        assert_eq!(ask(1, LOOKING), libc::ENOENT);
    }

    #[test]
    fn whoever_is_told_last_is_remembered_however_many_are() {
        let looking = LookAgain::default();
        let began = Instant::now();
        let ask = |thread: usize| {
            let who = (thread as u32, InodeId(1), Bytes::from_static(b"a"));
            looking.answer_at(began + Duration::from_micros(thread as u64), who).0
        };
        assert!((0..=LOOKING_MAX).all(|thread| ask(thread) == libc::ESTALE));
        assert_eq!(ask(LOOKING_MAX - 1), libc::ENOENT);
        assert_eq!(looking.0.lock().len(), LOOKING_MAX - 1);
    }
}
