//! When files were read, as `relatime` has it: an access time moves only if it is not after the last change, or a
//! day old. It is told to the service in the background, many at a time; until then it is shown from here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::attributes::{Attributes, Timestamp};
use atoll_core::commands::ops;
use atoll_core::ids::InodeId;
use atoll_core::limits::TOUCHED_INODES_MAX;
use parking_lot::Mutex;

use crate::metadata::Metadata;

/// Times are collected for so long.
const GATHER: Duration = Duration::from_secs(1);
/// Seconds after which an access time moves in any case.
const DAY_S: i64 = 24 * 3600;
/// Files whose times are remembered.
const FILES_MAX: usize = 1 << 14;

#[derive(Clone, Copy)]
struct Read {
    at: Timestamp,
    told: bool,
}

#[derive(Default)]
struct Table {
    reads: HashMap<InodeId, Read>,
    /// Those of them that are told.
    told: usize,
    /// A task tells them.
    telling: bool,
}

/// See the module.
#[derive(Default)]
pub struct Atimes(Mutex<Table>);

impl Atimes {
    /// The file with these attributes is read. True if somebody has to tell the service.
    fn note(&self, attributes: &Attributes, now: Timestamp) -> bool {
        let mut table = self.0.lock();
        let known = table.reads.get(&attributes.ino).map_or(attributes.atime, |read| read.at);
        let atime = known.max(attributes.atime);
        let changed = attributes.mtime.max(attributes.ctime);
        if now <= changed || (atime > changed && now.seconds - atime.seconds < DAY_S) {
            return false;
        }
        if table.reads.len() >= FILES_MAX {
            // Without one that can go nothing is looked for: a read must not cost more the more was read.
            if std::mem::take(&mut table.told) == 0 {
                return false;
            }
            table.reads.retain(|_, read| !read.told);
        }
        let earlier = table.reads.insert(attributes.ino, Read { at: now, told: false });
        table.told -= usize::from(earlier.is_some_and(|read| read.told));
        !std::mem::replace(&mut table.telling, true)
    }

    /// Brings attributes up to date. A change after the read makes that one of no account.
    pub fn overlay(&self, attributes: &mut Attributes) {
        let table = self.0.lock();
        if let Some(read) = table.reads.get(&attributes.ino)
            && read.at > attributes.atime
            && read.at > attributes.ctime
        {
            attributes.atime = read.at;
        }
    }

    /// The kernel has forgotten the inode.
    pub fn forget(&self, ino: InodeId) {
        let mut table = self.0.lock();
        if table.reads.get(&ino).is_some_and(|read| read.told) {
            table.reads.remove(&ino);
            table.told -= 1;
        }
    }

    /// Some of what is to be told.
    fn take(&self) -> Vec<(InodeId, Timestamp)> {
        let mut table = self.0.lock();
        let untold = table.reads.iter_mut().filter(|(_, read)| !read.told).take(TOUCHED_INODES_MAX);
        let mut times: Vec<_> = untold
            .map(|(ino, read)| {
                read.told = true;
                (*ino, read.at)
            })
            .collect();
        times.sort_unstable();
        table.told += times.len();
        table.telling = !times.is_empty();
        times
    }
}

/// A file is read.
pub fn note_read<M: Metadata>(atimes: &Arc<Atimes>, metadata: &Arc<M>, attributes: &Attributes) {
    if atimes.note(attributes, metadata.now()) {
        let (atimes, metadata) = (Arc::clone(atimes), Arc::clone(metadata));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(GATHER).await;
                if !tell(&atimes, &*metadata).await {
                    return;
                }
            }
        });
    }
}

/// Tells some of what is to be told; false if there was nothing.
pub async fn tell<M: Metadata>(atimes: &Atimes, metadata: &M) -> bool {
    let times = atimes.take();
    if times.is_empty() {
        return false;
    }
    if let Err(error) = metadata.mutate(ops::Touch { times }).await {
        tracing::debug!(%error, "access times can't be sent to the metadata server");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    fn file(atime: i64, mtime: i64, ctime: i64) -> Attributes {
        Attributes {
            ino: InodeId(5),
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: at(atime),
            mtime: at(mtime),
            ctime: at(ctime),
            btime: at(0),
            change: 1,
            acl: false,
        }
    }

    #[test]
    fn an_access_time_moves_after_a_change_and_once_a_day() {
        let shown = |atimes: &Atimes, mut attributes: Attributes| {
            atimes.overlay(&mut attributes);
            attributes.atime
        };
        let atimes = Atimes::default();
        assert!(atimes.note(&file(10, 10, 10), at(20)));
        assert_eq!(shown(&atimes, file(10, 10, 10)), at(20));
        assert!(!atimes.note(&file(10, 10, 10), at(30)), "after the change already");
        assert_eq!(shown(&atimes, file(10, 10, 10)), at(20));
        assert_eq!(shown(&atimes, file(5, 10, 25)), at(5), "set by somebody since");
        assert_eq!(atimes.take(), [(InodeId(5), at(20))]);
        assert_eq!(atimes.take(), []);
        assert!(!Atimes::default().note(&file(20, 10, 10), at(30)));
        assert!(Atimes::default().note(&file(20, 10, 10), at(20 + DAY_S)));
        assert!(Atimes::default().note(&file(20, 10, 25), at(30)));
        atimes.forget(InodeId(5));
        assert_eq!(shown(&atimes, file(10, 10, 10)), at(10));
    }

    #[test]
    fn where_no_more_fit_those_that_are_told_make_room() {
        let atimes = Atimes::default();
        let note = |ino| atimes.note(&Attributes { ino: InodeId(ino), ..file(10, 10, 10) }, at(20));
        let remembered = || atimes.0.lock().reads.len();
        assert_eq!((0..FILES_MAX as u64).filter(|ino| note(*ino)).count(), 1, "one task tells all of them");
        assert!(!note(1 << 20) && remembered() == FILES_MAX, "none is told");
        let told = atimes.take();
        atimes.forget(told[0].0);
        note(1 << 20);
        assert_eq!(remembered(), FILES_MAX, "there is room for one");
        note(1 << 21);
        assert_eq!(remembered(), FILES_MAX - told.len() + 2, "those that are told have gone");
        assert_eq!(atimes.0.lock().told, 0);
    }
}
