//! What mount hosts, the node plugin and the holder tell each other. The holder may be older or newer than the others by any
//! number of releases, since it is hardly ever replaced: messages are only added, and one that isn't known is ignored.

use serde::{Deserialize, Serialize};

/// To the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "camelCase")]
pub enum ToHolder {
    /// A mount host is there.
    #[serde(rename_all = "camelCase")]
    Hello {
        /// When it was started (milliseconds of the machine's boot time).
        started_ms: u64,
        /// It leads, and keeps its mounts itself so far: each follows in a [`Keep`](ToHolder::Keep).
        leading: bool,
    },
    /// Keep a mount, in the place of what was kept of the volume before; descriptors come along. Answered by
    /// [`FromHolder::Kept`].
    Keep {
        /// The volume's handle.
        volume: String,
        /// What the descriptors are, for who takes them (see [`record`](super::record)).
        record: String,
        /// How many come along.
        descriptors: usize,
    },
    /// Close the descriptors of a volume's mount: its client has ended for good.
    Forget {
        /// The volume's handle.
        volume: String,
    },
    /// Give the mount host all mounts. Answered by [`FromHolder::Mount`]s and a [`FromHolder::Taken`].
    Take {
        /// It has the lock, and leads from then on; otherwise it prepares for that.
        lead: bool,
    },
    /// The mount host leads no more. Answered by [`FromHolder::Left`], after which it ends its clients and has no mounts.
    Yielded,
    /// The mount host can't serve the mounts: another one is to lead if there is one.
    Unfit,
    /// Is a volume's mount kept? Answered by [`FromHolder::Has`].
    Has {
        /// The volume's handle.
        volume: String,
    },
    /// What a later release may say.
    #[serde(other)]
    Unknown,
}

/// From the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "camelCase")]
pub enum FromHolder {
    /// Who is to lead: said at first, and when it changes.
    Turn {
        /// Whoever hears it.
        yours: bool,
        /// How many other mount hosts there are.
        others: usize,
    },
    /// A mount is kept.
    Kept {
        /// The volume's handle.
        volume: String,
    },
    /// A mount isn't kept.
    Refused {
        /// The volume's handle.
        volume: String,
        /// Why.
        message: String,
    },
    /// A mount, with its descriptors.
    Mount {
        /// The volume's handle.
        volume: String,
        /// What they are.
        record: String,
        /// How many come along.
        descriptors: usize,
    },
    /// All mounts were sent.
    Taken {
        /// How many.
        mounts: usize,
    },
    /// Nobody leads.
    Left,
    /// Whether the mount is kept.
    Has {
        /// It is.
        held: bool,
    },
    /// What a later release may say.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_release_says_is_known_as_unknown() {
        let later = r#"{"say": "defrost", "volume": "v1/a/b", "degrees": 7}"#;
        assert_eq!(serde_json::from_str::<ToHolder>(later).unwrap(), ToHolder::Unknown);
        assert_eq!(serde_json::from_str::<FromHolder>(later).unwrap(), FromHolder::Unknown);
        let more = r#"{"say": "hello", "startedMs": 5, "leading": true, "colour": "red"}"#;
        let hello = ToHolder::Hello { started_ms: 5, leading: true };
        assert_eq!(serde_json::from_str::<ToHolder>(more).unwrap(), hello);
        let take = ToHolder::Take { lead: true };
        assert_eq!(serde_json::to_string(&take).unwrap(), r#"{"say":"take","lead":true}"#);
    }
}
