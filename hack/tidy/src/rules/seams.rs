//! What code must not touch where: the sentences of ARCHITECTURE.md's column "what is absent", and the seams at which
//! tests put in faults and the simulation its own world.
//!
//! These rules are about whole modules and crates. Single functions are in `clippy.toml`, which sees through every alias.

use crate::repository::is_below;
use crate::source::Mention;
use crate::{Finding, Repository, Verdict};

/// Something that is absent from a folder.
struct Absence {
    rule: &'static str,
    instead: &'static str,
    /// The folder it is absent from; "" is everywhere.
    folder: &'static str,
    /// Files and folders in it that may all the same.
    except: &'static [&'static str],
    /// Paths that must not be named ([`Mention::matches`]).
    what: &'static [&'static str],
    /// Paths among these that may be.
    but: &'static [&'static str],
}

const ABSENCES: &[Absence] = &[
    Absence {
        rule: "fs/core has no clock and no randomness",
        instead: "take the time or the seed as an argument",
        folder: "fs/core/src",
        except: &[],
        what: &["Instant", "SystemTime", "rand::*", "thread_rng", "getrandom", "RandomState", "libc::*"],
        but: &[],
    },
    Absence {
        rule: "fs/core has no I/O and no threads",
        instead: "return what is to be done, and do it in the crate that calls",
        folder: "fs/core/src",
        except: &[],
        what: &[
            "std::fs",
            "std::net",
            "std::env",
            "std::process",
            "std::thread",
            "io::stdin",
            "io::stdout",
            "io::stderr",
            "println!",
            "print!",
            "eprintln!",
            "eprint!",
        ],
        but: &[],
    },
    Absence {
        rule: "fs knows nothing of Kubernetes",
        instead: "do it in the operator or the CSI driver; what they need of fs is a message of fs/proto",
        folder: "fs",
        except: &[],
        what: &["kube::*", "k8s_openapi::*", "tonic::*"],
        but: &[],
    },
    Absence {
        rule: "fs/storage touches files through its disk alone",
        instead: "call the Disk trait (fs/storage/src/disk.rs): faults are injected there",
        folder: "fs/storage/src",
        except: &["fs/storage/src/disk.rs", "fs/storage/src/disk"],
        what: &["std::fs", "tokio::fs", "File::open", "File::create", "OpenOptions", "libc::open"],
        but: &[],
    },
    Absence {
        rule: "fs reaches other processes through fs/proto's transport alone",
        instead: "use atoll_proto::transport: the simulation puts its own network there",
        folder: "fs",
        except: &["fs/proto/src/transport.rs", "fs/atoll-fs", "fs/fuse", "fs/sim"],
        what: &["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "tokio::net"],
        but: &[],
    },
    Absence {
        rule: "of the file system the CSI driver knows the key, messages, the device and the bundle",
        instead: "add what is missing to fs/proto's messages or to the bundle of a mount",
        folder: "csi/src",
        except: &[],
        what: &[
            "atoll_client::*",
            "atoll_core::*",
            "atoll_fuse::*",
            "atoll_metadata::*",
            "atoll_raft::*",
            "atoll_storage::*",
        ],
        but: &[
            "atoll_core::ids::ClusterId",
            "atoll_fuse::bundle",
            "atoll_fuse::device",
            "atoll_fuse::Layout",
        ],
    },
];

/// The strings of `env!` that name the folder of the clone that happened to compile a program.
const CLONES: &[&str] = &["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_WORKSPACE_DIR"];

/// Everything that is absent is absent.
#[must_use]
pub fn verdicts(repository: &Repository) -> Vec<Verdict> {
    let absences = ABSENCES.iter().map(|absence| Verdict {
        rule: absence.rule,
        instead: absence.instead,
        findings: absence.findings(repository),
    });
    let clones = Verdict {
        rule: "no program knows the folder that it was compiled in: clones share one build folder",
        instead: "ask std::env::var at run time",
        findings: clones(repository),
    };
    absences.chain([clones]).collect()
}

impl Absence {
    fn findings(&self, repository: &Repository) -> Vec<Finding> {
        let inside = repository.code(self.folder);
        inside
            .filter(|(path, _)| !self.except.iter().any(|except| is_below(path, except)))
            .filter(|(_, mention)| self.is_broken_by(mention))
            .map(|(path, mention)| Finding::at(path, mention.line, mention.text()))
            .collect()
    }

    fn is_broken_by(&self, mention: &Mention) -> bool {
        let is_one_of = |patterns: &[&str]| patterns.iter().any(|pattern| mention.matches(pattern));
        is_one_of(self.what) && !is_one_of(self.but)
    }
}

fn clones(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in repository.files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        for (line, text) in text.lines().enumerate() {
            if CLONES.iter().any(|name| text.contains(&format!("env!(\"{name}\""))) {
                findings.push(Finding::at(path, line + 1, text.trim()));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules that a repository of one file breaks, by their first words.
    fn broken(path: &str, text: &str) -> Vec<&'static str> {
        let found = verdicts(&Repository::planted(&[(path, text)]));
        found.into_iter().filter(|verdict| !verdict.findings.is_empty()).map(|verdict| verdict.rule).collect()
    }

    #[test]
    fn every_absence_is_noticed() {
        for absence in ABSENCES {
            for what in absence.what {
                let named = what.replace('*', "x");
                let code =
                    if named.ends_with('!') { format!("{named}(1);") } else { format!("use {named};") };
                let file = format!("{}/planted.rs", absence.folder);
                assert!(broken(&file, &code).contains(&absence.rule), "{what} in {file}");
                let code = format!("#[cfg(test)] mod tests {{ {code} }} // {named}");
                assert_eq!(broken(&file, &code), Vec::<&str>::new(), "{what} in a test in {file}");
            }
        }
    }

    #[test]
    fn what_may_be_all_the_same_may_be() {
        for absence in ABSENCES {
            for but in absence.but {
                let file = format!("{}/planted.rs", absence.folder);
                assert_eq!(
                    broken(&file, &format!("use {but}::Name;")),
                    Vec::<&str>::new(),
                    "{but} in {file}"
                );
            }
        }
        assert_eq!(broken("fs/storage/src/disk/real.rs", "use std::fs;"), Vec::<&str>::new());
        assert_eq!(broken("fs/storage/src/diskette.rs", "use std::{io, fs::File};").len(), 1);
    }

    #[test]
    fn the_folder_of_a_clone_is_noticed_in_tests_too() {
        let code = format!("const A: &str = env!(\"{}\");", CLONES[0]);
        assert_eq!(broken("kubectl/tests/a.rs", &code).len(), 1);
        assert_eq!(
            broken("kubectl/tests/a.rs", "const A: &str = env!(\"CARGO_BIN_EXE_a\");"),
            Vec::<&str>::new()
        );
    }
}
