//! Messages of the check of a whole volume (kind 0x118): started at the leader, then asked about until it is done.

use atoll_core::check::Kind;
use serde::{Deserialize, Serialize};

use crate::rpc::rpcs;

/// Starts a check, or asks how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsckRequest {
    /// Begins one. Nothing is written unless it is asked for.
    Start {
        /// What is to be repaired.
        repair: Vec<Kind>,
        /// Storage servers are to read and verify every block of their sealed replicas.
        data: bool,
    },
    /// How is it?
    Look {
        /// The number that [`Start`](Self::Start) was answered with.
        run: u64,
    },
}

/// What became of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is as it was found.
    Left,
    /// It was repaired.
    Repaired,
    /// It was to be repaired, and couldn't be.
    Refused,
}

/// A finding as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownFinding {
    /// Of which kind.
    pub kind: Kind,
    /// In words.
    pub words: String,
    /// The path that it is about, if there is one.
    pub path: Option<String>,
    /// What became of it.
    pub fate: Fate,
}

/// How a check is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckReply {
    /// Its number.
    pub run: u64,
    /// How often the whole volume was gone through, this time included.
    pub round: u32,
    /// The kind of record that is looked at.
    pub stage: String,
    /// Records that were looked at in this round.
    pub looked: u64,
    /// Things wrong that were found in this round.
    pub found: u64,
    /// It is over.
    pub done: bool,
    /// Why it ended before its time.
    pub failed: Option<String>,
    /// When it is done: what was found, as far as there is room.
    pub findings: Vec<ShownFinding>,
    /// How many were repaired.
    pub repaired: u64,
    /// How many are left.
    pub left: u64,
}

rpcs! {
    FsckRequest => FsckReply, 0x118;
}
