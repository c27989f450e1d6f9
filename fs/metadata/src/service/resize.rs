//! The size of the volume.

use atoll_core::commands::{Op, Outcome, ops};
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::query;
use atoll_core::records::VolumeConfig;
use atoll_proto::admin::ResizeVolume;
use atoll_proto::metadata::MetadataError;

use crate::node::{Node, query_error};

impl Node {
    /// Changes what the volume may hold. To ask for what is there changes nothing.
    pub(crate) async fn resize_volume(&self, request: ResizeVolume) -> Result<(), MetadataError> {
        let leader = self.lead()?;
        let ResizeVolume { bytes_total, inodes_total, inline_budget_bytes } = request;
        if !bytes_total.is_multiple_of(BLOCK_BYTES) {
            return Err(MetadataError::Refused(format!(
                "{bytes_total} bytes aren't whole blocks of {BLOCK_BYTES} bytes"
            )));
        }
        let volume = query::superblock(&*self.machine.store()).map_err(query_error)?;
        // What is written in the meantime isn't lost: the volume is full then, as it would have been a moment later.
        let (bytes, inodes) = (volume.bytes_used, volume.inodes_used);
        if bytes_total < bytes || inodes_total < inodes {
            return Err(MetadataError::Refused(format!(
                "{bytes_total} bytes and {inodes_total} inodes are too few: files use {bytes} bytes and {inodes} inodes; \
                 delete files, or choose a larger size"
            )));
        }
        let config = VolumeConfig { bytes_total, inodes_total, inline_budget_bytes, ..volume.config.clone() };
        if config == volume.config {
            return Ok(());
        }
        match leader.propose(Op::from(ops::Configure { config })).await? {
            Outcome::Refused(error) => Err(MetadataError::Fs(error)),
            _ => Ok(()),
        }
    }
}
