//! Stored records that this client knows and nobody else changes: what operations are carried out on here, by the same code
//! that carries them out where all records are. Pure.
//!
//! What is kept is kept by inode: its own record, and each further part of it (a directory's entries, extended attributes,
//! extents) whole or not at all, so that what isn't among a known part doesn't exist. Whatever isn't known is
//! [`StoreError::NotCached`], and who needs it asks the service. The inodes that were used least recently go when there are
//! too many bytes; knowing of one never depends on knowing of another.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};

use atoll_core::attributes::{Attributes, Timestamp};
use atoll_core::ids::InodeId;
use atoll_core::keys;
use atoll_core::records::{InodeRecord, Record, Superblock};
use atoll_core::store::{Family, Read, StoreError, Visit, Write};
use atoll_proto::metadata::InodeRecords;

/// Bytes that a record takes beside its key and value, about.
const RECORD_BYTES: usize = 112;
/// The same of an inode.
const NODE_BYTES: usize = 320;

type Part = BTreeMap<Vec<u8>, Vec<u8>>;

/// What is known of an inode. A part that isn't known is `None`.
#[derive(Debug, Default)]
struct Node {
    inode: Vec<u8>,
    entries: Option<Part>,
    xattrs: Option<Part>,
    extents: Option<Extents>,
    used: u64,
    bytes: usize,
}

/// Where the bytes of a file are.
#[derive(Debug, Default)]
struct Extents {
    segments: Part,
    /// Of inline values the length only: that is all that operations ask for which are carried out here.
    inline: BTreeMap<Vec<u8>, usize>,
    /// Segments that are marked to be moved to chunks.
    migrations: Part,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    superblock: Vec<u8>,
    nodes: HashMap<InodeId, Node>,
    by_use: BTreeMap<u64, InodeId>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
    /// Counts what was forgotten: what was asked for before that may be older than what was known then.
    forgotten: u64,
}

fn is_within(key: &[u8], from: usize) -> Option<InodeId> {
    let number: [u8; 8] = key.get(from..from + 8)?.try_into().ok()?;
    Some(InodeId(u64::from_be_bytes(number)))
}

/// The inode that a record belongs to, if it is one that is kept here.
fn owner(family: Family, key: &[u8]) -> Option<InodeId> {
    match (family, key.first()?) {
        (Family::Inodes | Family::Extents | Family::Inline | Family::Xattrs, _) => is_within(key, 0),
        (Family::Names, b'e') | (Family::System, b'i') => is_within(key, 1),
        _ => None,
    }
}

impl Node {
    fn count(&mut self) {
        let part = |part: &Part| -> usize {
            part.iter().map(|(key, value)| key.len() + value.len() + RECORD_BYTES).sum()
        };
        let extents = |extents: &Extents| {
            part(&extents.segments) + part(&extents.migrations) + extents.inline.len() * RECORD_BYTES * 2
        };
        self.bytes = NODE_BYTES
            + self.inode.len()
            + self.entries.as_ref().map_or(0, part)
            + self.xattrs.as_ref().map_or(0, part)
            + self.extents.as_ref().map_or(0, extents);
    }

    /// Sets or removes a record; how much larger it is than before.
    fn put(&mut self, family: Family, key: Vec<u8>, value: Option<Vec<u8>>) -> isize {
        fn set(part: &mut Option<Part>, key: Vec<u8>, value: Option<Vec<u8>>) -> isize {
            let Some(part) = part else { return 0 };
            let size = |key: usize, value: &[u8]| (key + value.len() + RECORD_BYTES) as isize;
            let length = key.len();
            let added = value.as_ref().map_or(0, |value| size(length, value));
            let before = match value {
                Some(value) => part.insert(key, value),
                None => part.remove(&key),
            };
            added - before.map_or(0, |before| size(length, &before))
        }
        match family {
            Family::Inodes => {
                let value = value.unwrap_or_default();
                let more = value.len() as isize - self.inode.len() as isize;
                self.inode = value;
                more
            }
            Family::Names => set(&mut self.entries, key, value),
            Family::Xattrs => set(&mut self.xattrs, key, value),
            Family::Extents | Family::System | Family::Inline => {
                let Some(extents) = &mut self.extents else { return 0 };
                match (family, value) {
                    (Family::Inline, Some(value)) => {
                        let is_new = extents.inline.insert(key, value.len()).is_none();
                        if is_new { 2 * RECORD_BYTES as isize } else { 0 }
                    }
                    (Family::Inline, None) => {
                        let was = extents.inline.remove(&key).is_some();
                        if was { -2 * RECORD_BYTES as isize } else { 0 }
                    }
                    (family, value) => {
                        let is_segment = family == Family::Extents;
                        let part = if is_segment { &mut extents.segments } else { &mut extents.migrations };
                        let mut taken = Some(std::mem::take(part));
                        let more = set(&mut taken, key, value);
                        *part = taken.unwrap_or_default();
                        more
                    }
                }
            }
        }
    }
}

