//! Typed calls on top of frames: which message has which number, and how a call can fail.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use crate::frame::{FRAME_BYTES_MAX, FrameError};
use crate::status::{Status, StatusCode};

/// The first kind of the messages to the metadata service: of clients, tools and its own members (0x100 … 0x1ff).
pub const KINDS_METADATA: u16 = 0x100;
/// The first kind of the messages to storage servers (0x200 … 0x2ff).
pub const KINDS_STORAGE: u16 = 0x200;
/// The first kind of the messages from storage servers to the metadata service (0x300 … 0x3ff).
pub const KINDS_REGISTRATION: u16 = 0x300;
/// A request and its reply. One-way messages and pushes use it too; their reply is `()`.
pub trait Rpc {
    /// The number that names the message on the wire.
    const KIND: u16;
    /// What is asked. Chunk data and other bulk travels beside it, in the body.
    type Request: Serialize + DeserializeOwned + Send;
    /// What is answered.
    type Reply: Serialize + DeserializeOwned + Send;
}

/// Messages that are their own request: `Request => Reply, KIND;` each.
macro_rules! rpcs {
    ($($request:ty => $reply:ty, $kind:expr;)*) => {
        $(impl $crate::rpc::Rpc for $request {
            const KIND: u16 = $kind;
            type Request = $request;
            type Reply = $reply;
        })*
    };
}
pub(crate) use rpcs;

/// Why a call has no reply. The distinction that matters: was it carried out or not?
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// The server answered with a refusal.
    #[error("refused: {0}")]
    Refused(Status),
    /// The request never reached a server that would carry it out: it may be repeated, anywhere.
    #[error("not sent: {reason}")]
    NotSent {
        /// What happened.
        reason: String,
    },
    /// The request was sent and the connection was lost, or the deadline passed: it may have been carried out,
    /// now or later.
    #[error("sent, but the outcome is unknown: {reason}")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
    /// The request can't be sent as it is: beyond a limit, or not encodable. Don't repeat it.
    #[error("the request can't be sent: {reason}")]
    Unsendable {
        /// What is wrong with it.
        reason: String,
    },
    /// The reply can't be decoded. The request was carried out.
    #[error("the reply to message {kind:#06x} is invalid: {reason}")]
    BadReply {
        /// The message's kind.
        kind: u16,
        /// What the codec says.
        reason: String,
    },
}

impl RpcError {
    /// The service's typed error, if the server refused with one.
    pub fn typed<E: DeserializeOwned>(&self) -> Option<E> {
        match self {
            RpcError::Refused(status) => status.typed(),
            _ => None,
        }
    }

    /// Whether the request is known not to have been carried out and might be if it is repeated.
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            RpcError::NotSent { .. } => true,
            RpcError::Refused(status) => {
                matches!(status.code, StatusCode::Unavailable | StatusCode::Busy | StatusCode::ShuttingDown)
            }
            RpcError::OutcomeUnknown { .. } | RpcError::Unsendable { .. } | RpcError::BadReply { .. } => {
                false
            }
        }
    }

    /// Whether the way to the server is what failed (as opposed to the server's answer).
    pub fn is_transport(&self) -> bool {
        matches!(self, RpcError::NotSent { .. } | RpcError::OutcomeUnknown { .. })
    }

    pub(crate) fn not_sent(reason: impl fmt::Display) -> RpcError {
        RpcError::NotSent { reason: reason.to_string() }
    }

    pub(crate) fn deadline(after: Duration, sent: bool) -> RpcError {
        let reason = format!("no reply within {} ms", after.as_millis());
        if sent { RpcError::OutcomeUnknown { reason } } else { RpcError::NotSent { reason } }
    }

    pub(crate) fn unsendable(error: FrameError) -> RpcError {
        RpcError::Unsendable { reason: format!("{error} (a frame has at most {FRAME_BYTES_MAX} bytes)") }
    }
}
