//! What goes on when nobody waits for it any more.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::runtime::Handle;

/// A future that is polled by whoever waits for it, without a task of its own; the runtime goes on with it if it is dropped
/// before it is done.
pub struct Detach<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// Absent once it is done.
    future: Option<Pin<Box<F>>>,
    runtime: Handle,
}

impl<F> Detach<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// `runtime` is the one that goes on with it.
    pub fn new(future: F, runtime: Handle) -> Self {
        Detach { future: Some(Box::pin(future)), runtime }
    }
}

impl<F> std::fmt::Debug for Detach<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detach").field("is_done", &self.future.is_none()).finish_non_exhaustive()
    }
}

impl<F> Future for Detach<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Polled after its end, as no future may be: it never ends a second time.
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let output = ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<F> Drop for Detach<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.runtime.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_ends_where_it_is_awaited_or_else_in_the_runtime() {
        assert_eq!(Detach::new(async { 7 }, Handle::current()).await, 7);

        let (answer, answered) = oneshot::channel::<u32>();
        let (end, ended) = oneshot::channel();
        let waiting = async move {
            let _ = end.send(answered.await.unwrap());
        };
        let mut waiting = Detach::new(waiting, Handle::current());
        assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(waiting);
        answer.send(8).unwrap();
        assert_eq!(ended.await, Ok(8));
    }
}