impl Cache {
    /// Knows of the volume's record and nothing else, and takes at most `bytes_max`.
    pub fn new(superblock: Vec<u8>, bytes_max: usize) -> Cache {
        Cache {
            superblock,
            nodes: HashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            bytes_max,
            forgotten: 0,
        }
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Inodes that are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the inode is known.
    pub fn knows(&self, ino: InodeId) -> bool {
        self.nodes.contains_key(&ino)
    }

    /// Whether all entries of the directory are known.
    pub fn knows_entries(&self, ino: InodeId) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.entries.is_some())
    }

    /// See the type.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The inode's record.
    pub fn inode(&self, ino: InodeId) -> Option<InodeRecord> {
        InodeRecord::decode(&self.nodes.get(&ino)?.inode).ok()
    }

    /// What `stat` shows of it.
    pub fn attributes(&self, ino: InodeId) -> Option<Attributes> {
        self.inode(ino).map(|record| record.attributes(ino))
    }

    /// The volume's record changes as the service says.
    pub fn change_superblock(&mut self, change: impl FnOnce(&mut Superblock)) {
        if let Ok(mut superblock) = Superblock::decode(&self.superblock) {
            change(&mut superblock);
            self.superblock = superblock.encode();
        }
    }

    /// There is an inode of this number, made by what is carried out next; nothing is known of it, because there is nothing.
    pub fn begin_inode(&mut self, ino: InodeId) {
        let node = Node {
            entries: Some(Part::new()),
            xattrs: Some(Part::new()),
            extents: Some(Extents::default()),
            ..Node::default()
        };
        self.insert(ino, node);
    }

    /// It wasn't made after all.
    pub fn end_inode(&mut self, ino: InodeId) {
        self.remove(ino);
    }

    fn insert(&mut self, ino: InodeId, mut node: Node) {
        self.remove(ino);
        node.count();
        self.uses += 1;
        node.used = self.uses;
        self.bytes += node.bytes;
        self.by_use.insert(node.used, ino);
        self.nodes.insert(ino, node);
    }

    fn remove(&mut self, ino: InodeId) {
        if let Some(node) = self.nodes.remove(&ino) {
            self.by_use.remove(&node.used);
            self.bytes -= node.bytes;
        }
    }

    /// What is known of the inode may not be so any more.
    pub fn forget(&mut self, ino: InodeId) {
        self.forgotten += 1;
        self.remove(ino);
    }

    /// Nothing is known any more but the volume's record.
    pub fn forget_all(&mut self) {
        self.forgotten += 1;
        self.nodes.clear();
        self.by_use.clear();
        self.bytes = 0;
    }

    fn touch(&mut self, ino: InodeId) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        self.uses += 1;
        self.by_use.remove(&node.used);
        node.used = self.uses;
        self.by_use.insert(self.uses, ino);
    }

    /// Takes in what an operation has changed that was carried out on this.
    pub fn write(&mut self, writes: Vec<Write>) {
        let mut gone = Vec::new();
        for (family, key, value) in writes {
            if family == Family::System && key == keys::superblock() {
                self.superblock = value.unwrap_or_default();
                continue;
            }
            let Some(ino) = owner(family, &key) else { continue };
            let Some(node) = self.nodes.get_mut(&ino) else { continue };
            let more = node.put(family, key, value);
            node.bytes = node.bytes.saturating_add_signed(more);
            self.bytes = self.bytes.saturating_add_signed(more);
            if family == Family::Inodes {
                let is_gone = InodeRecord::decode(&node.inode).map_or(true, |record| record.nlink == 0);
                if is_gone {
                    gone.push(ino);
                } else {
                    self.touch(ino);
                }
            }
        }
        // What has no name is the service's to free.
        gone.into_iter().for_each(|ino| self.remove(ino));
        self.evict();
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some((_, ino)) = self.by_use.first_key_value().map(|(used, ino)| (*used, *ino))
        {
            self.forget(ino);
        }
    }

    /// Takes in what the service has answered: everything of an inode, in one or several parts.
    pub fn learn(&mut self, ino: InodeId, parts: Vec<InodeRecords>) {
        let Some(first) = parts.first() else { return };
        let pairs = |pairs: &[(bytes::Bytes, bytes::Bytes)]| -> Vec<(Vec<u8>, Vec<u8>)> {
            pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
        };
        let Ok(record) = InodeRecord::decode(&first.inode) else { return };
        let mut node = node_of(first.inode.to_vec(), &record);
        if let Some(xattrs) = &first.xattrs {
            node.xattrs = Some(pairs(xattrs).into_iter().collect());
        }
        if record.is_directory() {
            node.entries = Some(parts.iter().flat_map(|part| pairs(&part.entries)).collect());
        }
        for (child, bytes) in parts.iter().flat_map(|part| &part.children) {
            // One that is known is known as of now.
            if !self.knows(*child)
                && let Ok(record) = InodeRecord::decode(bytes)
            {
                self.insert(*child, node_of(bytes.to_vec(), &record));
            }
        }
        self.insert(ino, node);
        self.evict();
    }

    /// An operation that the service has carried out has left these attributes. `content`: it may have changed where the
    /// file's bytes are.
    pub fn patch(&mut self, attributes: &Attributes, content: bool) {
        let ino = attributes.ino;
        let Some(mut record) = self.inode(ino) else { return };
        if attributes.nlink == 0 {
            return self.forget(ino);
        }
        record.mode = attributes.mode;
        record.nlink = attributes.nlink;
        (record.uid, record.gid) = (attributes.uid, attributes.gid);
        if !record.is_directory() {
            (record.size, record.mapped) = (attributes.size, attributes.allocated);
        }
        (record.atime, record.mtime, record.ctime) = (attributes.atime, attributes.mtime, attributes.ctime);
        record.change = attributes.change;
        record.access_acl = attributes.acl;
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        self.bytes -= node.bytes;
        node.inode = record.encode();
        if content {
            node.extents = None;
        }
        // What it loses by a change of its content may be among them.
        if node.xattrs.as_ref().is_some_and(|xattrs| !xattrs.is_empty()) {
            node.xattrs = None;
        }
        node.count();
        self.bytes += node.bytes;
        self.touch(ino);
    }

    /// The file was read at this time.
    pub fn read_at(&mut self, ino: InodeId, time: Timestamp) {
        if let Some(mut record) = self.inode(ino)
            && record.atime < time
            && record.ctime < time
        {
            record.atime = time;
            self.write(vec![(Family::Inodes, keys::inode(ino), Some(record.encode()))]);
        }
    }
}

