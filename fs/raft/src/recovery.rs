//! Reading the log back from its folder.

use std::path::Path;

use crate::account::Account;
use crate::disk::Disk;
use crate::error::LogError;
use crate::files::{Prepared, segment_name, sequence_of};
use crate::log_store::Segment;
use crate::segment::{HEADER_BYTES, Replay, SegmentIndex};
use crate::types::{LogPosition, MemberId};

/// A segment as found, with what the writer needs to go on in it.
pub(crate) struct FoundSegment {
    pub(crate) segment: Segment,
    pub(crate) segment_bytes: u32,
    /// Where the next record goes.
    pub(crate) end: u32,
    /// CRC that it has to name.
    pub(crate) chain: u32,
    /// Nothing is in it yet.
    pub(crate) empty: bool,
}

impl std::ops::Deref for FoundSegment {
    type Target = Segment;
    fn deref(&self) -> &Segment {
        &self.segment
    }
}

impl From<FoundSegment> for Prepared {
    fn from(found: FoundSegment) -> Self {
        Prepared {
            path: found.segment.path,
            file: found.segment.file,
            sequence: found.segment.sequence,
            segment_bytes: found.segment_bytes,
            chain: found.chain,
        }
    }
}

/// All that was found.
pub(crate) struct Found {
    /// By sequence.
    pub(crate) segments: Vec<FoundSegment>,
    /// The last entry that is no longer in the log.
    pub(crate) base: Option<LogPosition>,
    /// The last entry.
    pub(crate) last: Option<LogPosition>,
    pub(crate) account: Account,
}

impl Found {
    /// A segment that was made just now.
    pub(crate) fn push_empty(&mut self, made: Prepared) {
        self.segments.push(FoundSegment {
            segment: Segment {
                path: made.path,
                file: made.file,
                sequence: made.sequence,
                index: SegmentIndex::default(),
            },
            segment_bytes: made.segment_bytes,
            end: HEADER_BYTES,
            chain: made.chain,
            empty: true,
        });
    }
}

/// Reads all segments in a folder.
pub(crate) fn find_segments(
    dir: &Path,
    disk: &dyn Disk,
    names: &[String],
    member: MemberId,
) -> Result<Found, LogError> {
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
    sequences.sort_unstable();
    let mut replay = Replay::default();
    let mut files = Vec::with_capacity(sequences.len());
    let mut bytes = Vec::new();
    for sequence in sequences {
        let path = dir.join(segment_name(sequence));
        let file = disk.open(&path).map_err(|e| LogError::io("open", &path, e))?;
        let len = file.len().map_err(|e| LogError::io("read", &path, e))?;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(u32::MAX as usize);
        bytes.resize(len, 0);
        let read = file.read_at(&mut bytes, 0).map_err(|e| LogError::io("read", &path, e))?;
        replay.read_segment(&path, &bytes[..read], member)?;
        if let Some(segment) = replay.segments.last()
            && segment.header.sequence != sequence
        {
            return Err(LogError::damaged(
                &path,
                0,
                format!("by its header it is segment {:016x}", segment.header.sequence),
            ));
        }
        files.push(file);
    }
    let segments = replay
        .segments
        .into_iter()
        .zip(files)
        .map(|(found, file)| FoundSegment {
            segment_bytes: found.header.segment_bytes,
            end: found.end,
            chain: found.chain,
            empty: found.empty,
            segment: Segment { path: found.path, file, sequence: found.header.sequence, index: found.index },
        })
        .collect();
    Ok(Found { segments, base: replay.base, last: replay.last, account: replay.account })
}
