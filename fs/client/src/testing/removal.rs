//! What others remove, and what is freed then.

use atoll_core::commands::{Op, Outcome, ops};
use atoll_core::ids::{InodeId, ROOT};
use atoll_core::keys;
use bytes::Bytes;

use super::{MemVolume, PURGE_SEGMENTS};

impl MemVolume {
    /// Somebody else removes the name of a file of the root directory.
    pub fn remove(&mut self, name: &str) -> Outcome {
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.internal(Op::from(ops::Unlink { parent: ROOT, name, directory: false }))
    }

    /// Frees what nobody holds any more, as the leader does in the background.
    pub fn purge(&mut self) {
        let orphans = self.numbers(&keys::orphans());
        for ino in orphans {
            if !self.open.values().any(|held| held.contains(&InodeId(ino))) {
                let op = Op::from(ops::PurgeOrphan { ino: InodeId(ino), segments_max: PURGE_SEGMENTS });
                while self.internal(op.clone()) == Outcome::More(true) {}
            }
        }
        for ino in self.numbers(&keys::truncations()) {
            let op = Op::from(ops::PurgeTruncated { ino: InodeId(ino), segments_max: PURGE_SEGMENTS });
            while self.internal(op.clone()) == Outcome::More(true) {}
        }
    }
}
