//! A whole metadata server, spoken to over its socket.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod kill;
mod locks;
mod sessions;
mod space;
mod storage;
mod volume;
