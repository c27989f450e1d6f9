//! Everything that an RPC can answer but success, and the one table from it to gRPC codes.
//!
//! What the code means to the caller decides what happens next. To external-provisioner only `ABORTED`,
//! `DEADLINE_EXCEEDED`, `UNAVAILABLE` and `CANCELLED` mean "it may still come to be": after any other answer it forgets the
//! volume if the PVC is deleted, and what was started would be left behind. So an RPC that has started something
//! returns [`Pending`], which can be nothing else.

use thiserror::Error;
use tonic::{Code, Status};

/// Why an RPC didn't succeed. The text is for people: kubelet and the sidecars show it as an event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsiError {
    /// A required field is empty.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field holds what can't be honoured.
    #[error("{0}")]
    Invalid(String),
    /// There is no such volume, or it isn't where the request says.
    #[error("{0}")]
    NotFound(String),
    /// There is one of that name or at that path, and it is another one.
    #[error("{0}")]
    Exists(String),
    /// The state of the volume or the node forbids it.
    #[error("{0}")]
    Precondition(String),
    /// The size can't be had.
    #[error("{0}")]
    OutOfRange(String),
    /// A limit of this node is reached.
    #[error("{0}")]
    Exhausted(String),
    /// It may still come to be: ask again.
    #[error(transparent)]
    Pending(#[from] Pending),
    /// A mistake of ours, or a system call that failed for no reason that we know.
    #[error("{0}")]
    Internal(String),
    /// Nobody should call this: the capabilities say so.
    #[error("this driver doesn't support {0}")]
    Unimplemented(&'static str),
}

/// It may still come to be, or may have been done: ask again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Pending {
    /// An earlier call for the same volume is still at work.
    #[error("an operation on volume {0} is in progress")]
    Busy(String),
    /// It was begun and isn't finished; the text says what it waits for.
    #[error("{0}")]
    NotYet(String),
    /// Another node has the volume, which is for one at a time.
    #[error("{0}")]
    Elsewhere(String),
    /// Somebody whom we need doesn't answer.
    #[error("{0}")]
    Unavailable(String),
    /// A list can't be continued from there: begin again.
    #[error("{0}")]
    Restart(String),
}

impl CsiError {
    /// The table.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            CsiError::Missing(_) | CsiError::Invalid(_) => Code::InvalidArgument,
            CsiError::NotFound(_) => Code::NotFound,
            CsiError::Exists(_) => Code::AlreadyExists,
            CsiError::Precondition(_) => Code::FailedPrecondition,
            CsiError::OutOfRange(_) => Code::OutOfRange,
            CsiError::Exhausted(_) => Code::ResourceExhausted,
            CsiError::Pending(
                Pending::Busy(_) | Pending::NotYet(_) | Pending::Elsewhere(_) | Pending::Restart(_),
            ) => Code::Aborted,
            CsiError::Pending(Pending::Unavailable(_)) => Code::Unavailable,
            CsiError::Internal(_) => Code::Internal,
            CsiError::Unimplemented(_) => Code::Unimplemented,
        }
    }
}

impl From<CsiError> for Status {
    fn from(error: CsiError) -> Status {
        Status::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes after which external-provisioner counts a volume as one that may exist.
    const MAY_EXIST: [Code; 3] = [Code::Aborted, Code::DeadlineExceeded, Code::Unavailable];

    #[test]
    fn what_is_pending_is_never_final_and_what_is_final_never_pending() {
        let text = || "why".to_owned();
        for pending in [
            Pending::Busy(text()),
            Pending::NotYet(text()),
            Pending::Elsewhere(text()),
            Pending::Unavailable(text()),
            Pending::Restart(text()),
        ] {
            assert!(MAY_EXIST.contains(&CsiError::from(pending).code()));
        }
        for error in [
            CsiError::Missing("name"),
            CsiError::Invalid(text()),
            CsiError::NotFound(text()),
            CsiError::Exists(text()),
            CsiError::Precondition(text()),
            CsiError::OutOfRange(text()),
            CsiError::Exhausted(text()),
            CsiError::Internal(text()),
            CsiError::Unimplemented("x"),
        ] {
            assert!(!MAY_EXIST.contains(&error.code()), "{error:?}");
        }
    }

    #[test]
    fn a_status_has_a_message_and_no_details() {
        let status = Status::from(CsiError::Missing("volume_id"));
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "volume_id is missing"));
        assert!(status.details().is_empty());
    }
}
