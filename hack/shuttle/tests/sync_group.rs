//! Whoever is told that its bytes are durable, they are; and nobody waits for ever.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_shuttle::sync_group::{SyncFailed, SyncGroup, Ticket};
use shuttle::{future, thread};

/// A file's bytes, in memory and on the disk.
#[derive(Default)]
struct File {
    written: AtomicU64,
    durable: AtomicU64,
    syncs: AtomicU64,
    group: SyncGroup,
}

impl File {
    fn sync(&self, fails: bool) -> Result<(), ()> {
        assert_eq!(self.syncs.fetch_add(1, Ordering::SeqCst), 0, "two syncs at a time");
        let covered = self.written.load(Ordering::SeqCst);
        thread::yield_now();
        if !fails {
            self.durable.store(covered, Ordering::SeqCst);
        }
        self.syncs.fetch_sub(1, Ordering::SeqCst);
        if fails { Err(()) } else { Ok(()) }
    }

    /// Writes, and waits until that is durable.
    fn write(&self, fails: bool) -> Result<u64, SyncFailed> {
        let mine = self.written.fetch_add(1, Ordering::SeqCst) + 1;
        let ticket = self.group.ask();
        if let Ticket::Lead(_) = ticket {
            while self.group.lead(|| self.sync(fails)) {}
        }
        future::block_on(self.group.wait(ticket)).map(|()| mine)
    }
}

#[test]
fn what_is_said_to_be_durable_is() {
    common::check(|| {
        let file = Arc::new(File::default());
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let file = file.clone();
                thread::spawn(move || {
                    for _ in 0..2 {
                        let mine = file.write(false).unwrap();
                        assert!(file.durable.load(Ordering::SeqCst) >= mine);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}

#[test]
fn nobody_waits_for_ever_when_syncs_fail() {
    common::check(|| {
        let file = Arc::new(File::default());
        let writers: Vec<_> = (0..3)
            .map(|number| {
                let file = file.clone();
                thread::spawn(move || {
                    if let Ok(mine) = file.write(number == 1) {
                        assert!(file.durable.load(Ordering::SeqCst) >= mine);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
}
