//! Which servers get the replicas of a chunk. Pure; randomness is an argument.

use std::collections::{BTreeMap, HashSet};

use atoll_core::ids::ServerId;

/// Labels by which replicas are spread, the most important first: what one event is most likely to take down
/// together.
pub const SPREAD_LABELS: [&str; 2] = ["zone", "host"];
/// A server with less free room than this many chunks gets no new one while others have more.
const ROOM_CHUNKS: u64 = 4;

/// A server that may get a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub server: ServerId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Bytes free on its disk.
    pub free: u64,
}

/// A small generator (SplitMix64), so that placement needs no more than a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// Up to `copies` servers for a new replica each, none of which is in `taken` (servers that have one already).
/// Different zones come first, then different hosts, then room: among equals a server is taken with a chance in
/// proportion to its free bytes, so that servers fill up evenly and no burst goes to one.
#[must_use]
pub fn place(
    candidates: &[Candidate],
    taken: &[Candidate],
    copies: usize,
    chunk_bytes: u64,
    seed: u64,
) -> Vec<ServerId> {
    let mut random = Random(seed);
    let mut used: Vec<HashSet<&str>> = SPREAD_LABELS.iter().map(|_| HashSet::new()).collect();
    let mut chosen: HashSet<ServerId> = taken.iter().map(|candidate| candidate.server).collect();
    for candidate in taken {
        note(&mut used, candidate);
    }
    let mut result = Vec::new();
    while result.len() < copies {
        let mut best: Vec<&Candidate> = Vec::new();
        let mut best_rank = 0;
        for candidate in candidates {
            if chosen.contains(&candidate.server) || candidate.free < chunk_bytes {
                continue;
            }
            let rank = rank(&used, candidate, chunk_bytes);
            if best.is_empty() || rank > best_rank {
                best_rank = rank;
                best.clear();
            }
            if rank == best_rank {
                best.push(candidate);
            }
        }
        let total: u64 = best.iter().fold(0, |sum: u64, candidate| sum.saturating_add(candidate.free));
        let mut at = random.below(total);
        let Some(pick) = best.iter().find(|candidate| {
            let hit = at < candidate.free;
            at = at.saturating_sub(candidate.free);
            hit
        }) else {
            break;
        };
        chosen.insert(pick.server);
        note(&mut used, pick);
        result.push(pick.server);
    }
    result
}

/// Higher is better: room first (a nearly full disk fails the writer), then a new zone, then a new host.
fn rank(used: &[HashSet<&str>], candidate: &Candidate, chunk_bytes: u64) -> u32 {
    let mut rank = u32::from(candidate.free >= chunk_bytes.saturating_mul(ROOM_CHUNKS));
    for (used, label) in used.iter().zip(SPREAD_LABELS) {
        // A server without the label is unlike no other: nothing is known.
        let new = candidate.labels.get(label).is_none_or(|value| !used.contains(value.as_str()));
        rank = rank * 2 + u32::from(new);
    }
    rank
}

fn note<'a>(used: &mut [HashSet<&'a str>], candidate: &'a Candidate) {
    for (used, label) in used.iter_mut().zip(SPREAD_LABELS) {
        if let Some(value) = candidate.labels.get(label) {
            used.insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 64 << 20;

    fn server(number: u64, zone: &str, host: &str, free_chunks: u64) -> Candidate {
        let labels = [("zone", zone), ("host", host)];
        Candidate {
            server: ServerId(number),
            labels: labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            free: free_chunks * CHUNK,
        }
    }

    #[test]
    fn replicas_go_to_different_zones_then_hosts() {
        let servers = [
            server(1, "a", "h1", 100),
            server(2, "a", "h2", 100),
            server(3, "b", "h3", 10),
            server(4, "b", "h3", 10),
        ];
        for seed in 0..50 {
            let placed = place(&servers, &[], 3, CHUNK, seed);
            assert_eq!(placed.len(), 3);
            let zones: HashSet<_> = placed[..2].iter().map(|s| s.0 <= 2).collect();
            assert_eq!(zones.len(), 2, "the first two are in different zones: {placed:?}");
            assert!(
                !(placed.contains(&ServerId(3)) && placed.contains(&ServerId(4))),
                "same host: {placed:?}"
            );
        }
    }

    #[test]
    fn room_decides_among_equals_and_a_full_server_gets_none() {
        let servers = [server(1, "a", "a", 90), server(2, "b", "b", 10), server(3, "c", "c", 0)];
        let mut first = [0; 4];
        for seed in 0..1000 {
            let placed = place(&servers, &[], 3, CHUNK, seed);
            assert_eq!(placed.len(), 2);
            first[placed[0].0 as usize] += 1;
        }
        assert!(first[1] > 5 * first[2] && first[2] > 20 && first[3] == 0, "{first:?}");
    }

    #[test]
    fn servers_that_have_a_replica_get_no_second_one() {
        let servers = [server(1, "a", "a", 9), server(2, "a", "b", 9), server(3, "b", "c", 9)];
        assert_eq!(place(&servers, &servers[..1], 1, CHUNK, 3), [ServerId(3)]);
        assert_eq!(place(&servers, &servers, 1, CHUNK, 3), []);
        assert_eq!(place(&[], &[], 3, CHUNK, 3), []);
    }
}
