//! What the node plugin and the mount host tell each other. Both are of one release, or of two that follow each other: new
//! fields have defaults.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::mount_flags::MountFlags;

/// A cluster's key. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// From its hexadecimal digits.
    #[must_use]
    pub fn new(digits: String) -> Key {
        Key(digits)
    }

    /// To be sent to a client process.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// From the node plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
pub enum Request {
    /// Start a client; answered by [`Reply::Connected`], after which a bundle is to come.
    Start(Start),
    /// Tell when a volume's client has ended.
    Ended {
        /// The volume's handle.
        volume: String,
        /// How long to wait for it (milliseconds).
        wait_ms: u64,
    },
    /// List the clients.
    List,
}

/// A client that shall be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// The volume's handle.
    pub volume: String,
    /// Its cluster's id.
    pub cluster: String,
    /// Its cluster's key.
    pub key: Key,
    /// Connections are encrypted.
    #[serde(default)]
    pub encrypt: bool,
    /// Addresses of its metadata servers.
    pub metadata: Vec<String>,
    /// This node's name.
    pub node: String,
    /// How it is mounted.
    #[serde(default)]
    pub flags: MountFlags,
}

/// From the mount host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Reply {
    /// The client has its session: mount, and send the bundle.
    Connected,
    /// The client serves the mount.
    Serving,
    /// The client won't serve.
    Failed {
        /// Why: see [`Failure`].
        failure: Failure,
        /// In words.
        message: String,
    },
    /// The volume has a client here already.
    Busy {
        /// What it does.
        state: ClientState,
    },
    /// There are as many clients as there may be, or as have memory.
    Full {
        /// How many.
        clients: usize,
        /// Why no more, if it isn't their number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// The volume has no client here.
    Ended,
    /// It has one still.
    Running {
        /// What it does.
        state: ClientState,
    },
    /// The clients.
    Clients {
        /// Each.
        clients: Vec<ClientInfo>,
        /// This mount host serves the node's mounts.
        #[serde(default = "yes")]
        leading: bool,
    },
    /// Another mount host of the node has the word about its mounts, or none has it at the moment.
    NotLeading,
}

fn yes() -> bool {
    true
}

/// Why a client won't serve, as its exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// The cluster can't be reached, or not in time.
    Unreachable,
    /// The cluster won't have it: another id, another key.
    Refused,
    /// Another node has the volume, which is for one at a time.
    Taken,
    /// Anything else.
    Other,
}

impl Failure {
    /// From an exit code of `atoll-fs`.
    #[must_use]
    pub fn from_exit_code(code: i32) -> Failure {
        match code {
            4 => Failure::Refused,
            5 => Failure::Unreachable,
            7 => Failure::Taken,
            _ => Failure::Other,
        }
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientState {
    /// It opens its session, or waits for its mount.
    Starting,
    /// It serves its mount.
    Serving,
    /// It was told to end.
    Ending,
}

impl fmt::Display for ClientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientState::Starting => "starting",
            ClientState::Serving => "serving",
            ClientState::Ending => "ending",
        })
    }
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientInfo {
    /// The volume's handle.
    pub volume: String,
    /// Its process id, in the mount host's pod.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// What it does.
    pub state: ClientState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let start = Start {
            volume: "v1/a/b".into(),
            cluster: "00".into(),
            key: Key::new("5ec4e7".into()),
            encrypt: false,
            metadata: vec!["host:1".into()],
            node: "node".into(),
            flags: MountFlags::default(),
        };
        assert!(!format!("{:?}", Request::Start(start.clone())).contains("5ec4e7"));
        let sent = serde_json::to_string(&Request::Start(start.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&sent).unwrap(), Request::Start(start));
    }

    #[test]
    fn exit_codes_are_those_of_the_client() {
        let all = [1, 3, 4, 5, 7, 101].map(Failure::from_exit_code);
        use Failure::{Other, Refused, Taken, Unreachable};
        assert_eq!(all, [Other, Other, Refused, Unreachable, Taken, Other]);
    }
}
