//! Room on the metadata disks: a leader whose disk is full lets somebody else lead who has room.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_core::ids::MemberId;
use atoll_proto::admin::TransferLeader;
use tokio::time::Instant;

use crate::membership::Group;
use crate::node::Node;
use crate::store::ballast::{Ballast, Room};

/// How often this member's disk is looked at while the records grow, or there is little room…
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// …and after how many seconds at rest: somebody else may fill it.
const POLL_SECONDS_AT_REST: u32 = 5;
/// How often the leader asks the others about theirs, in seconds: while the records grow, and at rest.
const ASK_SECONDS: u32 = 2;
const ASK_SECONDS_AT_REST: u32 = 10;
/// A leader with a full disk looks this often for somebody else to lead.
const TRANSFER_INTERVAL: Duration = Duration::from_secs(10);

/// Looks at the disk of this member, for as long as it runs.
pub(super) async fn look(node: Arc<Node>, mut ballast: Ballast) {
    let mut looked_for_another: Option<Instant> = None;
    let mut position = None;
    loop {
        let looked = atoll_blocking::spawn(move || {
            let room = ballast.check();
            (ballast, room)
        });
        let room = match looked.await {
            Ok((looked, room)) => {
                ballast = looked;
                room
            }
            // The runtime is going down.
            Err(_) => return std::future::pending().await,
        };
        let low = match room {
            Ok(room) => room == Room::Low || node.machine.waits_for_room(),
            Err(error) => {
                tracing::warn!(%error, "the free space of the metadata disk can't be read");
                node.next_second().await;
                continue;
            }
        };
        // First this: what grows is refused only if nobody else can take it.
        if low
            && node.leading().is_some()
            && looked_for_another.is_none_or(|at| at.elapsed() >= TRANSFER_INTERVAL)
        {
            transfer_leadership(&node).await;
            looked_for_another = Some(Instant::now());
        }
        match (node.disk_low.swap(low, Ordering::Relaxed), low) {
            (false, true) => {
                tracing::error!("the metadata disk is nearly full: enlarge it, or delete files");
            }
            (true, false) => tracing::info!("the metadata disk has enough free space again"),
            _ => {}
        }
        if low || node.has_grown(&mut position) {
            tokio::time::sleep(POLL_INTERVAL).await;
        } else {
            node.until_grown(&mut position, POLL_SECONDS_AT_REST).await;
        }
    }
}

/// Transfers leadership to a member whose disk has free space, if there is one.
async fn transfer_leadership(node: &Node) {
    let full = ask(node).await;
    let successors = Group::of(&node.consensus.status()).successors();
    let Some(to) = successors.into_iter().find(|member| full.get(member) == Some(&Some(false))) else {
        return;
    };
    tracing::warn!(
        %to,
        "the metadata disk is nearly full: transferring leadership to a member with more free space"
    );
    if let Err(error) = node.transfer_leadership(TransferLeader { to: Some(to) }).await {
        tracing::warn!(
            %error,
            "leadership could not be transferred: this metadata server stays the leader, with a nearly full \
             disk; enlarge the disk"
        );
    }
}

/// Keeps account of whose disks are full, for as long as this member runs.
pub(super) async fn ask_others(node: Arc<Node>) {
    let mut position = None;
    loop {
        node.next_of_seconds(ASK_SECONDS).await;
        if !node.has_grown(&mut position) {
            node.until_grown(&mut position, ASK_SECONDS_AT_REST).await;
        }
        if let Ok(leader) = node.lead_unasked().await {
            let answers = ask(&node).await;
            let low = {
                let mut full = leader.full.lock();
                // Who doesn't answer just now has no more room than before.
                full.retain(|member| answers.get(member) == Some(&None));
                full.extend(
                    answers.iter().filter(|(_, full)| **full == Some(true)).map(|(member, _)| *member),
                );
                !Group::of(&node.consensus.status()).has_room(&full)
            };
            match (leader.group_low.swap(low, Ordering::Relaxed), low) {
                (false, true) => {
                    tracing::error!(
                        "the disks of most metadata servers are nearly full: whatever needs more space fails \
                         with ENOSPC; enlarge the disks, or delete files"
                    );
                }
                (true, false) => {
                    tracing::info!("the disks of most metadata servers have enough free space again");
                }
                _ => {}
            }
        }
    }
}

/// Asks the others whether their disks are full; `None` for those who don't answer.
async fn ask(node: &Node) -> HashMap<MemberId, Option<bool>> {
    let status = node.consensus.status();
    let others = status.members.iter().filter(|(member, _)| **member != status.member);
    let asked = others.map(async |(member, peer)| {
        let member = MemberId(*member);
        (member, node.members.who(member, &peer.addr).await.map(|who| who.disk_full))
    });
    futures::future::join_all(asked).await.into_iter().collect()
}
