//! The ordered map that all records live in, as the deciding code sees it.
//!
//! [`Read`] is what a store offers; [`MemStore`] is one for tests and simulation (the other is RocksDB, in
//! the metadata server). [`Overlay`] collects the writes of a batch of commands on top of a store, so that
//! each command sees what the ones before it did, a refused command leaves nothing behind, and the whole
//! batch becomes one atomic write.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

/// Record families: those of the same name are one RocksDB column family each. Few, because each costs memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// Inodes by number.
    Inodes = 0,
    /// Directory entries, and of each inode its parents.
    Names = 1,
    /// Extent segments of files.
    Extents = 2,
    /// Bytes of small files and of small overwrites.
    Inline = 3,
    /// Extended attributes.
    Xattrs = 4,
    /// Everything small: superblock, chunks, sessions, slots, servers, orders, orphans.
    System = 5,
}

impl Family {
    /// All families, in the order of their numbers.
    pub const ALL: [Family; 6] =
        [Family::Inodes, Family::Names, Family::Extents, Family::Inline, Family::Xattrs, Family::System];

    /// The name of the column family.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::Inodes => "inodes",
            Family::Names => "names",
            Family::Extents => "extents",
            Family::Inline => "inline",
            Family::Xattrs => "xattrs",
            Family::System => "system",
        }
    }
}

/// The store failed or holds something that can't be read. Never an outcome of a command: a member whose
/// store fails is replaced by a new member.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store below failed.
    #[error("metadata store: {0}")]
    Backend(String),
    /// The disk gives back something else than was written, or nothing.
    #[error("metadata store damaged: {0}")]
    Corrupt(String),
    /// A record can't be decoded.
    #[error("metadata record damaged: {0}")]
    Damaged(String),
    /// Whether there is such a record isn't known here. Only a client's cache says so.
    #[error("a record isn't cached")]
    NotCached,
    /// A record of a newer format than this program knows.
    #[error(
        "metadata record {record} has format {found}, this program reads formats up to {known}: use the \
         newer program"
    )]
    NewerFormat {
        /// Which kind of record.
        record: &'static str,
        /// Its format.
        found: u8,
        /// The newest format known here.
        known: u8,
    },
}

/// Called for each key and value of a scan; `Break` ends it.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A consistent view of the records.
pub trait Read {
    /// The value at `key`.
    ///
    /// # Errors
    /// If the store fails.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// The value at each of the keys, in their order; a store on disk reads each of its blocks once for all of them.
    ///
    /// # Errors
    /// If the store fails.
    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        keys.iter().map(|key| self.get(family, key)).collect()
    }

    /// Visits the keys from `from` (inclusive) to `to` (exclusive) in order.
    ///
    /// # Errors
    /// If the store fails.
    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError>;
}

impl<T: Read + ?Sized> Read for &T {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        (**self).get(family, key)
    }

    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        (**self).get_many(family, keys)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        (**self).scan(family, from, to, visit)
    }
}

/// The first key after all keys that begin with `prefix`.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // No key is that long and all 0xff.
    vec![0xff; 64]
}

/// One write of a batch: the new value, or `None` to delete.
pub type Write = (Family, Vec<u8>, Option<Vec<u8>>);

/// A replaced value, to take the change back: family, key, and what the overlay had there.
type Replaced = (Family, Vec<u8>, Option<Option<Vec<u8>>>);

type Map<V> = [BTreeMap<Vec<u8>, V>; Family::ALL.len()];

/// A store in memory.
#[derive(Clone, Default, Debug)]
pub struct MemStore {
    maps: Map<Vec<u8>>,
}

impl MemStore {
    /// Carries a batch out.
    pub fn write(&mut self, batch: impl IntoIterator<Item = Write>) {
        for (family, key, value) in batch {
            let map = &mut self.maps[family as usize];
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }

    /// Number of records in `family`.
    #[must_use]
    pub fn len(&self, family: Family) -> usize {
        self.maps[family as usize].len()
    }
}

impl Read for MemStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.maps[family as usize].get(key).cloned())
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        for (key, value) in self.maps[family as usize].range::<[u8], _>(range) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Writes on top of a store, with a point to go back to.
pub struct Overlay<'a> {
    base: &'a dyn Read,
    writes: Map<Option<Vec<u8>>>,
    /// What the current command replaced, newest last, to take it back.
    undo: Vec<Replaced>,
}

