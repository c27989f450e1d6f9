//! What a server answers instead of a reply.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest message of a [`Status`], in bytes; longer ones are cut.
pub const STATUS_MESSAGE_BYTES_MAX: usize = 4096;

/// Why a request was refused, by what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StatusCode {
    /// The service's own typed error is in [`Status::detail`].
    Service,
    /// The request can't be understood (malformed, or its values make no sense). Don't repeat it.
    BadRequest,
    /// This server doesn't know this kind of message. Don't repeat it here.
    UnknownKind,
    /// The caller's role may not do this. Don't repeat it.
    Forbidden,
    /// The server can't do it now and did nothing. Repeat it later, or elsewhere.
    Unavailable,
    /// A limit is reached and nothing was done. Repeat it later.
    Busy,
    /// The server is going away and did nothing. Repeat it elsewhere.
    ShuttingDown,
    /// The peer broke the protocol; the connection is closed with this.
    Protocol,
    /// A failure inside the server; whether anything was done is not known.
    Internal,
}

/// A refusal that came from the remote side, as opposed to a failure to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code:?})")]
pub struct Status {
    /// What kind of refusal.
    pub code: StatusCode,
    /// For a human who reads a log.
    pub message: String,
    /// The service's typed error (postcard), when `code` is [`StatusCode::Service`]; else empty.
    pub detail: Bytes,
}

impl Status {
    /// A refusal without a typed error.
    pub fn new(code: StatusCode, message: impl Into<String>) -> Status {
        let mut message = message.into();
        if message.len() > STATUS_MESSAGE_BYTES_MAX {
            let mut cut = STATUS_MESSAGE_BYTES_MAX;
            while !message.is_char_boundary(cut) {
                cut -= 1;
            }
            message.truncate(cut);
        }
        Status { code, message, detail: Bytes::new() }
    }

    /// A refusal that carries a service's typed error.
    pub fn service<E: Serialize + std::fmt::Display>(error: &E) -> Status {
        match postcard::to_allocvec(error) {
            Ok(detail) => {
                Status { detail: detail.into(), ..Status::new(StatusCode::Service, error.to_string()) }
            }
            Err(encoding) => Status::internal(format!("{error} (and its encoding failed: {encoding})")),
        }
    }

    /// The service's typed error, if this carries one and it can be read as an `E`.
    pub fn typed<E: DeserializeOwned>(&self) -> Option<E> {
        (self.code == StatusCode::Service).then(|| postcard::from_bytes(&self.detail).ok()).flatten()
    }

    /// [`StatusCode::BadRequest`].
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(StatusCode::BadRequest, message)
    }

    /// [`StatusCode::UnknownKind`].
    pub fn unknown_kind(kind: u16) -> Status {
        Status::new(StatusCode::UnknownKind, format!("unknown message kind {kind:#06x}"))
    }

    /// [`StatusCode::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Status {
        Status::new(StatusCode::Unavailable, message)
    }

    /// [`StatusCode::Internal`].
    pub fn internal(message: impl Into<String>) -> Status {
        Status::new(StatusCode::Internal, message)
    }

    /// Whether the server is known to have done nothing, so that the request may be repeated as it is.
    pub fn nothing_was_done(&self) -> bool {
        match self.code {
            StatusCode::BadRequest
            | StatusCode::UnknownKind
            | StatusCode::Forbidden
            | StatusCode::Unavailable
            | StatusCode::Busy
            | StatusCode::ShuttingDown => true,
            StatusCode::Service | StatusCode::Protocol | StatusCode::Internal => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
    #[error("too much by {by}")]
    struct TooMuch {
        by: u64,
    }

    #[test]
    fn a_typed_error_survives_the_trip() {
        let sent = Status::service(&TooMuch { by: 7 });
        let bytes = postcard::to_allocvec(&sent).expect("encodes");
        let got: Status = postcard::from_bytes(&bytes).expect("decodes");
        assert_eq!(got, sent);
        assert_eq!(got.typed::<TooMuch>(), Some(TooMuch { by: 7 }));
        assert_eq!(got.message, "too much by 7");
        assert_eq!(Status::internal("x").typed::<TooMuch>(), None);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let status = Status::internal("ä".repeat(STATUS_MESSAGE_BYTES_MAX));
        assert!(status.message.len() <= STATUS_MESSAGE_BYTES_MAX);
        assert!(status.message.ends_with('ä'));
    }
}
