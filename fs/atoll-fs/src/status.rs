//! `atoll-fs status`: how a cluster is, on one screen.

use std::fmt::Write;

use atoll_core::ids::ClusterId;
use atoll_proto::handshake::{ClusterKey, Encryption};
use atoll_proto::metadata::{ClusterStatus, StatusRequest};
use serde_json::json;

use crate::cli::{Output, StatusArgs};
use crate::cluster;
use crate::exit::{Code, Failure, Outcome};
use crate::size::Size;

/// Width of the bar that shows how full the volume is, in characters.
const BAR: u64 = 30;

/// `atoll-fs status`
///
/// # Errors
/// If the cluster can't be reached, or isn't healthy (after it was shown).
pub fn run(args: &StatusArgs) -> Outcome {
    let (id, key, encryption) = cluster::identity(&args.cluster)?;
    show(id, key, encryption == Encryption::Required, &args.metadata.metadata, args.output)
}

/// Asks and prints.
///
/// # Errors
/// As [`run`].
pub fn show(id: ClusterId, key: ClusterKey, encrypt: bool, addresses: &[String], output: Output) -> Outcome {
    let encryption = if encrypt { Encryption::Required } else { Encryption::Off };
    let status = cluster::runtime(1)?.block_on(cluster::ask::<StatusRequest>(
        (id, key, encryption),
        addresses,
        &StatusRequest,
    ))?;
    match output {
        Output::Table => print!("{}", table(&status)),
        Output::Json => println!("{:#}", document(&status)),
    }
    if status.problems.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(
            Code::Unhealthy,
            format_args!("the cluster has {} problem(s), listed above", status.problems.len()),
        ))
    }
}

/// A member that was silent for longer is shown so, in milliseconds.
const SILENT_MS: u64 = 5000;

fn table(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let volume = &status.volume;
    let health = if status.problems.is_empty() { "healthy" } else { "NOT HEALTHY" };
    let cluster = status.cluster.map_or("not bootstrapped".to_owned(), |id| id.to_string());
    let taken = volume.bytes_used + volume.bytes_reserved;
    let filled = (taken.min(volume.bytes_total) * BAR).checked_div(volume.bytes_total).unwrap_or(0);
    let percent = (taken * 100).checked_div(volume.bytes_total).unwrap_or(0);
    let bar: String = (0..BAR).map(|at| if at < filled { '#' } else { '.' }).collect();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<10} {value}");
    };
    line("cluster", format!("{cluster}   {health}"));
    line(
        "space",
        format!("[{bar}] {percent}%   {} of {}", Size(volume.bytes_used), Size(volume.bytes_total)),
    );
    line(
        "files",
        format!(
            "{} of {}   inline data {}   unlinked and not yet freed {}",
            volume.inodes_used,
            volume.inodes_total,
            Size(status.inline_bytes),
            status.orphans
        ),
    );
    line(
        "chunks",
        format!(
            "{}   copies desired {}   with fewer copies {}",
            status.chunks, status.copies, status.chunks_short
        ),
    );
    for member in &status.members {
        let leads = status.leader.as_ref().is_some_and(|(leader, _)| *leader == member.member);
        let role = match (leads, member.voter) {
            (true, _) => "leader",
            (false, true) => "member",
            (false, false) => "joining",
        };
        let state = match (leads, member.silent_ms, member.snapshot, member.lag) {
            (true, ..) => format!("term {}   applied {}", status.term, status.applied),
            (false, Some(ms), Some((done, total)), _) if ms < SILENT_MS => {
                format!("alive   receives a snapshot: {} of {}", Size(done), Size(total))
            }
            (false, Some(ms), None, Some(lag)) if ms < SILENT_MS => format!("alive   {lag} entries behind"),
            (false, Some(ms), ..) => format!("NO HEARTBEAT for {} s", ms / 1000),
            (false, None, _, Some(_)) => "NO HEARTBEAT".to_owned(),
            (false, None, _, None) => String::new(),
        };
        line(
            "metadata",
            format!("{}   {role}   {}   {state}", member.member, member.address).trim_end().to_owned(),
        );
    }
    for server in &status.servers {
        let state = if server.alive && server.draining {
            "DRAINING".to_owned()
        } else if server.alive {
            "alive".to_owned()
        } else {
            format!("NO HEARTBEAT for {} s", server.silent_ms / 1000)
        };
        line(
            "storage",
            format!(
                "{}   {state}   {}   {} stored in {} chunks   disk: {} of {} free",
                server.server,
                server.address,
                Size(server.stored),
                server.chunks,
                Size(server.free),
                Size(server.capacity)
            ),
        );
    }
    if status.repair.chunks_left > 0 || status.repair.copying > 0 {
        let repair = &status.repair;
        let eta = repair.eta_seconds.map_or("unknown".to_owned(), |seconds| format!("{seconds} s"));
        line(
            "repair",
            format!(
                "{} chunks with {} left   {} copies in progress   {}/s   done in {eta}",
                repair.chunks_left,
                Size(repair.bytes_left),
                repair.copying,
                Size(repair.bytes_per_second)
            ),
        );
    }
    for session in &status.sessions {
        line(
            "mount",
            format!("{}   {}   {} open files", session.session, session.client, session.open_files),
        );
    }
    for problem in &status.problems {
        line("problem", problem.clone());
    }
    text
}

