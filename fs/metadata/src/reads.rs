//! Where reads of the records are done that may take long.
//!
//! A read blocks its thread, and on a thread that tokio's tasks run on everything else waits for it, Raft's heartbeats
//! included. So whatever goes through many records, or as many as somebody asks for, is read on tokio's blocking threads;
//! how many at once is bounded here, in lanes, so that nothing in the background takes the place of a request.
//!
//! Point lookups, and a scan that ends after a few records, stay where they are: going elsewhere costs about what they do.
//! Measured with a million chunk records in a [`Records`](crate::store::records::Records), on two busy cores: a lookup takes
//! 5 µs among a hundred records and 12 µs among all (of a hundred one takes 47 µs or more), so dozens of them stay below a
//! millisecond; a scan takes 3 ms for the 4096 records of a worker's step and 145 ms for 200,000.
//!
//! Apply reads where Raft runs it, which is one of those threads: an entry waits for the one before it anyway. What clients
//! request reads as much as its message is long. What the leader proposes in the background may read more, and apply tells the
//! runtime so, which takes 27 µs and has everything else continue on another thread: sweeping one chunk to which 16,384 files
//! of a block refer takes 55 ms, and the sixteen of one entry 785 ms.

use std::sync::Arc;

use atoll_proto::metadata::MetadataError;
use tokio::sync::Semaphore;

/// Reads for requests that run at once; more wait.
const REQUESTS_MAX: usize = 8;
/// Reads of workers and checks that run at once; more wait.
const BACKGROUND_MAX: usize = 2;

/// Which bound a read counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// A client or a storage server waits for it.
    Request,
    /// A worker, a check, or a person waits for it.
    Background,
}

/// Bounded access to the blocking threads.
#[derive(Debug)]
pub(crate) struct Reads {
    requests: Arc<Semaphore>,
    background: Arc<Semaphore>,
}

impl Default for Reads {
    fn default() -> Reads {
        Reads {
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            background: Arc::new(Semaphore::new(BACKGROUND_MAX)),
        }
    }
}

impl Reads {
    /// Reads when there is a place for it. It runs to its end, and keeps its place until then, even if nobody waits for it any
    /// more.
    ///
    /// # Errors
    /// If the server is stopping.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, MetadataError> {
        let lane = match lane {
            Lane::Request => &self.requests,
            Lane::Background => &self.background,
        };
        let stopped = || MetadataError::Failed("the server is stopping".into());
        let place = lane.clone().acquire_owned().await.map_err(|_| stopped())?;
        let read = atoll_blocking::spawn(move || {
            let read = read();
            drop(place);
            read
        });
        read.await.map_err(|_| stopped())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn reads_in_the_background_wait_for_each_other_and_no_request_waits_for_them() {
        let reads = Arc::new(Reads::default());
        let (begun, beginnings) = mpsc::channel();
        let (go_on, held) = mpsc::channel::<()>();
        let held = Arc::new(parking_lot::Mutex::new(held));
        let waiting: Vec<_> = (0..=BACKGROUND_MAX)
            .map(|_| {
                let (reads, begun, held) = (reads.clone(), begun.clone(), held.clone());
                tokio::spawn(async move {
                    let read = move || {
                        begun.send(()).unwrap();
                        held.lock().recv().unwrap();
                    };
                    reads.run(Lane::Background, read).await
                })
            })
            .collect();
        while reads.background.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reads.run(Lane::Request, || 7).await, Ok(7));
        // Nobody waits for these any more; they keep their places.
        for read in waiting {
            read.abort();
            assert!(read.await.unwrap_err().is_cancelled());
        }
        assert_eq!(reads.background.available_permits(), 0);
        for _ in 0..BACKGROUND_MAX {
            beginnings.recv().unwrap();
            go_on.send(()).unwrap();
        }
        while reads.background.available_permits() < BACKGROUND_MAX {
            tokio::task::yield_now().await;
        }
        assert!(beginnings.try_recv().is_err(), "given up before it had a place");
    }
}
