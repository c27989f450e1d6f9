//! What the commands have in common: the cluster's id and key, and calls to its metadata servers.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_core::ids::ClusterId;
use atoll_proto::admin::{self, MemberIdentity};
use atoll_proto::client::{ConnectError, ConnectOptions, Connection};
use atoll_proto::handshake::{ClusterKey, Encryption, Identity, Role};
use atoll_proto::metadata::MetadataError;
use atoll_proto::rpc::{Rpc, RpcError};
use atoll_proto::transport::Address;

use crate::cli::{ClusterArgs, KeygenArgs};
use crate::exit::{Code, Context, Failure, Outcome};
use crate::memory;

/// How long a single command waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before everybody is asked again while a leader is being elected.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);
/// How long it waits for one of several servers to say who it is: a stopped one doesn't hang up.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the cluster's id and key.
///
/// # Errors
/// If one of them can't be read.
pub fn identity(args: &ClusterArgs) -> Result<(ClusterId, ClusterKey, Encryption), Failure> {
    Ok((id(&args.cluster)?, key(&args.key_file)?, encryption(args.encrypt)))
}

/// Reads a cluster's id.
///
/// # Errors
/// If it is none.
pub fn id(text: &str) -> Result<ClusterId, Failure> {
    text.parse().map_err(|_| {
        Failure::failed(format_args!(
            "--cluster '{text}' is not a cluster id: it has 32 hexadecimal digits, as 'atoll-fs keygen' \
             prints"
        ))
    })
}

/// Reads a file with a cluster's key.
///
/// # Errors
/// If it can't be read, or holds no key.
pub fn key(file: &Path) -> Result<ClusterKey, Failure> {
    let content = fs::read(file).map_err(|error| {
        Failure::failed(format_args!("can't read the key file {}: {error}", file.display()))
    })?;
    ClusterKey::parse(&content).context(file.display())
}

/// What `--encrypt` means.
pub fn encryption(encrypt: bool) -> Encryption {
    if encrypt { Encryption::Required } else { Encryption::Off }
}

/// Reads addresses.
///
/// # Errors
/// If one is none.
pub fn addresses(texts: &[String]) -> Result<Vec<Address>, Failure> {
    texts.iter().map(|text| text.parse().map_err(Failure::failed)).collect()
}

/// Makes a cluster id and a key.
///
/// # Errors
/// If the file exists or can't be written.
pub fn keygen(args: &KeygenArgs) -> Outcome {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.key_file);
    let mut file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::refused(format_args!(
                "{} exists: without its key a cluster is lost, so nothing is overwritten; name a new file",
                args.key_file.display()
            )));
        }
        Err(error) => return Err(Failure::failed(format_args!("{}: {error}", args.key_file.display()))),
    };
    let text = ClusterKey::random().to_hex() + "\n";
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).context(args.key_file.display())?;
    println!("{}", ClusterId(rand::random()));
    Ok(())
}

/// Asks the first metadata server that answers, or the leader that it names.
///
/// # Errors
/// If none answers, or it refuses.
pub async fn ask<R: Rpc>(
    identity: (ClusterId, ClusterKey, Encryption),
    addresses: &[String],
    request: &R::Request,
) -> Result<R::Reply, Failure> {
    ask_within::<R>(identity, addresses, request, TIMEOUT).await
}

/// [`ask`], with so much patience for the answer.
///
/// # Errors
/// As [`ask`].
pub async fn ask_within<R: Rpc>(
    (id, key, encryption): (ClusterId, ClusterKey, Encryption),
    addresses: &[String],
    request: &R::Request,
    patience: Duration,
) -> Result<R::Reply, Failure> {
    let options = ConnectOptions::new(Identity { cluster: id, role: Role::Admin, key, encryption });
    let addresses = self::addresses(addresses)?;
    let give_up = Instant::now() + TIMEOUT;
    loop {
        let reasons = match ask_round::<R>(&addresses, &options, request, patience).await {
            Round::Answered(reply) => return Ok(reply),
            Round::Failed(failure) => return Err(failure),
            Round::Electing(_) if Instant::now() < give_up => {
                tokio::time::sleep(ELECTION_PAUSE).await;
                continue;
            }
            Round::Electing(reasons) | Round::Silent(reasons) => reasons,
        };
        return Err(Failure::new(
            Code::Unreachable,
            format_args!("no metadata server responded: {}", reasons.join("; ")),
        ));
    }
}

