//! A committed extent reads the same from every replica of its chunk's generation.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atoll_client::storage_pool::Storage;
use atoll_core::ids::{InodeId, SegmentIndex};
use atoll_core::keys;
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::{InodeRecord, Place, Record};
use atoll_core::store::{Family, Read, StoreError, prefix_end};
use atoll_proto::checksum;
use atoll_proto::storage::ReadChunk;

const TIMEOUT: Duration = Duration::from_secs(5);

fn inodes(records: &dyn Read) -> Result<Vec<(InodeId, InodeRecord)>, StoreError> {
    let (mut found, mut failed) = (Vec::new(), None);
    let from = keys::inode(InodeId(0));
    records.scan(Family::Inodes, &from, &prefix_end(&[]), &mut |key, value| {
        match (<[u8; 8]>::try_from(key), InodeRecord::decode(value)) {
            (Ok(ino), Ok(record)) => found.push((InodeId(u64::from_be_bytes(ino)), record)),
            (Err(_), _) => {}
            (_, Err(error)) => failed = Some(error),
        }
        ControlFlow::Continue(())
    })?;
    failed.map_or(Ok(found), Err)
}

/// Reads every extent of every file from each of its replicas. How many that were.
///
/// # Errors
/// What is wrong.
pub async fn check(records: &dyn Read, storage: &Arc<dyn Storage>) -> Result<usize, String> {
    let failed = |error: StoreError| error.to_string();
    let mut extents = 0;
    for (ino, record) in inodes(records).map_err(failed)? {
        let segments = query::segments(records, ino, &record, SegmentIndex(0), u64::MAX).map_err(failed)?;
        for piece in segments.iter().flat_map(|(_, pieces)| pieces) {
            let Place::Chunk { chunk, offset } = piece.place else { continue };
            let Some(record) = query::chunk(records, chunk).map_err(failed)? else {
                return Err(format!("inode {ino} refers to chunk {chunk}, which doesn't exist"));
            };
            let mut first: Option<Vec<u8>> = None;
            for server in &record.replicas {
                let what = format!("inode {ino}, chunk {chunk} at {offset} on server {server}");
                let request = ReadChunk {
                    chunk,
                    generation: record.generation,
                    offset,
                    length: piece.length,
                    reader_verifies: false,
                };
                let (reply, body) = storage
                    .read(*server, request, TIMEOUT)
                    .await
                    .map_err(|error| format!("{what}: {error}"))?;
                checksum::verify(chunk, reply.offset / BLOCK_BYTES, &body, &reply.checksums)
                    .map_err(|error| format!("{what}: {error}"))?;
                let from = (offset - reply.offset) as usize;
                let Some(bytes) = body.get(from..from + piece.length as usize) else {
                    return Err(format!("{what}: only {} bytes", body.len()));
                };
                match &first {
                    None => first = Some(bytes.to_vec()),
                    Some(first) if first == bytes => {}
                    Some(_) => return Err(format!("{what}: other bytes than on {}", record.replicas[0])),
                }
                extents += 1;
            }
        }
    }
    Ok(extents)
}
