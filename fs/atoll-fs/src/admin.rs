//! `atoll-fs admin`: changes of the group of metadata servers, and of storage servers.

use std::time::Duration;

use atoll_core::commands::ServerChange;
use atoll_core::ids::{MemberId, ServerId};
use atoll_core::limits::BLOCK_BYTES;
#[cfg(feature = "servers")]
use atoll_proto::Address;
use atoll_proto::admin::{
    ChangeMembers, ChangeServer, MemberIdentity, MembersChange, ResizeVolume, TransferLeader, WhoRequest,
};
use atoll_proto::metadata::{ClusterStatus, StatusRequest};

use crate::cli::{AdminCommand, ClusterArgs, MembersCommand, MetadataAddresses, ResizeArgs, ServerArgs};
use crate::cluster;
use crate::exit::{Failure, Outcome};
use crate::size::Size;

/// How long a change may take: a joiner receives everything first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a server may take to say who it is, or to transfer leadership.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Runs it.
///
/// # Errors
/// If the cluster can't be reached, or the change isn't possible: then nothing was changed.
pub fn run(command: &AdminCommand) -> Outcome {
    match command {
        AdminCommand::Members(MembersCommand::Add(args)) => {
            let new = who(&args.cluster, &args.address)?;
            let change = MembersChange::Add { member: new.member, address: new.address.clone() };
            change_members(&args.cluster, &args.metadata, change)?;
            println!("metadata server {} at {} is now a member", new.member, new.address);
        }
        AdminCommand::Members(MembersCommand::Replace(args)) => {
            let old = member(&args.member)?;
            let new = who(&args.cluster, &args.address)?;
            let change = MembersChange::Replace { old, new: new.member, address: new.address.clone() };
            change_members(&args.cluster, &args.metadata, change)?;
            println!("metadata server {} at {} has replaced {old}", new.member, new.address);
        }
        AdminCommand::Members(MembersCommand::Remove(args)) => {
            let member = member(&args.member)?;
            change_members(&args.cluster, &args.metadata, MembersChange::Remove { member })?;
            println!("{member} was removed from the group: stop its server and delete its data directory");
        }
        AdminCommand::Drain(args) => {
            change_server(args, ServerChange::Drain)?;
            println!(
                "the storage server is draining: its replicas move to other servers; 'atoll-fs status' shows \
                 how many are left"
            );
        }
        AdminCommand::Undrain(args) => {
            change_server(args, ServerChange::Undrain)?;
            println!("the storage server is in use again");
        }
        AdminCommand::Forget(args) => {
            change_server(args, ServerChange::Forget)?;
            println!("the storage server was removed from the cluster: delete its data directory");
        }
        #[cfg(feature = "servers")]
        AdminCommand::UnsafeRecovery(args) => unsafe_recovery(args)?,
        AdminCommand::TransferLeader(args) => {
            let to = args.member.as_deref().map(member).transpose()?;
            let identity = cluster::identity(&args.cluster)?;
            let request = TransferLeader { to };
            let metadata = &args.metadata.metadata;
            let asked = cluster::ask_within::<TransferLeader>(identity, metadata, &request, TIMEOUT);
            println!("{} is the leader", cluster::runtime(1)?.block_on(asked)?);
        }
        AdminCommand::Resize(args) => resize(args)?,
    }
    Ok(())
}

fn resize(args: &ResizeArgs) -> Outcome {
    let identity = cluster::identity(&args.cluster)?;
    let metadata = &args.metadata.metadata;
    let runtime = cluster::runtime(1)?;
    let status =
        runtime.block_on(cluster::ask::<StatusRequest>(identity.clone(), metadata, &StatusRequest))?;
    let request = resized(&status, args.capacity.map(|capacity| capacity.0), args.inodes)?;
    runtime.block_on(cluster::ask::<ResizeVolume>(identity, metadata, &request))?;
    let ResizeVolume { bytes_total, inodes_total, .. } = request;
    println!("the volume has {} and {inodes_total} inodes", Size(bytes_total));
    Ok(())
}

/// What the volume is to be, from what it is.
fn resized(status: &ClusterStatus, bytes: Option<u64>, inodes: Option<u64>) -> Result<ResizeVolume, Failure> {
    if status.cluster.is_none() {
        return Err(Failure::refused("there is no volume yet: create it with 'atoll-fs bootstrap'"));
    }
    if status.inline_budget_bytes == 0 {
        return Err(Failure::refused(
            "the metadata servers are of an earlier version, which can't resize volumes",
        ));
    }
    let now = status.volume;
    let bytes_total = bytes.map_or(now.bytes_total, |bytes| bytes / BLOCK_BYTES * BLOCK_BYTES);
    let usual = if bytes_total > now.bytes_total { bytes_total / BLOCK_BYTES } else { 0 };
    let inodes_total = inodes.unwrap_or(now.inodes_total.max(usual));
    Ok(ResizeVolume { bytes_total, inodes_total, inline_budget_bytes: status.inline_budget_bytes })
}