/// What asking every server once has brought.
enum Round<T> {
    Answered(T),
    Failed(Failure),
    /// Some are there, and have no leader just now.
    Electing(Vec<String>),
    Silent(Vec<String>),
}

/// Asks each server once, and each that one of them names as the leader.
async fn ask_round<R: Rpc>(
    addresses: &[Address],
    options: &ConnectOptions,
    request: &R::Request,
    patience: Duration,
) -> Round<R::Reply> {
    let mut candidates = addresses.to_vec();
    if candidates.len() > 1 {
        leader_first(&mut candidates, options).await;
    }
    let (mut reasons, mut electing, mut at) = (Vec::new(), false, 0);
    while at < candidates.len() && at < 16 {
        let address = candidates[at].clone();
        at += 1;
        let connection = match Connection::connect(&address, options).await {
            Ok(connection) => connection,
            // A wrong id or key won't be right at the next address.
            Err(error @ ConnectError::Handshake { .. }) => return Round::Failed(Failure::refused(error)),
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        let error = match connection.call_within::<R>(request, (), patience).await {
            Ok((reply, _)) => return Round::Answered(reply),
            Err(error) => error,
        };
        match error.typed::<MetadataError>() {
            Some(MetadataError::NotLeader { leader: Some((_, leader)) }) => {
                if let Ok(leader) = leader.parse() {
                    candidates.push(leader);
                }
                electing = true;
                reasons.push(format!("{address}: not the leader, which is at {leader}"));
            }
            Some(MetadataError::NotLeader { leader: None } | MetadataError::LeadershipLost) => {
                electing = true;
                reasons.push(format!("{address}: no leader is elected"));
            }
            Some(error) => return Round::Failed(Failure::failed(format_args!("{address}: {error}"))),
            None if matches!(error, RpcError::Refused(_)) => {
                return Round::Failed(Failure::failed(format_args!("{address}: {error}")));
            }
            None => reasons.push(format!("{address}: {error}")),
        }
    }
    if electing { Round::Electing(reasons) } else { Round::Silent(reasons) }
}

/// Who the servers at these addresses are, asked all at once; those that don't answer, with the reason.
pub async fn who(
    candidates: &[Address],
    options: &ConnectOptions,
) -> Vec<(Address, Result<MemberIdentity, String>)> {
    let asked = candidates
        .iter()
        .map(async |address| (address.clone(), admin::who(address, options, PROBE_TIMEOUT).await));
    futures::future::join_all(asked).await
}

/// Puts the leader in front, and those that don't answer last: each of these would cost a deadline.
async fn leader_first(candidates: &mut Vec<Address>, options: &ConnectOptions) {
    let mut known = who(candidates, options).await;
    known.sort_by_key(|(_, answer)| match answer {
        Ok(who) if who.is_leader => 0,
        Ok(_) => 1,
        Err(_) => 2,
    });
    *candidates = known.into_iter().map(|(address, _)| address).collect();
}

/// A runtime for a process that serves: it gives memory back when it rests.
///
/// # Errors
/// If the system refuses one.
pub fn serving_runtime(threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    memory::give_back_when_resting();
    runtime(threads)
}

/// A runtime for one command.
///
/// # Errors
/// If the system refuses one.
pub fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_name("atoll")
        .enable_all()
        .build()
        .context("runtime")
}
