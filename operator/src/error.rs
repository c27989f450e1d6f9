//! How the operator's own work can fail, and what that means for trying again.

use std::time::Duration;

/// How long a question to the API server may take.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// How long a change may take: webhooks may take 30 s for it.
const WRITE_DEADLINE: Duration = Duration::from_secs(35);

/// Why a reconcile didn't get to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server can't be reached, or refuses.
    #[error("can't {doing}: {source}")]
    Api {
        /// What was tried.
        doing: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server doesn't answer. Whether a change was made is unknown.
    #[error("can't {doing}: the API server doesn't respond within {} s", deadline.as_secs())]
    Deadline {
        /// What was tried.
        doing: String,
        /// For how long.
        deadline: Duration,
    },
    /// What was decided on isn't so any more.
    #[error("can't {doing}: the resource has changed meanwhile")]
    Stale {
        /// What was tried.
        doing: &'static str,
    },
    /// This operator may not act any more.
    #[error("the leader election lease could not be renewed")]
    NotLeading,
    /// The metadata service can't be reached, or refuses.
    #[error("can't {doing}: {reason}")]
    Metadata {
        /// What was tried.
        doing: &'static str,
        /// What came back.
        reason: String,
    },
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was decided on is out of date: look again at once.
    Stale,
    /// It passes.
    Passing,
    /// Somebody has to do something: rights, quota, admission, an object that the API server finds invalid.
    Refused,
}

/// Asks the API server something, and waits no longer than a question may take.
///
/// # Errors
/// What it says, or that it says nothing.
pub async fn call<T, E: Into<kube::Error>>(
    doing: impl Into<String>,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    within(READ_DEADLINE, doing, request).await
}

/// Has the API server change something, and waits no longer than that may take.
///
/// # Errors
/// What it says, or that it says nothing; then it may have made the change.
pub async fn change<T>(
    doing: impl Into<String>,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    within(WRITE_DEADLINE, doing, request).await
}

/// As [`call`], with a deadline of its own.
///
/// # Errors
/// As [`call`].
pub async fn within<T, E: Into<kube::Error>>(
    deadline: Duration,
    doing: impl Into<String>,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, request).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(Error::Api { doing: doing.into(), source: Box::new(error.into()) }),
        Err(_) => Err(Error::Deadline { doing: doing.into(), deadline }),
    }
}

impl Error {
    /// The API server has no such object.
    pub fn is_missing(&self) -> bool {
        match self {
            Error::Api { source, .. } => matches!(&**source, kube::Error::Api(status) if status.code == 404),
            Error::Deadline { .. } | Error::Stale { .. } | Error::NotLeading | Error::Metadata { .. } => {
                false
            }
        }
    }

    /// What kind of refusal it is.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Api { source, .. } => match &**source {
                kube::Error::Api(status) => match status.code {
                    404 | 409 | 410 => Kind::Stale,
                    400 | 401 | 403 | 405 | 406 | 413 | 415 | 422 => Kind::Refused,
                    _ => Kind::Passing,
                },
                _ => Kind::Passing,
            },
            Error::Stale { .. } => Kind::Stale,
            Error::Deadline { .. } | Error::NotLeading | Error::Metadata { .. } => Kind::Passing,
        }
    }

    /// The kind as a label of metrics.
    pub fn label(&self) -> &'static str {
        match self.kind() {
            Kind::Stale => "stale",
            Kind::Passing => "passing",
            Kind::Refused => "refused",
        }
    }

    /// How long to wait after this many failures in a row.
    pub fn pause(&self, failures: u32) -> Duration {
        let first = match self.kind() {
            Kind::Stale => Duration::from_millis(200),
            Kind::Passing => Duration::from_secs(1),
            Kind::Refused => Duration::from_secs(5),
        };
        (first * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(PAUSE_MAX)
    }
}

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16) -> Error {
        let status = Status { code, ..Status::default() };
        Error::Api { doing: "test".to_owned(), source: Box::new(kube::Error::Api(Box::new(status))) }
    }

    #[test]
    fn refusals_are_told_apart() {
        for (code, kind) in [
            (404, Kind::Stale),
            (409, Kind::Stale),
            (403, Kind::Refused),
            (422, Kind::Refused),
            (429, Kind::Passing),
            (500, Kind::Passing),
            (503, Kind::Passing),
        ] {
            assert_eq!(api(code).kind(), kind, "{code}");
        }
    }

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let pauses: Vec<u64> = (1..9).map(|failures| api(500).pause(failures).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(api(409).pause(1), Duration::from_millis(200));
        assert_eq!(api(403).pause(u32::MAX), PAUSE_MAX);
    }
}
