//! `atoll-fs admin`: changes of the group of metadata servers, and of storage servers.

use std::time::Duration;

use atoll_core::commands::ServerChange;
use atoll_core::ids::{MemberId, ServerId};
#[cfg(feature = "servers")]
use atoll_proto::Address;
use atoll_proto::admin::{
    ChangeMembers, ChangeServer, MemberIdentity, MembersChange, TransferLeader, WhoRequest,
};

use crate::cli::{AdminCommand, ClusterArgs, MembersCommand, MetadataAddresses, ServerArgs};
use crate::cluster;
use crate::exit::{Failure, Outcome};

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
    }
    Ok(())
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
