//! What the metadata service hasn't heard yet of the replicas here.

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::ids::ChunkId;
use parking_lot::Mutex;

/// Chunks with news; with more than so many a whole inventory is sent instead.
pub const CHANGES_MAX: usize = 1 << 16;
/// Bad blocks that are named of one chunk; with more of them the whole replica counts as bad.
const BAD_BLOCKS_MAX: usize = 1024;

/// News that wait for the next heartbeat.
#[derive(Debug, Default)]
pub struct Changes {
    news: Mutex<News>,
}

/// What has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// New or changed replicas.
    pub present: BTreeSet<ChunkId>,
    /// Bad blocks by chunk; none when all of the replica is bad.
    pub bad: BTreeMap<ChunkId, BTreeSet<u64>>,
    /// Replicas that are gone.
    pub removed: BTreeSet<ChunkId>,
    /// Blocks of replicas that were read from end to end, without anything bad.
    pub scrubbed: BTreeMap<ChunkId, u64>,
    /// There was more than was kept: only a whole inventory tells.
    pub overflow: bool,
}

impl News {
    fn len(&self) -> usize {
        self.present.len() + self.bad.len() + self.removed.len() + self.scrubbed.len()
    }

    fn bound(&mut self) {
        if self.len() > CHANGES_MAX {
            *self = Self { overflow: true, ..Self::default() };
        }
    }
}

impl Changes {
    /// A replica is new, or was sealed.
    pub fn present(&self, chunk: ChunkId) {
        let mut news = self.news.lock();
        news.removed.remove(&chunk);
        news.present.insert(chunk);
        news.bound();
    }

    /// A replica was replaced by a good one.
    pub fn replaced(&self, chunk: ChunkId) {
        let mut news = self.news.lock();
        news.bad.remove(&chunk);
        news.scrubbed.remove(&chunk);
        drop(news);
        self.present(chunk);
    }

    /// A replica is gone.
    pub fn removed(&self, chunk: ChunkId) {
        let mut news = self.news.lock();
        news.present.remove(&chunk);
        news.bad.remove(&chunk);
        news.scrubbed.remove(&chunk);
        news.removed.insert(chunk);
        news.bound();
    }

    /// Blocks of a replica are bad; none named: all of it is.
    pub fn bad(&self, chunk: ChunkId, blocks: &[u64]) {
        let mut news = self.news.lock();
        let whole_known = news.bad.get(&chunk).is_some_and(BTreeSet::is_empty);
        let known = news.bad.entry(chunk).or_default();
        if blocks.is_empty() {
            known.clear();
        } else if !whole_known {
            known.extend(blocks);
        }
        if known.len() > BAD_BLOCKS_MAX {
            known.clear();
        }
        news.bound();
    }

    /// A replica was read from end to end, nothing of it is bad, and so many blocks are there.
    pub fn scrubbed(&self, chunk: ChunkId, blocks: u64) {
        let mut news = self.news.lock();
        // Not worth a whole inventory: the next scrub says so again.
        if news.len() < CHANGES_MAX {
            news.scrubbed.insert(chunk, blocks);
        }
    }

    /// Takes news of at most `limit` chunks.
    pub fn take(&self, limit: usize) -> News {
        let mut news = self.news.lock();
        let mut taken = News { overflow: std::mem::take(&mut news.overflow), ..News::default() };
        while taken.len() < limit {
            if let Some((chunk, blocks)) = news.bad.pop_first() {
                taken.bad.insert(chunk, blocks);
            } else if let Some(chunk) = news.removed.pop_first() {
                taken.removed.insert(chunk);
            } else if let Some(chunk) = news.present.pop_first() {
                taken.present.insert(chunk);
            } else if let Some((chunk, blocks)) = news.scrubbed.pop_first() {
                taken.scrubbed.insert(chunk, blocks);
            } else {
                break;
            }
        }
        taken
    }

    /// Puts back what wasn't heard. What happened since wins.
    pub fn put_back(&self, old: News) {
        let mut news = self.news.lock();
        for chunk in old.present {
            if !news.removed.contains(&chunk) {
                news.present.insert(chunk);
            }
        }
        for (chunk, blocks) in old.bad {
            if !news.removed.contains(&chunk) {
                news.bad
                    .entry(chunk)
                    .and_modify(|known| {
                        if blocks.is_empty() || known.is_empty() {
                            known.clear()
                        } else {
                            known.extend(&blocks)
                        }
                    })
                    .or_insert(blocks);
            }
        }
        for (chunk, blocks) in old.scrubbed {
            if !news.removed.contains(&chunk) && !news.present.contains(&chunk) {
                news.scrubbed.entry(chunk).or_insert(blocks);
            }
        }
        for chunk in old.removed {
            if !news.present.contains(&chunk) {
                news.removed.insert(chunk);
            }
        }
        news.overflow |= old.overflow;
        news.bound();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let changes = Changes::default();
        changes.present(ChunkId(1));
        changes.bad(ChunkId(1), &[4]);
        changes.bad(ChunkId(1), &[2]);
        changes.removed(ChunkId(2));
        changes.scrubbed(ChunkId(1), 3);
        changes.scrubbed(ChunkId(3), 4);
        let old = changes.take(10);
        assert_eq!(old.bad[&ChunkId(1)], BTreeSet::from([2, 4]));
        // It wasn't heard; meanwhile 1 was deleted and 2 came back.
        changes.removed(ChunkId(1));
        changes.present(ChunkId(2));
        changes.put_back(old);
        let news = changes.take(10);
        assert_eq!(news.present, BTreeSet::from([ChunkId(2)]));
        assert_eq!(news.removed, BTreeSet::from([ChunkId(1)]));
        assert!(news.bad.is_empty() && !news.overflow);
        assert_eq!(news.scrubbed, BTreeMap::from([(ChunkId(3), 4)]));
        assert_eq!(changes.take(10), News::default());
    }

    #[test]
    fn a_whole_replica_is_worse_than_its_blocks() {
        let changes = Changes::default();
        changes.bad(ChunkId(1), &[]);
        changes.bad(ChunkId(1), &[7]);
        assert_eq!(changes.take(1).bad[&ChunkId(1)], BTreeSet::new());
        changes.bad(ChunkId(1), &(0..=BAD_BLOCKS_MAX as u64).collect::<Vec<_>>());
        assert_eq!(changes.take(1).bad[&ChunkId(1)], BTreeSet::new());
    }

    #[test]
    fn too_much_news_is_a_whole_inventory() {
        let changes = Changes::default();
        (0..=CHANGES_MAX as u64).for_each(|n| changes.present(ChunkId(n)));
        let news = changes.take(10);
        assert!(news.overflow && news.present.is_empty());
        changes.put_back(news);
        assert!(changes.take(10).overflow);
        assert!(!changes.take(10).overflow);
    }
}