impl<'a> Overlay<'a> {
    /// Nothing written yet.
    #[must_use]
    pub fn new(base: &'a dyn Read) -> Self {
        Overlay { base, writes: Map::default(), undo: Vec::new() }
    }

    /// Sets (`Some`) or deletes (`None`) a record.
    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Option<Vec<u8>>) {
        let previous = self.writes[family as usize].insert(key.clone(), value);
        self.undo.push((family, key, previous));
    }

    /// What was written up to here stays.
    pub fn keep(&mut self) {
        self.undo.clear();
    }

    /// Takes back what was written since the last [`keep`](Self::keep).
    pub fn undo(&mut self) {
        while let Some((family, key, previous)) = self.undo.pop() {
            let map = &mut self.writes[family as usize];
            match previous {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }

    /// All writes, to be carried out atomically.
    #[must_use]
    pub fn into_writes(self) -> Vec<Write> {
        let mut all = Vec::new();
        for (family, map) in Family::ALL.into_iter().zip(self.writes) {
            all.extend(map.into_iter().map(|(key, value)| (family, key, value)));
        }
        all
    }
}

impl Read for Overlay<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.writes[family as usize].get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(family, key),
        }
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut ours = self.writes[family as usize].range::<[u8], _>(range).peekable();
        let mut ended = false;
        self.base.scan(family, from, to, &mut |key, value| {
            while let Some((our_key, our_value)) = ours.next_if(|(our_key, _)| our_key.as_slice() < key) {
                if let Some(our_value) = our_value
                    && visit(our_key, our_value).is_break()
                {
                    ended = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match ours.next_if(|(our_key, _)| our_key.as_slice() == key) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(our_value))) => visit(key, our_value),
                None => visit(key, value),
            };
            ended = flow.is_break();
            flow
        })?;
        if !ended {
            for (key, value) in ours {
                if let Some(value) = value
                    && visit(key, value).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(read: &dyn Read, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        read.scan(Family::Names, from, to, &mut |key, _| {
            found.push(key.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    }

    #[test]
    fn an_overlay_merges_replaces_and_deletes_in_key_order() {
        let mut base = MemStore::default();
        base.write([b"b", b"d", b"f"].map(|k| (Family::Names, k.to_vec(), Some(vec![1]))));
        let mut overlay = Overlay::new(&base);
        overlay.put(Family::Names, b"a".to_vec(), Some(vec![2]));
        overlay.put(Family::Names, b"d".to_vec(), None);
        overlay.put(Family::Names, b"e".to_vec(), Some(vec![2]));
        overlay.put(Family::Names, b"z".to_vec(), Some(vec![2]));
        assert_eq!(keys(&overlay, b"a", b"zz"), [b"a", b"b", b"e", b"f", b"z"].map(|k| k.to_vec()));
        assert_eq!(keys(&overlay, b"b", b"f"), [b"b", b"e"].map(|k| k.to_vec()));
        assert_eq!(overlay.get(Family::Names, b"d").unwrap(), None);
    }

    #[test]
    fn undo_goes_back_to_the_last_kept_state() {
        let base = MemStore::default();
        let mut overlay = Overlay::new(&base);
        overlay.put(Family::Names, b"a".to_vec(), Some(vec![1]));
        overlay.keep();
        overlay.put(Family::Names, b"a".to_vec(), Some(vec![2]));
        overlay.put(Family::Names, b"a".to_vec(), None);
        overlay.put(Family::Names, b"b".to_vec(), Some(vec![3]));
        overlay.undo();
        assert_eq!(overlay.into_writes(), vec![(Family::Names, b"a".to_vec(), Some(vec![1]))]);
    }

    #[test]
    fn a_scan_that_breaks_in_the_base_visits_nothing_more() {
        let mut base = MemStore::default();
        base.write([b"b", b"d"].map(|k| (Family::Names, k.to_vec(), Some(vec![1]))));
        let mut overlay = Overlay::new(&base);
        overlay.put(Family::Names, b"z".to_vec(), Some(vec![2]));
        let mut seen = 0;
        overlay
            .scan(Family::Names, b"a", b"zz", &mut |_, _| {
                seen += 1;
                ControlFlow::Break(())
            })
            .unwrap();
        assert_eq!(seen, 1);
    }
}
