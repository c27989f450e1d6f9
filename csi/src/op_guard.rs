//! One operation at a time on each volume. A second one waits its turn for a while, and is then told to come again. The guard
//! lives as long as the work, which may be longer than the call that asked for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::{CsiError, Pending};

/// The volumes on which something is being done.
#[derive(Clone, Debug, Default)]
pub struct Operations(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    taken: Mutex<HashSet<String>>,
    freed: Notify,
    /// How long an operation waits for the one before it.
    queue: Duration,
}

/// Holds a volume until it is dropped.
#[derive(Debug)]
pub struct Guard {
    operations: Operations,
    key: String,
}

impl Operations {
    /// Operations that wait for so long for the one before them; otherwise they don't.
    #[must_use]
    pub fn queueing(queue: Duration) -> Operations {
        Operations(Arc::new(Shared { queue, ..Shared::default() }))
    }

    /// Takes a volume, at once or never.
    ///
    /// # Errors
    /// [`Pending::Busy`] if somebody has it.
    pub fn begin(&self, key: &str) -> Result<Guard, Pending> {
        if self.0.taken.lock().insert(key.to_owned()) {
            Ok(Guard { operations: self.clone(), key: key.to_owned() })
        } else {
            Err(Pending::Busy(key.to_owned()))
        }
    }

    /// How many are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.0.taken.lock().len()
    }

    /// Takes a volume as soon as it is free.
    async fn begin_before(&self, key: &str, deadline: Instant) -> Result<Guard, Pending> {
        loop {
            // Before it is looked at: nobody's end is missed in between.
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            match self.begin(key) {
                Err(busy) => {
                    if tokio::time::timeout_at(deadline, freed).await.is_err() {
                        return Err(busy);
                    }
                }
                taken => return taken,
            }
        }
    }

    /// Takes a volume, works on it in a task of its own and waits for that, for at most `limit`. Whoever called may go
    /// away or be late: the work is finished in any case, and meanwhile others are told that it is under way.
    ///
    /// # Errors
    /// The work's own, [`Pending::Busy`], and [`Pending::NotYet`] when it takes too long.
    pub async fn run<T: Send + 'static>(
        &self,
        key: &str,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, CsiError>> + Send + 'static,
    ) -> Result<T, CsiError> {
        let began = Instant::now();
        let guard = self.begin_before(key, began + self.0.queue.min(limit)).await?;
        let work = tokio::spawn(async move {
            let result = work.await;
            drop(guard);
            result
        });
        match tokio::time::timeout_at(began + limit, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(CsiError::Internal(format!("{what} of {key}: {error}"))),
            Err(_) => Err(Pending::NotYet(format!(
                "{what} of {key} takes longer than {} s and continues",
                limit.as_secs()
            ))
            .into()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.operations.0.taken.lock().remove(&self.key);
        self.operations.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_operation_is_refused_until_the_first_has_ended() {
        let operations = Operations::default();
        let first = operations.begin("v").unwrap();
        assert_eq!(operations.begin("v").unwrap_err(), Pending::Busy("v".into()));
        assert!(operations.begin("w").is_ok());
        drop(first);
        assert!(operations.begin("v").is_ok());
        assert_eq!(operations.under_way(), 0);
    }

    #[tokio::test]
    async fn work_goes_on_and_holds_its_volume_when_its_caller_is_late() {
        let operations = Operations::default();
        let (release, wait) = tokio::sync::oneshot::channel::<()>();
        let work = async move {
            let _ = wait.await;
            Ok(())
        };
        let late = operations.run("v", "staging", Duration::ZERO, work).await;
        assert!(matches!(late, Err(CsiError::Pending(Pending::NotYet(_)))), "{late:?}");
        let second = operations.run("v", "staging", Duration::ZERO, async { Ok(()) }).await;
        assert_eq!(second, Err(Pending::Busy("v".into()).into()));
        release.send(()).unwrap();
        while operations.under_way() > 0 {
            tokio::task::yield_now().await;
        }
        let done = operations.run("v", "staging", Duration::from_secs(60), async { Ok(7) }).await;
        assert_eq!(done, Ok(7));
    }

    #[tokio::test]
    async fn many_at_once_wait_their_turn() {
        let operations = Operations::queueing(Duration::from_secs(60));
        let at_once = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let one = || {
            let (operations, at_once) = (operations.clone(), Arc::clone(&at_once));
            let work = async move {
                use std::sync::atomic::Ordering::SeqCst;
                assert_eq!(at_once.fetch_add(1, SeqCst), 0, "one at a time");
                tokio::task::yield_now().await;
                at_once.fetch_sub(1, SeqCst);
                Ok(())
            };
            async move { operations.run("v", "publishing", Duration::from_secs(60), work).await }
        };
        let results = futures::future::join_all((0..50).map(|_| one())).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(operations.under_way(), 0);
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_volume_back() {
        let operations = Operations::default();
        let failed: Result<(), CsiError> =
            operations.run("v", "staging", Duration::from_secs(60), async { panic!("a mistake") }).await;
        assert!(matches!(failed, Err(CsiError::Internal(_))));
        assert_eq!(operations.under_way(), 0);
    }
}
