//! What comes from outside as bytes, and has to be read or refused whatever these are: one target each.
//!
//! `make fuzz` has libFuzzer look for bytes that make a target panic; the tests of this crate go through the corpora in the
//! repository, and through some thousand mutations of them, each time. A target does more than read: what it has read it
//! writes and reads again, and compares.

mod targets;

use targets::{
    chunk_header, commands, csi_parameters, frame, fuse_request, handshake, log_segment, mountinfo, record,
};

/// Something that reads bytes.
pub struct Target {
    /// Its name: of its corpus, and for `make fuzz TARGETS=`.
    pub name: &'static str,
    /// Reads the bytes; true if they made sense. It panics if something is wrong with what reads them.
    pub read: fn(&[u8]) -> bool,
    /// Bytes that make sense, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "chunk_header", read: chunk_header::read, seeds: chunk_header::seeds },
    Target { name: "commands", read: commands::read, seeds: commands::seeds },
    Target { name: "csi_parameters", read: csi_parameters::read, seeds: csi_parameters::seeds },
    Target { name: "frame", read: frame::read, seeds: frame::seeds },
    Target { name: "fuse_request", read: fuse_request::read, seeds: fuse_request::seeds },
    Target { name: "handshake", read: handshake::read, seeds: handshake::seeds },
    Target { name: "log_segment", read: log_segment::read, seeds: log_segment::seeds },
    Target { name: "mountinfo", read: mountinfo::read, seeds: mountinfo::seeds },
    Target { name: "record", read: record::read, seeds: record::seeds },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