/// An inode of which its record is known, and what that says of the rest.
fn node_of(inode: Vec<u8>, record: &InodeRecord) -> Node {
    let is_empty = record.mapped == 0 && record.truncations.is_empty() && record.size == 0;
    Node {
        inode,
        xattrs: (record.xattr_list_bytes == 0).then(Part::new),
        extents: (!record.is_directory() && is_empty).then(Extents::default),
        ..Node::default()
    }
}

impl Read for Cache {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if family == Family::System {
            if key == keys::superblock() {
                return Ok(Some(self.superblock.clone()));
            }
            // The session: what was promised to it, this client counts itself.
            if key.first() == Some(&b'n') {
                return Ok(None);
            }
        }
        let node = owner(family, key).and_then(|ino| self.nodes.get(&ino)).ok_or(StoreError::NotCached)?;
        let extents = || node.extents.as_ref().ok_or(StoreError::NotCached);
        match family {
            Family::Inodes => Ok((!node.inode.is_empty()).then(|| node.inode.clone())),
            Family::Names => Ok(node.entries.as_ref().ok_or(StoreError::NotCached)?.get(key).cloned()),
            Family::Xattrs => Ok(node.xattrs.as_ref().ok_or(StoreError::NotCached)?.get(key).cloned()),
            Family::Extents => Ok(extents()?.segments.get(key).cloned()),
            Family::Inline => Ok(extents()?.inline.get(key).map(|length| vec![0; *length])),
            Family::System => Ok(extents()?.migrations.get(key).cloned()),
        }
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let node = owner(family, from).and_then(|ino| self.nodes.get(&ino)).ok_or(StoreError::NotCached)?;
        let part = match family {
            Family::Names => node.entries.as_ref(),
            Family::Xattrs => node.xattrs.as_ref(),
            Family::Extents => node.extents.as_ref().map(|extents| &extents.segments),
            Family::Inodes | Family::Inline | Family::System => None,
        };
        let part = part.ok_or(StoreError::NotCached)?;
        for (key, value) in part.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if visit(key, value) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}
