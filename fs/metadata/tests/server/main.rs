//! A whole metadata server, spoken to over its socket.

mod client;
mod kill;
mod sessions;
mod space;
mod storage;
mod volume;
