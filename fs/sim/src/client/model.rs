//! What a file of a client's own folder is expected to be.

use std::collections::BTreeMap;

use atoll_core::ids::InodeId;

/// Names to files.
pub(super) type Names = BTreeMap<String, usize>;

/// A file whose number its maker wasn't told.
pub(super) const UNKNOWN_FILE: usize = usize::MAX;

/// Something done to names.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Unlink(String),
    Link(usize, String),
}

impl NameChange {
    /// Does it, where it can be done.
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Create(name, file) | NameChange::Link(file, name) => {
                names.entry(name.clone()).or_insert(*file);
            }
            NameChange::Rename(from, to) => {
                // Two names of one file: rename(2) does nothing.
                let is_one = names.get(from) == names.get(to);
                if !is_one && let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameChange::Unlink(name) => _ = names.remove(name),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct FileModel {
    pub(super) ino: InodeId,
    pub(super) content: Vec<u8>,
    pub(super) links: u32,
    /// What it was when it was last synced or closed, and what was done to it since, in order.
    pub(super) synced: Vec<u8>,
    pub(super) since: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    /// Carries out as much of it as `bytes` of data.
    fn apply(&self, content: &mut Vec<u8>, bytes: usize) {
        match self {
            Change::Truncate(size) => content.resize(*size, 0),
            Change::Write(offset, data) => {
                let data = &data[..bytes.min(data.len())];
                if content.len() < offset + data.len() {
                    content.resize(offset + data.len(), 0);
                }
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Change::Truncate(_) => 0,
            Change::Write(_, data) => data.len(),
        }
    }
}

impl FileModel {
    /// An empty file with one name.
    pub(super) fn new(ino: InodeId) -> FileModel {
        FileModel { ino, content: Vec::new(), links: 1, synced: Vec::new(), since: Vec::new() }
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.content, usize::MAX);
        self.since.push(change);
    }

    pub(super) fn settle(&mut self) {
        self.synced.clone_from(&self.content);
        self.since.clear();
    }

    /// What was done since it was synced, for who reads of a failure.
    pub(super) fn changes(&self) -> String {
        let changes = self.since.iter().map(|change| match change {
            Change::Write(offset, data) => format!("{} bytes at {offset}", data.len()),
            Change::Truncate(size) => format!("size {size}"),
        });
        changes.collect::<Vec<_>>().join(", ")
    }

    /// Its mount was killed, and this is what another one finds: everything that was synced, and of the rest the
    /// first so many changes, the last of them perhaps in part.
    pub(super) fn survives_as(&self, found: &[u8]) -> bool {
        let mut content = self.synced.clone();
        if content == found {
            return true;
        }
        for change in &self.since {
            // How much of a write there is shows in where it first differs from what was there before.
            let mut whole = content.clone();
            change.apply(&mut whole, usize::MAX);
            if whole == found {
                return true;
            }
            if let Change::Write(offset, data) = change {
                let same = data.iter().zip(found.iter().skip(*offset)).take_while(|(a, b)| a == b).count();
                let mut part = content.clone();
                change.apply(&mut part, same);
                if part == found && same <= change.bytes() {
                    return true;
                }
            }
            content = whole;
        }
        false
    }
}
