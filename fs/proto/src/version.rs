//! The protocol's changelog, and the two numbers that two peers compare before they say anything else.
//!
//! The *protocol version* is the framing, the handshake and the encoding of messages. Two peers use the
//! highest version that both speak. The *feature level* is what a cluster has switched on: a message or a
//! field of a level is used only when every member of the cluster knows it.
//!
//! A release understands one release more and one less, so that a rolling upgrade never has two
//! processes that can't talk to each other.
//!
//! # Changelog
//!
//! | protocol | feature level | what came |
//! | --- | --- | --- |
//! | 1 | 1 | a process that succeeds another one asks what its session has ([`AdoptSession`](crate::queries::AdoptSession)): a leader before this can't answer that question |
//! | 1 | 1 | the feature level can be raised ([`RaiseFeatureLevel`](crate::admin::RaiseFeatureLevel)), after which peers that don't know it are refused. A status ends with the level and with what keeps it from being raised (`ClusterStatus::feature_level`, `feature_level_max`, `behind`), which may be missing |
//! | 1 | 1 | a status ends with how many chunks have how many replicas, and how many name which storage server (`ClusterStatus::chunks_by_replicas`, `chunks_naming`); both may be missing |
//! | 1 | 1 | the volume's size can be changed ([`ResizeVolume`](crate::admin::ResizeVolume)): a leader before this answers that it doesn't know the message. A status ends with the budget of inline data (`ClusterStatus::inline_budget_bytes`), which may be missing |
//! | 1 | 1 | locks are changed by a question ([`ChangeLocks`](crate::queries::ChangeLocks)) and told to a new leader (`ReclaimRequest::locks`, which may be missing). A leader before this can't answer that question. To one after this, mutations that take locks are refused (`ENOLCK`), and those that let go of what such a mutation has taken are carried out |
//! | 1 | 1 | a reader of a chunk may say that it verifies what it gets (`ReadChunk::reader_verifies`): a byte at the message's end, as the one below |
//! | 1 | 1 | a mutation may say that it opens the file that it makes (`MutateRequest::opens`): a byte at the message's end, which may be missing and is read over by who doesn't know it |
//! | 1 | 1 | frames of 24-byte headers, plain hello, `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, postcard messages: metadata, storage, registration |

use std::fmt;

/// The highest feature level that this build knows.
pub use atoll_core::limits::FEATURE_LEVEL;

/// The oldest protocol version that this build speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol version that this build speaks.
pub const PROTOCOL_MAX: u16 = 1;

/// The protocol versions that a peer speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolRange {
    /// The oldest version.
    pub min: u16,
    /// The newest version.
    pub max: u16,
}

impl ProtocolRange {
    /// What this build speaks.
    pub const OURS: ProtocolRange = ProtocolRange { min: PROTOCOL_MIN, max: PROTOCOL_MAX };

    /// The highest version that both speak, if there is one.
    pub fn agree(self, other: ProtocolRange) -> Option<u16> {
        let chosen = self.max.min(other.max);
        (chosen >= self.min && chosen >= other.min).then_some(chosen)
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        let ours = ProtocolRange { min: 2, max: 4 };
        assert_eq!(ours.agree(ProtocolRange { min: 3, max: 9 }), Some(4));
        assert_eq!(ours.agree(ProtocolRange { min: 1, max: 2 }), Some(2));
        assert_eq!(ours.agree(ProtocolRange { min: 5, max: 6 }), None);
        assert_eq!(ours.agree(ProtocolRange { min: 0, max: 1 }), None);
    }
}