#[cfg(feature = "servers")]
fn unsafe_recovery(args: &crate::cli::UnsafeRecoveryArgs) -> Outcome {
    let cluster = cluster::id(&args.cluster)?;
    if !args.the_others_are_gone {
        return Err(Failure::refused(
            "this is an unsafe recovery: it loses what only the other members had, and splits the filesystem \
             in two if they ever run again. If a majority of the members can be started, start them instead; \
             otherwise add --the-others-are-gone",
        ));
    }
    // What is written into the log is where everybody will look for it.
    let address: Address = args.address.parse().map_err(Failure::failed)?;
    // An empty folder would become one of a new member.
    if !args.data.join("raft").is_dir() {
        return Err(Failure::refused(format_args!(
            "{} is not the data directory of a metadata server that has belonged to a group",
            args.data.display()
        )));
    }
    let (member, position) = atoll_metadata::unsafe_recovery(&args.data, cluster, address.to_string())
        .map_err(|error| Failure::refused(format_args!("{}: {error}", args.data.display())))?;
    println!(
        "{member} is now the only member; its log ends at {position}. Start it, check 'atoll-fs status' and \
         'atoll-fs fsck', and add members with empty directories"
    );
    Ok(())
}

fn member(text: &str) -> Result<MemberId, Failure> {
    text.parse().map_err(|_| {
        Failure::failed(format_args!(
            "'{text}' is not a member id: it has 16 hexadecimal digits, as 'atoll-fs status' shows"
        ))
    })
}

fn change_server(args: &ServerArgs, change: ServerChange) -> Outcome {
    let server: ServerId = args.server.parse().map_err(|_| {
        Failure::failed(format_args!(
            "'{}' is not a storage server id: it has 16 hexadecimal digits, as 'atoll-fs status' shows",
            args.server
        ))
    })?;
    let identity = cluster::identity(&args.cluster)?;
    let request = ChangeServer { server, change };
    let asked = cluster::ask_within::<ChangeServer>(identity, &args.metadata.metadata, &request, TIMEOUT);
    cluster::runtime(1)?.block_on(asked)
}

/// Asks the server at an address who it is.
fn who(args: &ClusterArgs, address: &str) -> Result<MemberIdentity, Failure> {
    let identity = cluster::identity(args)?;
    let addresses = [address.to_owned()];
    let asked = cluster::ask_within::<WhoRequest>(identity, &addresses, &WhoRequest, TIMEOUT);
    cluster::runtime(1)?.block_on(asked)
}

fn change_members(args: &ClusterArgs, metadata: &MetadataAddresses, change: MembersChange) -> Outcome {
    let identity = cluster::identity(args)?;
    let request = ChangeMembers { change };
    let asked = cluster::ask_within::<ChangeMembers>(identity, &metadata.metadata, &request, CHANGE_TIMEOUT);
    cluster::runtime(1)?.block_on(asked)
}

#[cfg(test)]
mod tests {
    use atoll_core::attributes::VolumeUse;
    use atoll_core::ids::ClusterId;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn status() -> ClusterStatus {
        ClusterStatus {
            cluster: Some(ClusterId(7)),
            volume: VolumeUse { bytes_total: GIB, inodes_total: GIB / BLOCK_BYTES, ..VolumeUse::default() },
            inline_budget_bytes: 300,
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn what_is_not_named_stays_and_a_larger_volume_has_more_inodes() {
        let resized = |bytes, inodes| {
            let request = resized(&status(), bytes, inodes).ok().unwrap();
            assert_eq!(request.inline_budget_bytes, 300);
            (request.bytes_total, request.inodes_total)
        };
        assert_eq!(resized(Some(2 * GIB + 5), None), (2 * GIB, 2 * GIB / BLOCK_BYTES));
        assert_eq!(resized(Some(GIB / 2), None), (GIB / 2, GIB / BLOCK_BYTES));
        assert_eq!(resized(None, Some(5000)), (GIB, 5000));
        assert_eq!(resized(Some(2 * GIB), Some(5000)), (2 * GIB, 5000));
    }

    #[test]
    fn what_is_no_volume_or_an_earlier_version_is_left_alone() {
        let refused = |status: ClusterStatus| resized(&status, Some(GIB), None).err().unwrap().to_string();
        assert!(refused(ClusterStatus::default()).contains("atoll-fs bootstrap"));
        let earlier = ClusterStatus { inline_budget_bytes: 0, ..status() };
        assert!(refused(earlier).contains("earlier version"));
    }
}
