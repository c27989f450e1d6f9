//! One target a file.

pub(crate) mod chunk_header;
pub(crate) mod commands;
pub(crate) mod csi_parameters;
pub(crate) mod frame;
pub(crate) mod fuse_request;
pub(crate) mod handshake;
pub(crate) mod log_segment;
pub(crate) mod mountinfo;
pub(crate) mod record;

/// CRC-32C of the parts together.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize() as u32
}
