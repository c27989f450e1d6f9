//! `atoll-fs bootstrap`.

use atoll_core::ids::{ClusterId, MemberId};
use atoll_core::limits::BLOCK_BYTES;
use atoll_core::records::VolumeConfig;
use atoll_proto::client::ConnectOptions;
use atoll_proto::handshake::{ClusterKey, Encryption, Identity, Role};
use atoll_proto::metadata::BootstrapRequest;

use crate::cli::BootstrapArgs;
use crate::cluster;
use crate::exit::{Code, Failure, Outcome};

/// Makes the volume. To do it again changes nothing.
///
/// # Errors
/// If the cluster can't be reached or is another one.
pub fn run(args: &BootstrapArgs) -> Outcome {
    let identity = cluster::identity(&args.cluster)?;
    let mode =
        u32::from_str_radix(&args.root_mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            Failure::failed(format_args!("--root-mode '{}' is not an octal mode such as 755", args.root_mode))
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
    let runtime = cluster::runtime(1)?;
    let (addresses, members) = runtime.block_on(first_members(&identity, &args.metadata.metadata))?;
    let request = BootstrapRequest { cluster: identity.0, config, members };
    runtime.block_on(cluster::ask::<BootstrapRequest>(identity, &addresses, &request))?;
    println!("the volume is created");
    Ok(())
}

/// Whom to ask, and which members bootstrap the group. Where there is a group already, its members are asked and none bootstraps one:
/// a new disk behind one of the addresses must not begin another.
///
/// # Errors
/// If a group is to be bootstrapped and not all of its members answer.
async fn first_members(
    (id, key, encryption): &(ClusterId, ClusterKey, Encryption),
    addresses: &[String],
) -> Result<(Vec<String>, Vec<(MemberId, String)>), Failure> {
    if addresses.len() < 2 {
        return Ok((addresses.to_vec(), Vec::new()));
    }
    let identity = Identity { cluster: *id, role: Role::Admin, key: key.clone(), encryption: *encryption };
    let known = cluster::who(&cluster::addresses(addresses)?, &ConnectOptions::new(identity)).await;
    let in_group: Vec<String> = known
        .iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(|who| who.in_group))
        .map(|(address, _)| address.to_string())
        .collect();
    if !in_group.is_empty() {
        return Ok((in_group, Vec::new()));
    }
    let mut members = Vec::new();
    for (address, answer) in known {
        let who = answer.map_err(|reason| {
            Failure::new(
                Code::Unreachable,
                format_args!(
                    "{reason}: all named metadata servers form the group, so all of them must run; start it, \
                     or leave {address} out and add it later"
                ),
            )
        })?;
        members.push((who.member, who.address));
    }
    let count = members.len();
    if count % 2 == 0 {
        return Err(Failure::failed(format_args!(
            "{count} metadata servers tolerate no more failures than {}: name an odd number",
            count - 1
        )));
    }
    let first = addresses.first().cloned().into_iter().collect();
    Ok((first, members))
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
