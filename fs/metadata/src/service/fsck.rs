//! The check of the whole volume: walks a snapshot of the leader's records, and proposes the repairs that were asked
//! for. What is found and what is repaired, and in which order, is decided in the core.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_core::check::{Finding, Kind, Seen, Subject, Totals, path_of, walk};
use atoll_core::commands::{Op, Outcome, ops};
use atoll_core::fsck::{Corrections, plan};
use atoll_core::query;
use atoll_core::store::StoreError;
use atoll_proto::fsck::{Fate, FsckReply, FsckRequest, ShownFinding};
use atoll_proto::metadata::MetadataError;

use super::{fsck_orphans, fsck_replicas};
use crate::leader::Leader;
use crate::node::{Node, query_error, store_error};

/// Findings that a round keeps; further ones are counted, and found again in the next round.
const FINDINGS_MAX: usize = 10_000;
/// Findings that an answer holds.
const SHOWN_MAX: usize = 2_000;
/// Bytes of their words and paths, which may be long: a message has a bound.
const SHOWN_BYTES_MAX: usize = 1 << 20;
/// Times that the volume is gone through at most: each repairs one phase at least, and there are seven (and an
/// eighth, of what no record shows, after the last).
const ROUNDS_MAX: u32 = 16;
/// Records after which the walk rests for as long as it worked: users come first.
const RECORDS_PER_REST: u64 = 256;
/// Repairs that are proposed at a time.
const REPAIRS_PER_STEP: usize = 64;

/// Starts a check, or says how one is.
pub(super) fn answer(node: &Arc<Node>, request: FsckRequest) -> Result<FsckReply, MetadataError> {
    let leader = node.lead()?;
    let mut state = leader.fsck.lock();
    match request {
        FsckRequest::Look { run } if run == state.run => Ok(state.clone()),
        // It was another leader's: who asks has to start anew.
        FsckRequest::Look { .. } => Ok(FsckReply::default()),
        FsckRequest::Start { .. } if state.run != 0 && !state.done => Err(MetadataError::Refused(
            "a check of this volume is already running: wait until it ends".into(),
        )),
        FsckRequest::Start { repair, data } => {
            let run = rand::random::<u64>().max(1);
            *state = FsckReply { run, ..FsckReply::default() };
            drop(state);
            tokio::spawn(check(node.clone(), leader, repair.into_iter().collect(), data));
            Ok(FsckReply { run, ..FsckReply::default() })
        }
    }
}

/// Runs a check to its end, or to that of this leadership.
async fn check(node: Arc<Node>, leader: Arc<Leader>, repair: BTreeSet<Kind>, data: bool) {
    let result = tokio::select! {
        result = rounds(&node, &leader, repair, data) => result,
        () = leader.ended() => Err(MetadataError::LeadershipLost),
        () = node.stopping.cancelled() => Err(MetadataError::LeadershipLost),
    };
    let mut state = leader.fsck.lock();
    match result {
        Ok(()) => {}
        Err(MetadataError::LeadershipLost | MetadataError::NotLeader { .. }) => {
            tracing::info!(
                "a check of the volume stopped because this metadata server is no longer the leader"
            );
            *state = FsckReply::default();
            return;
        }
        Err(error) => state.failed = Some(error.to_string()),
    }
    state.done = true;
    tracing::info!(
        left = state.left,
        repaired = state.repaired,
        failed = state.failed,
        "a check of the volume ended"
    );
}

