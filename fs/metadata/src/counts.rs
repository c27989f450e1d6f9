//! How many chunks and orphans there are, for the status: counted once, when somebody asks first, and kept up to date from then
//! on by what is applied. A status doesn't cost more the more there is.
//!
//! The counts are in memory. In the records they would have to be the same in all members, of which an older one doesn't
//! count.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use atoll_core::ids::ServerId;
use atoll_core::keys;
use atoll_core::records::{ChunkRecord, Record};
use atoll_core::store::{Family, Read, StoreError, Write, prefix_end};
use parking_lot::Mutex;

use crate::store::records::{Records, Written};

/// What chunks of the same kind have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Nothing is written to them any more.
    pub sealed: bool,
    /// Replicas that are wanted.
    pub copies: u8,
    /// Where replicas are, in order.
    pub replicas: Vec<ServerId>,
}

/// So many, or so many more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Number {
    /// Chunks.
    pub chunks: i64,
    /// Blocks of them that are in use.
    pub live_blocks: i64,
}

/// Counts, or by how much they differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Chunks by kind: there are as many kinds as ways to place replicas.
    pub chunks: BTreeMap<Kind, Number>,
    /// Inodes without a name.
    pub orphans: i64,
}

impl Counted {
    fn add(&mut self, other: &Counted) {
        for (kind, number) in &other.chunks {
            self.count(kind.clone(), *number);
        }
        self.orphans += other.orphans;
    }

    fn count(&mut self, kind: Kind, by: Number) {
        let number = self.chunks.entry(kind.clone()).or_default();
        number.chunks += by.chunks;
        number.live_blocks += by.live_blocks;
        if *number == Number::default() {
            self.chunks.remove(&kind);
        }
    }

    /// A record of the system family is there (`sign` 1), or is no more (-1).
    fn record(&mut self, key: &[u8], value: &[u8], sign: i64) {
        match key.first() {
            Some(b'o') => self.orphans += sign,
            Some(b'c') => {
                let chunk = ChunkRecord::decode(value).ok();
                let live_blocks = chunk.as_ref().map_or(0, |chunk| chunk.live_blocks);
                let mut kind = Kind { sealed: false, copies: 0, replicas: Vec::new() };
                // One that can't be read is a chunk all the same.
                if let Some(chunk) = chunk {
                    (kind.sealed, kind.copies) = (chunk.sealed, chunk.copies);
                    kind.replicas = chunk.replicas;
                    kind.replicas.sort_unstable();
                }
                let live_blocks = sign * i64::try_from(live_blocks).unwrap_or(i64::MAX);
                self.count(kind, Number { chunks: sign, live_blocks });
            }
            _ => {}
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// What has changed since `base` was counted, or since counting it has begun; `None`: nobody has asked yet.
    since: Option<Counted>,
    base: Option<Counted>,
    /// Which counting is the newest.
    countings: u64,
}

/// The counts of some records; see the module.
#[derive(Debug, Default)]
pub struct Counts(Mutex<State>);

impl Counts {
    /// Writes to the records, and counts what that changes.
    ///
    /// # Errors
    /// If they can't be read or written.
    pub fn write<'a>(&self, records: &Records, writes: &'a [Write]) -> Result<Written<'a>, StoreError> {
        let is_counted =
            |write: &&Write| write.0 == Family::System && matches!(write.1.first(), Some(b'c' | b'o'));
        let mut counted = writes.iter().filter(is_counted).peekable();
        if counted.peek().is_none() {
            return records.write(writes);
        }
        let mut state = self.0.lock();
        let Some(since) = &mut state.since else { return records.write(writes) };
        let mut change = Counted::default();
        // Each key is in a batch once.
        for (family, key, value) in counted {
            if let Some(old) = records.get(*family, key)? {
                change.record(key, &old, -1);
            }
            if let Some(new) = value {
                change.record(key, new, 1);
            }
        }
        let written = records.write(writes)?;
        since.add(&change);
        Ok(written)
    }

