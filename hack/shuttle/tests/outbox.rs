//! Who calls writes itself if nobody else does: all is written once, in each caller's order, and nothing is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};

use atoll_shuttle::frame::OutFrame;
use atoll_shuttle::outbox::Outbox;
use atoll_shuttle::secure::Sink;
use shuttle::{future, thread};

/// Frames that each caller sends.
const FRAMES: u32 = 2;

#[test]
fn all_is_written_once_and_in_the_order_of_its_caller() {
    common::check(|| {
        let written = Arc::new(Mutex::new(Vec::new()));
        let outbox = Arc::new(Outbox::new(Sink::new(written.clone())));
        let running = outbox.clone();
        let writer = future::spawn(async move { running.run().await });
        let callers: Vec<_> = (0..3)
            .map(|caller| {
                let outbox = outbox.clone();
                thread::spawn(move || {
                    for number in 0..FRAMES {
                        assert!(outbox.queue(OutFrame { caller, number }));
                        // A call alone is written here; what has company is the writer task's.
                        if caller == 0 {
                            outbox.wake();
                        } else {
                            outbox.flush().unwrap();
                        }
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        future::block_on(outbox.drained());
        assert_eq!(outbox.queued_bytes(), 0);
        let written = written.lock().unwrap().clone();
        for caller in 0..3 {
            let of_one: Vec<u32> =
                written.iter().filter(|frame| frame.caller == caller).map(|frame| frame.number).collect();
            assert_eq!(of_one, (0..FRAMES).collect::<Vec<_>>());
        }
        outbox.close();
        assert!(!outbox.queue(OutFrame { caller: 0, number: 9 }));
        writer.abort();
    });
}

#[test]
fn what_is_queued_is_written_though_nobody_waits_for_it() {
    common::check(|| {
        let written = Arc::new(Mutex::new(Vec::new()));
        let outbox = Arc::new(Outbox::new(Sink::new(written.clone())));
        let running = outbox.clone();
        let writer = future::spawn(async move { running.run().await });
        let callers: Vec<_> = (1..3)
            .map(|caller| {
                let outbox = outbox.clone();
                thread::spawn(move || {
                    for number in 0..FRAMES {
                        assert!(outbox.queue(OutFrame { caller, number }));
                        outbox.flush().unwrap();
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        // Who wrote went on with what was queued meanwhile, or woke the writer: else this would never end.
        while written.lock().unwrap().len() < 2 * FRAMES as usize {
            thread::yield_now();
        }
        writer.abort();
    });
}