fn document(status: &ClusterStatus) -> serde_json::Value {
    json!({
        "cluster": status.cluster.map(|id| id.to_string()),
        "healthy": status.problems.is_empty(),
        "problems": status.problems,
        "volume": {
            "bytesTotal": status.volume.bytes_total,
            "bytesUsed": status.volume.bytes_used,
            "bytesReserved": status.volume.bytes_reserved,
            "inodesTotal": status.volume.inodes_total,
            "inodesUsed": status.volume.inodes_used,
            "inlineBytes": status.inline_bytes,
        },
        "chunks": { "count": status.chunks, "short": status.chunks_short, "copies": status.copies },
        "repair": {
            "chunksLeft": status.repair.chunks_left,
            "bytesLeft": status.repair.bytes_left,
            "copying": status.repair.copying,
            "chunksCopied": status.repair.chunks_copied,
            "bytesCopied": status.repair.bytes_copied,
            "bytesPerSecond": status.repair.bytes_per_second,
            "etaSeconds": status.repair.eta_seconds,
        },
        "orphans": status.orphans,
        "metadata": {
            "member": status.member.to_string(),
            "leader": status.leader.as_ref().map(|(id, address)| json!({ "member": id.to_string(), "address": address })),
            "term": status.term,
            "applied": status.applied,
            "members": status.members.iter()
                .map(|member| json!({
                    "member": member.member.to_string(),
                    "address": member.address,
                    "voter": member.voter,
                    "lag": member.lag,
                    "silentMs": member.silent_ms,
                    "snapshot": member.snapshot.map(|(done, total)| json!({ "bytes": done, "of": total })),
                })).collect::<Vec<_>>(),
        },
        "storage": status.servers.iter().map(|server| json!({
            "server": server.server.to_string(),
            "address": server.address,
            "alive": server.alive,
            "draining": server.draining,
            "silentMs": server.silent_ms,
            "stored": server.stored,
            "diskCapacity": server.capacity,
            "diskUsed": server.used,
            "diskFree": server.free,
            // What these three were called first.
            "capacity": server.capacity,
            "used": server.used,
            "free": server.free,
            "chunks": server.chunks,
        })).collect::<Vec<_>>(),
        "sessions": status.sessions.iter().map(|session| json!({
            "session": session.session.to_string(),
            "client": session.client,
            "openedMs": session.opened.millis(),
            "openFiles": session.open_files,
            "bytesReserved": session.bytes_reserved,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use atoll_core::attributes::VolumeUse;

    use super::*;

    #[test]
    fn a_status_says_in_words_what_is_wrong() {
        let status = ClusterStatus {
            cluster: Some(ClusterId(7)),
            volume: VolumeUse { bytes_total: 100 << 20, bytes_used: 50 << 20, ..VolumeUse::default() },
            problems: vec!["storage server 1 has not sent a heartbeat for 9 s: start it".into()],
            orphans: 31,
            ..ClusterStatus::default()
        };
        let text = table(&status);
        assert!(text.contains("NOT HEALTHY") && text.contains("start it") && text.contains("50%"), "{text}");
        assert!(text.contains("not yet freed 31"), "{text}");
        assert_eq!(document(&status)["healthy"], false);
        let server = atoll_proto::metadata::ServerStatus {
            server: atoll_core::ids::ServerId(3),
            address: "here:1".into(),
            alive: true,
            draining: false,
            capacity: 200 << 30,
            used: 179 << 30,
            free: 21 << 30,
            chunks: 0,
            silent_ms: 0,
            stored: 0,
        };
        let idle = ClusterStatus { servers: vec![server], ..ClusterStatus::default() };
        let text = table(&idle);
        assert!(text.contains("0 B stored in 0 chunks   disk: 21.0 GiB of 200.0 GiB free"), "{text}");
        let empty = table(&ClusterStatus::default());
        assert!(empty.contains("not bootstrapped"), "{empty}");
    }
}
