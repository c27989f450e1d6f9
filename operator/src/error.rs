//! How the operator's own work can fail, and what that means for trying again.

use std::time::Duration;

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

impl Error {
    /// Wraps what the API server said.
    pub fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Api { doing, source: Box::new(source) }
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
            Error::Metadata { .. } => Kind::Passing,
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
        Error::api("test")(kube::Error::Api(Box::new(status)))
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
