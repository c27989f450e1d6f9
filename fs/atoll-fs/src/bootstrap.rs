//! `atoll-fs bootstrap`.

use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::VolumeConfig;
use atoll_proto::metadata::BootstrapRequest;

use crate::cli::BootstrapArgs;
use crate::cluster;
use crate::exit::{Failure, Outcome};

/// Makes the volume. To do it again changes nothing.
///
/// # Errors
/// If the cluster can't be reached or is another one.
pub fn run(args: &BootstrapArgs) -> Outcome {
    let identity = cluster::identity(&args.cluster)?;
    let mode =
        u32::from_str_radix(&args.root_mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            Failure::failed(format_args!("--root-mode '{}' is no octal mode such as 755", args.root_mode))
        })?;
    let mut config = config(args.capacity.0, args.inodes, args.copies, args.inline_budget.0);
    if let Some(copies_min) = args.copies_min {
        if copies_min > args.copies {
            return Err(Failure::failed(format_args!(
                "--copies-min {copies_min} is more than --copies {}",
                args.copies
            )));
        }
        config.copies_min = copies_min;
    }
    config.exclusive = args.exclusive;
    config.root = (args.root_uid, args.root_gid, mode);
    let request = BootstrapRequest { cluster: identity.0, config };
    cluster::runtime(1)?.block_on(cluster::ask::<BootstrapRequest>(
        identity,
        &args.metadata.metadata,
        &request,
    ))?;
    println!("the volume is made");
    Ok(())
}

/// The configuration of a volume of `capacity` bytes.
pub fn config(capacity: u64, inodes: Option<u64>, copies: u8, inline_budget: u64) -> VolumeConfig {
    VolumeConfig {
        bytes_total: capacity / BLOCK_BYTES * BLOCK_BYTES,
        inodes_total: inodes.unwrap_or((capacity / BLOCK_BYTES).max(1024)),
        copies,
        copies_min: copies.saturating_sub(1).max(1),
        inline_budget_bytes: inline_budget,
        ..VolumeConfig::default()
    }
}
