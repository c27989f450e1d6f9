//! Looks for damage before a reader finds it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use atoll_blocking::Pace;
use atoll_core::ids::ChunkId;
use tokio_util::sync::CancellationToken;

use crate::chunk_file::{BLOCK, ChunkError};
use crate::metrics::Metrics;
use crate::pool::{IoPool, Lane};
use crate::store::{OpenChunk, Store};

/// Blocks that are verified in one job: 1 MiB.
pub(crate) const SCRUB_PIECE_BLOCKS: u32 = 256;
/// Ids that are looked up at a time.
const IDS_AT_ONCE: usize = 64;
/// The pause after a round, unless said otherwise.
pub(crate) const ROUND_PAUSE: Duration = Duration::from_secs(600);

/// What a check of a piece found.
pub(crate) struct Piece {
    /// Blocks that were verified.
    pub good_blocks: u64,
    /// Blocks that are bad.
    pub bad: Vec<u32>,
    /// There is nothing after it.
    pub last: bool,
}

/// Verifies a piece of a replica and reports what is bad. The last piece also gives back what trims left over.
pub(crate) fn check_piece(store: &Store, open: &OpenChunk, blocks: Range<u32>) -> Result<Piece, ChunkError> {
    let id = open.file.chunk();
    let end = (store.noting(id, open.file.info())?.written_bytes).div_ceil(BLOCK);
    let last = u64::from(blocks.end) >= end;
    let checked = store.noting(id, open.file.check(blocks))?;
    if !checked.bad.is_empty() {
        store.note_bad(id, &checked.bad.iter().map(|block| u64::from(*block)).collect::<Vec<_>>());
    }
    if last {
        open.file.punch_trimmed();
    }
    Ok(Piece { good_blocks: checked.good_blocks, bad: checked.bad, last })
}

/// Goes over the sealed replicas again and again, at a slow rate, until it is told to stop. It starts at a random place,
/// so that a server that is restarted often doesn't always check the same chunks. Chunks that are being written
/// are passed over: their turn comes when they are sealed.
pub(crate) async fn run(
    store: Arc<Store>,
    pool: IoPool,
    metrics: Metrics,
    bytes_per_s: u64,
    round_pause: Duration,
    stop: CancellationToken,
) {
    if bytes_per_s == 0 {
        return;
    }
    let pace = Pace::new(bytes_per_s);
    let mut next = ChunkId(random_start(&store));
    loop {
        let ids = store.ids(next, IDS_AT_ONCE);
        let round_over = ids.is_empty();
        for id in &ids {
            tokio::select! {
                () = stop.cancelled() => return,
                () = scrub_chunk(&store, &pool, &metrics, &pace, *id) => {}
            }
        }
        next = match ids.last().and_then(|last| last.0.checked_add(1)) {
            Some(after) => ChunkId(after),
            None => ChunkId(0),
        };
        if round_over {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(round_pause) => {}
            }
        }
    }
}

fn random_start(store: &Store) -> u64 {
    rand::random_range(0..=store.last_id().map_or(0, |id| id.0))
}

async fn scrub_chunk(store: &Arc<Store>, pool: &IoPool, metrics: &Metrics, pace: &Pace, id: ChunkId) {
    let (mut next, mut good_blocks, mut bad) = (0, 0, false);
    loop {
        pace.take(u64::from(SCRUB_PIECE_BLOCKS) * BLOCK).await;
        let read = store.clone();
        let job = move |_place| {
            let store = read;
            // Looked up for each piece: a chunk that is deleted meanwhile isn't kept.
            let open = store.chunk(id)?;
            if !open.file.is_sealed() {
                return Ok(None);
            }
            check_piece(&store, &open, next..next + SCRUB_PIECE_BLOCKS).map(Some)
        };
        match pool.run(Lane::Background, job).await {
            Ok(Ok(Some(piece))) => {
                metrics.scrubbed_blocks.inc_by(piece.good_blocks + piece.bad.len() as u64);
                good_blocks += piece.good_blocks;
                bad |= !piece.bad.is_empty();
                if piece.last {
                    // What was zeroed looks here as if it had never been written.
                    if !bad {
                        store.changes().scrubbed(id, good_blocks);
                    }
                    return;
                }
            }
            // Whatever it is was reported where it was found; the next round comes by again.
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        }
        next += SCRUB_PIECE_BLOCKS;
    }
}
