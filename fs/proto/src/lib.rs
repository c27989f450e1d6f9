//! The wire: how Atoll's processes talk to each other.
//!
//! A connection ([`transport`]) begins with a [`handshake`] in which both ends prove that they know the
//! cluster's key, and then carries [`frame`]s, encrypted or not ([`secure`]). A [`client`] has many requests
//! in flight on one connection, a [`server`] answers them in any order. The messages are in [`metadata`]
//! (clients and the metadata service), [`storage`] (clients and storage servers) and [`registration`]
//! (storage servers and the metadata service).
//!
//! No message is interpreted here; the only decisions are about connections.

pub mod admin;
pub mod buffers;
pub mod checksum;
pub mod client;
mod direct;
pub mod frame;
pub mod fsck;
pub mod handshake;
pub mod metadata;
mod outbox;
pub mod peer;
pub mod queries;
pub mod registration;
pub mod rpc;
pub mod secure;
pub mod server;
pub mod status;
pub mod storage;
pub mod transport;
pub mod version;

pub use client::{ConnectError, ConnectOptions, Connection, Push, Reply};
pub use frame::Body;
pub use handshake::{ClusterKey, Encryption, Identity, Remote, Role};
pub use peer::{Peer, PeerState};
pub use rpc::{Rpc, RpcError};
pub use server::{Handler, PeerInfo, Request, Response, ServerOptions, serve};
pub use status::{Status, StatusCode};
pub use transport::{Address, Listener};
