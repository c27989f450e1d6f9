//! `atoll-fs fsck`: checks a whole volume while it is used, and repairs what it is asked to.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use atoll_core::check::Kind;
use atoll_proto::fsck::{Fate, FsckReply, FsckRequest};
use serde_json::json;

use crate::cli::FsckArgs;
use crate::cluster;
use crate::exit::Failure;

/// Between two looks at how it goes.
const LOOK: Duration = Duration::from_millis(300);
/// The check begins again with each new leader, so often at most.
const STARTS_MAX: u32 = 10;
/// Looks between two lines of progress where there is no terminal.
const LOOKS_PER_LINE: u32 = 30;

/// Exit codes, as fsck(8) has them.
pub const CLEAN: u8 = 0;
/// Damage was found, and all of it is repaired.
pub const REPAIRED: u8 = 1;
/// Damage is left.
pub const LEFT: u8 = 4;
/// The check itself failed.
pub const OPERATIONAL: u8 = 8;
/// Wrong flags.
pub const USAGE: u8 = 16;

/// `atoll-fs fsck`; returns its exit code.
pub fn run(args: &FsckArgs) -> ExitCode {
    let repair = match kinds(&args.repair) {
        Ok(repair) => repair,
        Err(message) => {
            eprintln!("atoll-fs fsck: {message}");
            return ExitCode::from(USAGE);
        }
    };
    match check(args, repair) {
        Ok(reply) => {
            print(&reply, args.json);
            ExitCode::from(code(&reply))
        }
        Err(failure) => {
            eprintln!("atoll-fs fsck: {failure}");
            ExitCode::from(OPERATIONAL)
        }
    }
}

/// The kinds that the names mean.
fn kinds(names: &[String]) -> Result<Vec<Kind>, String> {
    let mut kinds = BTreeSet::new();
    for name in names {
        if name == "all" {
            kinds.extend(Kind::ALL.iter().copied().filter(|kind| kind.phase() > 0));
            continue;
        }
        match Kind::of_name(name) {
            Some(kind) if kind.phase() > 0 => {
                kinds.insert(kind);
            }
            Some(_) => {
                return Err(format!("--repair {name}: this kind of damage can't be repaired, only reported"));
            }
            None => {
                let known: Vec<_> =
                    Kind::ALL.iter().filter(|kind| kind.phase() > 0).map(|kind| kind.name()).collect();
                return Err(format!("--repair {name}: unknown; choose among all, {}", known.join(", ")));
            }
        }
    }
    Ok(kinds.into_iter().collect())
}

fn check(args: &FsckArgs, repair: Vec<Kind>) -> Result<FsckReply, Failure> {
    let who = cluster::identity(&args.cluster)?;
    let addresses = &args.metadata.metadata;
    cluster::runtime(1)?.block_on(async {
        let request = FsckRequest::Start { repair, data: args.data };
        let mut reply = cluster::ask::<FsckRequest>(who.clone(), addresses, &request).await?;
        let (mut run, mut starts, mut looks) = (reply.run, 1, 0);
        while !reply.done {
            tokio::time::sleep(LOOK).await;
            reply = cluster::ask::<FsckRequest>(who.clone(), addresses, &FsckRequest::Look { run }).await?;
            if reply.run != run {
                // What was repaired is: it isn't found again.
                if starts == STARTS_MAX {
                    return Err(Failure::failed(
                        "the leader changed several times: try again once it is stable",
                    ));
                }
                eprintln!("the leader has changed: the check starts again");
                reply = cluster::ask::<FsckRequest>(who.clone(), addresses, &request).await?;
                (run, starts) = (reply.run, starts + 1);
                continue;
            }
            looks += 1;
            progress(&reply, args.json, looks);
        }
        match &reply.failed {
            Some(reason) => Err(Failure::failed(format_args!("the check did not finish: {reason}"))),
            None => Ok(reply),
        }
    })
}

fn progress(reply: &FsckReply, json: bool, looks: u32) {
    if reply.done {
        return;
    }
    if json {
        let line = json!({ "progress": { "round": reply.round, "stage": reply.stage, "records": reply.looked,
            "found": reply.found } });
        println!("{line}");
    } else if std::io::stderr().is_terminal() || looks.is_multiple_of(LOOKS_PER_LINE) {
        eprintln!(
            "round {}: {} records checked, now the {}, {} findings",
            reply.round, reply.looked, reply.stage, reply.found
        );
    }
}

fn code(reply: &FsckReply) -> u8 {
    match (reply.left, reply.repaired) {
        (0, 0) => CLEAN,
        (0, _) => REPAIRED,
        _ => LEFT,
    }
}

fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Left => "left",
        Fate::Repaired => "repaired",
        Fate::Refused => "could not be repaired",
    }
}

fn print(reply: &FsckReply, json: bool) {
    for finding in &reply.findings {
        let path = finding.path.as_deref();
        if json {
            println!(
                "{}",
                json!({ "finding": finding.kind.name(), "words": finding.words, "path": path,
                    "fate": fate(finding.fate) })
            );
        } else {
            let at = path.map(|path| format!(" [{path}]")).unwrap_or_default();
            println!("{}: {}{at}: {}", finding.kind.name(), finding.words, fate(finding.fate));
        }
    }
    if json {
        println!(
            "{}",
            json!({ "done": { "clean": reply.left == 0, "repaired": reply.repaired, "left": reply.left,
                "records": reply.looked } })
        );
        return;
    }
    match code(reply) {
        CLEAN => println!("clean: {} records checked, no findings", reply.looked),
        REPAIRED => println!("repaired: {} findings, none is left", reply.repaired),
        _ => println!(
            "NOT CLEAN: {} findings are left, {} repaired; use --repair NAME[,NAME] or --repair all to \
             repair what can be repaired",
            reply.left, reply.repaired
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_what_is_left() {
        let reply = |repaired, left| FsckReply { repaired, left, ..FsckReply::default() };
        assert_eq!(
            [code(&reply(0, 0)), code(&reply(3, 0)), code(&reply(3, 1)), code(&reply(0, 1))],
            [CLEAN, REPAIRED, LEFT, LEFT]
        );
    }

    #[test]
    fn names_to_repair_are_known_or_refused() {
        assert_eq!(kinds(&["link-count".into()]), Ok(vec![Kind::LinkCount]));
        assert!(kinds(&["all".into()]).unwrap().len() >= 12);
        assert!(kinds(&["no-superblock".into()]).unwrap_err().contains("only reported"));
        assert!(kinds(&["link".into()]).unwrap_err().contains("link-count"));
    }
}