    /// The counts. Whoever asks first waits until all is counted.
    ///
    /// # Errors
    /// If the records can't be read.
    pub fn now(&self, records: &Records) -> Result<Counted, StoreError> {
        let (snapshot, counting) = {
            let mut state = self.0.lock();
            if let State { since: Some(since), base: Some(base), .. } = &*state {
                let mut now = base.clone();
                now.add(since);
                return Ok(now);
            }
            // Nothing is written meanwhile: what comes after this snapshot is what is counted from here on.
            state.since = Some(Counted::default());
            state.countings += 1;
            (records.snapshot(), state.countings)
        };
        let mut base = Counted::default();
        for prefix in [keys::chunks(), keys::orphans()] {
            snapshot.scan(Family::System, &prefix, &prefix_end(&prefix), &mut |key, value| {
                base.record(key, value, 1);
                ControlFlow::Continue(())
            })?;
        }
        let mut state = self.0.lock();
        // Somebody may have begun later, and from a later snapshot.
        if state.countings == counting {
            let mut now = base.clone();
            if let Some(since) = &state.since {
                now.add(since);
            }
            state.base = Some(base);
            return Ok(now);
        }
        Ok(base)
    }
}

#[cfg(test)]
mod tests {
    use atoll_core::ids::{ChunkId, Generation, InodeId, SessionId};
    use atoll_core::records::ChunkKind;

    use super::*;
    use crate::store::records::Backend;

    fn chunk(number: u64, replicas: &[u64], live_blocks: u64, sealed: bool) -> Write {
        let record = ChunkRecord {
            generation: Generation(1),
            writer: SessionId(1),
            incarnation: 1,
            replicas: replicas.iter().map(|server| ServerId(*server)).collect(),
            copies: 3,
            kind: ChunkKind::Stream,
            capacity: 64 << 20,
            committed: 1 << 20,
            sealed,
            live_blocks,
            dead_blocks: 0,
        };
        (Family::System, keys::chunk(ChunkId(number)), Some(record.encode()))
    }

    fn gone(write: Write) -> Write {
        (write.0, write.1, None)
    }

    fn orphan(number: u64) -> Write {
        (Family::System, keys::orphan(InodeId(number)), Some(vec![1]))
    }

    #[test]
    fn what_is_written_is_counted_as_if_all_had_been_counted_anew() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&Backend::default(), dir.path()).unwrap();
        let counts = Counts::default();
        counts.write(&records, &[chunk(1, &[1, 2, 3], 7, false), orphan(5), orphan(6)]).unwrap();
        let first = counts.now(&records).unwrap();
        assert_eq!((first.orphans, first.chunks.len()), (2, 1));
        let batches: [&[Write]; 6] = [
            &[chunk(2, &[3, 2, 1], 2, false), chunk(3, &[1, 2], 1, true), orphan(7)],
            &[chunk(1, &[1, 2, 3], 9, true), gone(orphan(5)), gone(orphan(99))],
            &[chunk(3, &[1, 2, 4], 1, true), orphan(6)],
            &[gone(chunk(2, &[], 0, false)), gone(chunk(77, &[], 0, false))],
            &[(Family::System, keys::chunk(ChunkId(9)), Some(vec![0xff; 3]))],
            &[(Family::Inodes, keys::chunk(ChunkId(8)), Some(vec![1]))],
        ];
        for batch in batches {
            counts.write(&records, batch).unwrap();
            assert_eq!(counts.now(&records).unwrap(), Counts::default().now(&records).unwrap());
        }
        let last = counts.now(&records).unwrap();
        let on = |replicas: &[u64]| Kind {
            sealed: true,
            copies: 3,
            replicas: replicas.iter().map(|server| ServerId(*server)).collect(),
        };
        assert_eq!(last.orphans, 2);
        assert_eq!(last.chunks[&on(&[1, 2, 3])], Number { chunks: 1, live_blocks: 9 });
        assert_eq!(last.chunks[&on(&[1, 2, 4])], Number { chunks: 1, live_blocks: 1 });
        assert_eq!(last.chunks.len(), 3, "and the one that can't be read");
    }
}
