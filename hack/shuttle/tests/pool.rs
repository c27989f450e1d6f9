//! No slot and no buffer is given out twice, and whoever waits for one gets it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_shuttle::slots::{Layout, Pool};
use shuttle::thread;

const SLOTS: u32 = 3;
const BUFFERS: u32 = 4;
/// All but two of the buffers are the readers' own.
const READERS: u32 = 2;

/// Slots and buffers that somebody has.
#[derive(Default)]
struct Taken {
    slots: [AtomicBool; SLOTS as usize],
    buffers: [AtomicBool; BUFFERS as usize],
}

fn take(place: &AtomicBool) {
    assert!(!place.swap(true, Ordering::SeqCst), "given out twice");
}

fn free(place: &AtomicBool) {
    assert!(place.swap(false, Ordering::SeqCst), "freed twice");
}

/// Three readers, each of which serves two requests.
fn serve(slots: u32) {
    common::check(move || {
        let pool = Arc::new(Pool::new(Layout { slots, buffers: BUFFERS }, READERS));
        let taken = Arc::new(Taken::default());
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (pool, taken) = (pool.clone(), taken.clone());
                thread::spawn(move || {
                    for _ in 0..2 {
                        let slot = pool.take_slot().unwrap();
                        take(&taken.slots[slot as usize]);
                        let buffer = pool.take_buffer().unwrap();
                        take(&taken.buffers[buffer as usize]);
                        assert!(pool.keep());
                        thread::yield_now();
                        free(&taken.buffers[buffer as usize]);
                        pool.give_back(buffer);
                        free(&taken.slots[slot as usize]);
                        pool.free_slot(slot);
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(pool.slots_taken(), 0);
    });
}

#[test]
fn no_slot_is_given_out_twice_and_nobody_waits_for_a_free_one() {
    serve(SLOTS - 1);
}

#[test]
fn no_buffer_is_given_out_twice_and_nobody_waits_for_one_that_may_be_kept() {
    serve(SLOTS);
}

#[test]
fn who_waits_goes_away_when_the_pool_is_closed() {
    common::check(|| {
        let pool = Arc::new(Pool::new(Layout { slots: 1, buffers: 4 }, READERS));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let pool = pool.clone();
                thread::spawn(move || pool.take_slot().is_some())
            })
            .collect();
        pool.close();
        let got = readers.into_iter().map(|reader| reader.join().unwrap()).filter(|got| *got).count();
        assert!(got <= 1);
    });
}

#[test]
fn who_waits_to_keep_a_buffer_may_when_another_one_is_given_back() {
    common::check(|| {
        let pool = Arc::new(Pool::new(Layout { slots: SLOTS, buffers: BUFFERS }, READERS));
        let kept: Vec<u32> = (0..BUFFERS - READERS).map(|_| pool.take_buffer().unwrap()).collect();
        assert!(kept.iter().all(|_| pool.keep()));
        let waiting = {
            let pool = pool.clone();
            thread::spawn(move || {
                let buffer = pool.take_buffer().unwrap();
                (pool.keep(), buffer)
            })
        };
        pool.give_back(kept[0]);
        let (keeps, buffer) = waiting.join().unwrap();
        assert!(keeps && kept[1..].iter().all(|other| *other != buffer));
    });
}
