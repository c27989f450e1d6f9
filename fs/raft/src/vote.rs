//! The file with this member's vote.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::error::LogError;
use crate::types::MemberId;

const MAGIC: [u8; 8] = *b"ATOLLVOT";
const FORMAT: u32 = 1;
const BYTES: usize = 48;
const NAME: &str = "vote";
const NEW_NAME: &str = "vote.new";

/// For whom this member voted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRecord {
    /// In which term.
    pub(crate) term: u64,
    /// For whom.
    pub(crate) node: MemberId,
    /// Whether a quorum did so too, as far as this member knows: then `node` leads in `term`.
    pub(crate) committed: bool,
}

/// Writes the vote: a new file, synced, renamed over the old one, and the folder synced, so that
/// it's the old or the new one after any crash, and the new one after the return. A vote that
/// is forgotten could be given twice, and a term have two leaders.
///
/// The file, little-endian: magic (8 bytes), format version (4), CRC-32C of the file with this
/// field zero (4), member (8), term (8), node (8), committed (1), zeroes (7).
pub(crate) fn write(disk: &dyn Disk, dir: &Path, member: MemberId, vote: VoteRecord) -> Result<(), LogError> {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..24].copy_from_slice(&member.to_le_bytes());
    bytes[24..32].copy_from_slice(&vote.term.to_le_bytes());
    bytes[32..40].copy_from_slice(&vote.node.to_le_bytes());
    bytes[40] = u8::from(vote.committed);
    let crc = crc_fast::crc32_iscsi(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    let new = dir.join(NEW_NAME);
    let file = disk.create(&new).map_err(|e| LogError::io("create", &new, e))?;
    file.write_at(&[&bytes], 0).map_err(|e| LogError::io("write", &new, e))?;
    file.sync().map_err(|e| LogError::io("sync", &new, e))?;
    let path = dir.join(NAME);
    disk.rename(&new, &path).map_err(|e| LogError::io("rename", &new, e))?;
    disk.sync_dir(dir).map_err(|e| LogError::io("sync", dir, e))
}

/// Reads the vote; `None` if this member never voted. `names` are the files in `dir`.
pub(crate) fn read(
    disk: &dyn Disk,
    dir: &Path,
    names: &[String],
    member: MemberId,
) -> Result<Option<VoteRecord>, LogError> {
    if !names.iter().any(|name| name == NAME) {
        return Ok(None);
    }
    let path = dir.join(NAME);
    let file = disk.open(&path).map_err(|e| LogError::io("open", &path, e))?;
    let mut bytes = [0; BYTES];
    let read = file.read_at(&mut bytes, 0).map_err(|e| LogError::io("read", &path, e))?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if read < 16 || bytes[..8] != MAGIC {
        return Err(LogError::Foreign { path, what: "vote file" });
    }
    if word(8) > FORMAT {
        return Err(LogError::NewerFormat { path, found: word(8), known: FORMAT });
    }
    let mut covered = bytes;
    covered[12..16].fill(0);
    if read < BYTES || word(12) != crc_fast::crc32_iscsi(&covered) {
        return Err(LogError::damaged(&path, 0, "the vote has a wrong checksum"));
    }
    if long(16) != member {
        return Err(LogError::OtherMember { path, found: long(16), expected: member });
    }
    Ok(Some(VoteRecord { term: long(24), node: long(32), committed: bytes[40] == 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn is_read_back_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk { sync: true };
        let names = || disk.list(dir.path()).unwrap();
        assert_eq!(read(&disk, dir.path(), &names(), 5).unwrap(), None);
        for committed in [false, true] {
            let vote = VoteRecord { term: 7, node: 9, committed };
            write(&disk, dir.path(), 5, vote).unwrap();
            assert_eq!(read(&disk, dir.path(), &names(), 5).unwrap(), Some(vote));
        }
        assert!(matches!(
            read(&disk, dir.path(), &names(), 6),
            Err(LogError::OtherMember { found: 5, expected: 6, .. })
        ));
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for byte in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[byte] ^= 0x04;
            std::fs::write(&path, &bytes).unwrap();
            assert!(read(&disk, dir.path(), &names(), 5).is_err(), "byte {byte}");
            std::fs::write(&path, &whole[..byte]).unwrap();
            assert!(read(&disk, dir.path(), &names(), 5).is_err(), "cut at {byte}");
        }
    }
}