/// Goes through the volume and repairs, until there is nothing more to do.
async fn rounds(
    node: &Arc<Node>,
    leader: &Arc<Leader>,
    asked: BTreeSet<Kind>,
    data: bool,
) -> Result<(), MetadataError> {
    let mut refused: BTreeSet<(Kind, Subject)> = BTreeSet::new();
    let mut repaired: Vec<ShownFinding> = Vec::new();
    let mut count = 0;
    for round in 1..=ROUNDS_MAX {
        leader.confirm()?;
        {
            let mut state = leader.fsck.lock();
            (state.round, state.looked, state.found) = (round, 0, 0);
        }
        let (walker, led) = (node.clone(), leader.clone());
        let (found, corrections) = atoll_blocking::spawn(move || look(&walker, &led))
            .await
            .map_err(|_| MetadataError::LeadershipLost)??;
        let findings: Vec<Finding> = found.iter().map(|(finding, _)| finding.clone()).collect();
        let todo: BTreeSet<(Kind, Subject)> = if round == ROUNDS_MAX {
            BTreeSet::new()
        } else {
            plan(&findings, &asked, &refused)
                .into_iter()
                .map(|finding| (finding.kind, finding.subject.clone()))
                .collect()
        };
        if todo.is_empty() {
            leader.fsck.lock().stage = "orphans".to_owned();
            let mut others = fsck_orphans::look(node, leader).await?;
            let mut mended = fsck_orphans::repair(node, leader, &others, &asked).await?;
            leader.fsck.lock().stage = "replicas".to_owned();
            let replicas = fsck_replicas::look(node, data).await?;
            mended.extend(fsck_replicas::repair(node, leader, &replicas, &asked).await?);
            others.extend(replicas);
            let mut state = leader.fsck.lock();
            state.found += (others.len() - mended.len()) as u64;
            count += mended.len() as u64;
            let mut left = found;
            for finding in others {
                let subject = (finding.kind, finding.subject.clone());
                if mended.contains(&subject) {
                    repaired.push(shown(&finding, None, Fate::Repaired));
                    continue;
                }
                if asked.contains(&finding.kind) {
                    refused.insert(subject);
                }
                left.push((finding, None));
            }
            finish(&mut state, repaired, left, &refused, count);
            return Ok(());
        }
        for part in todo.iter().collect::<Vec<_>>().chunks(REPAIRS_PER_STEP) {
            let ops = part.iter().map(|(kind, subject)| repair(*kind, subject, corrections)).collect();
            let outcomes = leader.propose_all(ops).await?;
            for (item, outcome) in part.iter().zip(outcomes) {
                if outcome == Outcome::More(true) {
                    count += 1;
                    if repaired.len() < SHOWN_MAX {
                        repaired.extend(
                            found
                                .iter()
                                .find(|(finding, _)| finding.kind == item.0 && finding.subject == item.1)
                                .map(|(finding, path)| shown(finding, path.clone(), Fate::Repaired)),
                        );
                    }
                } else if outcome != Outcome::More(false) {
                    refused.insert((*item).clone());
                }
            }
        }
    }
    Ok(())
}

fn repair(kind: Kind, subject: &Subject, corrections: Corrections) -> Op {
    match kind {
        Kind::VolumeTotals => Op::from(ops::FsckTotals(corrections)),
        kind => Op::from(ops::Fsck { kind, subject: subject.clone() }),
    }
}

/// A finding, and its path.
type Found = Vec<(Finding, Option<String>)>;

/// Goes through a snapshot of the records.
fn look(node: &Node, leader: &Leader) -> Result<(Found, Corrections), MetadataError> {
    let store = node.machine.store();
    let snapshot = store.snapshot();
    let superblock = query::superblock(&snapshot).map_err(query_error)?;
    let mut found: Vec<Finding> = Vec::new();
    let (mut looked, mut counted) = (0_u64, 0_u64);
    let mut worked = Instant::now();
    let totals = walk(&snapshot, &mut |seen| {
        match seen {
            Seen::Found(finding) => {
                counted += 1;
                if found.len() < FINDINGS_MAX {
                    found.push(finding);
                }
            }
            Seen::Looked(stage) => {
                looked += 1;
                if looked.is_multiple_of(RECORDS_PER_REST) {
                    let mut state = leader.fsck.lock();
                    if state.stage != stage {
                        state.stage = stage.to_owned();
                    }
                    (state.looked, state.found) = (looked, counted);
                    drop(state);
                    std::thread::sleep(worked.elapsed().min(Duration::from_millis(100)));
                    worked = Instant::now();
                    if node.stopping.is_cancelled() || leader.is_over() {
                        return ControlFlow::Break(());
                    }
                }
            }
        }
        ControlFlow::Continue(())
    })
    .map_err(|error| store_error(&error))?;
    let corrections =
        totals.map_or_else(Corrections::default, |is| Corrections::between(&Totals::said(&superblock), &is));
    {
        let mut state = leader.fsck.lock();
        (state.looked, state.found) = (looked, counted);
    }
    let with_paths = found
        .into_iter()
        .map(|finding| {
            let path = finding.subject.inode().map(|ino| path_of(&snapshot, ino)).transpose()?;
            Ok((finding, path))
        })
        .collect::<Result<Found, StoreError>>()
        .map_err(|error| store_error(&error))?;
    Ok((with_paths, corrections))
}

fn shown(finding: &Finding, path: Option<String>, fate: Fate) -> ShownFinding {
    ShownFinding { kind: finding.kind, words: finding.words.clone(), path, fate }
}

fn finish(
    state: &mut FsckReply,
    repaired: Vec<ShownFinding>,
    left: Found,
    refused: &BTreeSet<(Kind, Subject)>,
    count: u64,
) {
    state.repaired = count;
    state.left = state.found;
    let left = left.into_iter().map(|(finding, path)| {
        let was_refused = refused.contains(&(finding.kind, finding.subject.clone()));
        let fate = if was_refused { Fate::Refused } else { Fate::Left };
        shown(&finding, path, fate)
    });
    let mut bytes = 0;
    state.findings = repaired
        .into_iter()
        .chain(left)
        .take(2 * SHOWN_MAX)
        .take_while(|finding| {
            bytes += finding.words.len() + finding.path.as_ref().map_or(0, String::len);
            bytes <= SHOWN_BYTES_MAX
        })
        .collect();
}
