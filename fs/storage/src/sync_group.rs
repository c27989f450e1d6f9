//! Many callers, one `fdatasync`.
//!
//! Whoever asks while none is running leads one; whoever asks meanwhile waits for the next, which is led as soon as
//! the first is done and covers all of them. So a caller waits for two at most, and the disk sees one at a time
//! per file however many callers there are.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The callers of one file.
#[derive(Debug, Default)]
pub struct SyncGroup {
    state: Mutex<State>,
    done: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Tickets given out.
    asked: u64,
    /// Tickets whose bytes are durable.
    done: u64,
    /// Somebody leads, or is bound to.
    leading: bool,
    /// A sync failed. What is on the disk is unknown from then on, so every further ticket fails too.
    failed: bool,
}

/// A caller's place in the group.
#[derive(Debug, PartialEq, Eq)]
pub enum Ticket {
    /// The caller has to call [`SyncGroup::lead`], and then to wait.
    Lead(u64),
    /// Somebody leads already.
    Wait(u64),
}

impl Ticket {
    fn number(&self) -> u64 {
        match self {
            Self::Lead(number) | Self::Wait(number) => *number,
        }
    }
}

/// The sync that covered a ticket failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sync failed")]
pub struct SyncFailed;

impl SyncGroup {
    /// Asks for all that was written before this call. Doesn't block.
    pub fn ask(&self) -> Ticket {
        let mut state = self.state.lock();
        state.asked += 1;
        let number = state.asked;
        if std::mem::replace(&mut state.leading, true) { Ticket::Wait(number) } else { Ticket::Lead(number) }
    }

    /// Runs one sync for all who have asked so far. Returns whether others asked meanwhile: then the caller
    /// still leads, and must see to it that this is called again.
    #[must_use]
    pub fn lead<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> bool {
        let covered = self.state.lock().asked;
        let result = sync();
        let mut state = self.state.lock();
        match result {
            Ok(()) => state.done = covered,
            Err(_) => state.failed = true,
        }
        // After a failure nobody needs another: all fail.
        state.leading = !state.failed && state.asked > state.done;
        let more = state.leading;
        drop(state);
        self.done.notify_waiters();
        more
    }

    /// Waits until the ticket's bytes are durable.
    pub async fn wait(&self, ticket: Ticket) -> Result<(), SyncFailed> {
        loop {
            let notified = self.done.notified();
            tokio::pin!(notified);
            // Registers before looking, so that a sync that ends in between isn't missed.
            notified.as_mut().enable();
            {
                let state = self.state.lock();
                if state.done >= ticket.number() {
                    return Ok(());
                }
                if state.failed {
                    return Err(SyncFailed);
                }
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_during_a_sync_waits_for_the_next() {
        let group = SyncGroup::default();
        let first = group.ask();
        assert_eq!(first, Ticket::Lead(1));
        let mut late = Vec::new();
        let more = group.lead(|| {
            late.push(group.ask());
            late.push(group.ask());
            Ok::<_, ()>(())
        });
        assert_eq!(late, vec![Ticket::Wait(2), Ticket::Wait(3)]);
        assert!(more, "the leader has to go on");
        group.wait(first).await.unwrap();
        let mut late = late.into_iter();
        let waiting = group.wait(late.next().unwrap());
        tokio::pin!(waiting);
        assert!(futures_poll(waiting.as_mut()).await.is_none());
        assert!(!group.lead(|| Ok::<_, ()>(())));
        waiting.await.unwrap();
        group.wait(late.next().unwrap()).await.unwrap();
        assert!(matches!(group.ask(), Ticket::Lead(4)));
    }

    #[tokio::test]
    async fn a_failure_fails_all_who_wait_and_all_who_come() {
        let group = SyncGroup::default();
        let first = group.ask();
        assert!(!group.lead(|| Ok::<_, ()>(())));
        let (second, third) = (group.ask(), group.ask());
        assert!(!group.lead(|| Err(())));
        group.wait(first).await.unwrap();
        assert_eq!(group.wait(second).await, Err(SyncFailed));
        assert_eq!(group.wait(third).await, Err(SyncFailed));
        let later = group.ask();
        assert_eq!(group.wait(later).await, Err(SyncFailed));
    }

    async fn futures_poll<F: Future + Unpin>(future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
