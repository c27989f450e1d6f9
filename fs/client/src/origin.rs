//! Which of the kernel's requests is being served, for operations whose outcomes a successor of this process has to know:
//! see [`arena`](crate::arena). It goes with the task that serves it, and with nothing that outlives the request.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};

struct Serving {
    request: u64,
    /// Kinds of operations that it has carried out, as bits.
    done: AtomicU32,
}

tokio::task_local! {
    static SERVING: Serving;
    /// The last order of the data that is being committed.
    static COMMITTING: u64;
}

/// Serves a request of the kernel's; 0: one that has no number.
pub(crate) async fn serving<T>(request: u64, served: impl Future<Output = T>) -> T {
    let serving = Serving { request, done: AtomicU32::new(0) };
    SERVING.scope(serving, served).await
}

/// Commits data that lies in the arena up to this order.
pub(crate) async fn committing<T>(order: u64, commit: impl Future<Output = T>) -> T {
    COMMITTING.scope(order, commit).await
}

/// The number of the request that is being served; 0 if it has none, or none is.
pub(crate) fn request() -> u64 {
    SERVING.try_with(|serving| serving.request).unwrap_or(0)
}

/// Whether the request carries out an operation of this kind (less than 32) for the first time since it came.
pub(crate) fn is_first(kind: u8) -> bool {
    let bit = 1 << kind;
    SERVING.try_with(|serving| serving.done.fetch_or(bit, Ordering::Relaxed) & bit == 0).unwrap_or(true)
}

/// The last order of the data that is being committed; 0 if none is.
pub(crate) fn order() -> u64 {
    COMMITTING.try_with(|order| *order).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_serves_a_request_knows_it_and_nothing_else_does() {
        assert_eq!((request(), order()), (0, 0));
        serving(7, async {
            tokio::task::yield_now().await;
            assert_eq!((request(), order()), (7, 0));
            committing(9, async { assert_eq!((request(), order()), (7, 9)) }).await;
            tokio::spawn(async { assert_eq!(request(), 0) }).await.unwrap();
        })
        .await;
        assert_eq!(request(), 0);
    }

    #[tokio::test]
    async fn a_request_knows_what_it_has_done_itself() {
        for _ in 0..2 {
            serving(7, async { assert!(is_first(1) && !is_first(1) && is_first(8)) }).await;
        }
        assert!(is_first(1) && is_first(1), "nothing is served");
    }
}
