//! Real programs on a mount: git, cargo, sqlite, tar, rsync, fio, dbench.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Cluster, run, text};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One cluster with 3 copies for all programs, each in a folder of its own. (A static is never dropped, so each test
/// holds it through [`Shared`], and the last one takes it down.)
static CLUSTER: Mutex<Option<std::sync::Weak<Cluster>>> = Mutex::new(None);

fn cluster() -> std::sync::Arc<Cluster> {
    let mut shared = CLUSTER.lock();
    if let Some(cluster) = shared.as_ref().and_then(std::sync::Weak::upgrade) {
        return cluster;
    }
    let cluster = std::sync::Arc::new(Cluster::start(&["--copies", "3", "--capacity", "8Gi"]));
    *shared = Some(std::sync::Arc::downgrade(&cluster));
    cluster
}

fn folder(cluster: &Cluster, name: &str) -> std::path::PathBuf {
    let path = cluster.path(name);
    fs::create_dir(&path).unwrap();
    path
}

/// A repository of many files and commits, written as a stream that git imports at once.
fn generate_repository(at: &Path, files: usize, commits: usize) {
    let mut rng = StdRng::seed_from_u64(20);
    run("git", &["init", "-q", "-b", "main", "."], at);
    let mut import = Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(at)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    {
        let mut stream = std::io::BufWriter::new(import.stdin.take().unwrap());
        let per_commit = files.div_ceil(commits);
        for commit in 0..commits {
            let message = format!("commit {commit}");
            write!(
                stream,
                "commit refs/heads/main\ncommitter T <t@example.org> {} +0000\n",
                1_700_000_000 + commit
            )
            .unwrap();
            writeln!(stream, "data {}\n{message}", message.len()).unwrap();
            for at in 0..per_commit {
                let number = commit * per_commit + at;
                let mut content = String::new();
                for _ in 0..rng.random_range(1..60) {
                    let _ = writeln!(content, "line {} of file {number}", rng.random::<u32>());
                }
                writeln!(stream, "M 100644 inline dir{}/sub{}/file{number}.txt", number % 37, number % 11)
                    .unwrap();
                writeln!(stream, "data {}\n{content}", content.len()).unwrap();
            }
        }
        stream.flush().unwrap();
    }
    assert!(import.wait().unwrap().success());
}

#[test]
fn git_clones_a_big_repository_and_finds_nothing_wrong() {
    let cluster = cluster();
    let source = tempfile::tempdir().unwrap();
    // ATOLL_FULL=1: a repository of the size that big projects have.
    let (files, commits) =
        if std::env::var_os("ATOLL_FULL").is_some() { (20_000, 500) } else { (4_000, 100) };
    generate_repository(source.path(), files, commits);
    let at = folder(&cluster, "git");
    run("git", &["clone", "-q", "--no-local", source.path().to_str().unwrap(), "clone"], &at);
    let clone = at.join("clone");
    run("git", &["fsck", "--full", "--strict"], &clone);
    assert_eq!(run("git", &["status", "--porcelain"], &clone), "");
    assert_eq!(run("git", &["rev-list", "--count", "HEAD"], &clone).trim(), commits.to_string());
    run("git", &["gc", "-q"], &clone);
    run("git", &["fsck", "--full"], &clone);
}

#[test]
fn cargo_builds_and_builds_nothing_the_second_time() {
    let cluster = cluster();
    let at = folder(&cluster, "cargo");
    run("cargo", &["init", "-q", "--name", "built", "--vcs", "none", "."], &at);
    fs::write(at.join("src/main.rs"), "mod other;\nfn main() { println!(\"{}\", other::answer()); }\n")
        .unwrap();
    fs::write(at.join("src/other.rs"), "pub fn answer() -> u32 { 42 }\n").unwrap();
    let build = || {
        let output = Command::new("cargo")
            .args(["build", "--offline"])
            .env("CARGO_TARGET_DIR", at.join("target"))
            .current_dir(&at)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(build().contains("Compiling"));
    assert!(!build().contains("Compiling"), "times or sizes changed by themselves: cargo compiled again");
    assert_eq!(run(at.join("target/debug/built").to_str().unwrap(), &[], &at), "42\n");
}

#[test]
fn sqlite_keeps_its_integrity_in_both_journal_modes() {
    let cluster = cluster();
    let at = folder(&cluster, "sqlite");
    for journal in ["DELETE", "TRUNCATE"] {
        let mut script = format!("PRAGMA journal_mode={journal};\nPRAGMA synchronous=FULL;\n");
        script.push_str(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, v TEXT);\nCREATE INDEX i ON t (k);\n",
        );
        for round in 0..60 {
            script.push_str("BEGIN;\n");
            for row in 0..50 {
                let _ =
                    writeln!(script, "INSERT INTO t (k, v) VALUES ({}, hex(randomblob(200)));", round * row);
            }
            script.push_str("COMMIT;\n");
            if round % 10 == 9 {
                let _ = writeln!(script, "DELETE FROM t WHERE k % 7 = {}; VACUUM;", round % 7);
            }
        }
        script.push_str("PRAGMA integrity_check;\nSELECT count(*) > 0 FROM t;\n");
        let database = at.join(format!("{journal}.db"));
        let mut sqlite = Command::new("sqlite3")
            .arg(&database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sqlite.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = sqlite.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(output.status.success() && printed.ends_with("ok\n1\n"), "{journal}: {}", text(&output));
    }
}

#[test]
fn tar_brings_back_every_kind_of_file() {
    let cluster = cluster();
    let at = folder(&cluster, "tar");
    let source = tempfile::tempdir().unwrap();
    let tree = source.path().join("tree");
    fs::create_dir_all(tree.join("folder/below")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    fs::write(tree.join("folder/small"), "small").unwrap();
    fs::write(tree.join("folder/below/big"), vec![7u8; 3_000_000]).unwrap();
    fs::hard_link(tree.join("folder/small"), tree.join("hard link")).unwrap();
    symlink("folder/small", tree.join("soft link")).unwrap();
    symlink("nowhere", tree.join("dangling")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(tree.join("folder"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(tree.join("folder/small"), Some(1234), Some(4321)).unwrap();
    run("mkfifo", &["fifo"], &tree);
    run("mknod", &["null", "c", "1", "3"], &tree);
    run("mknod", &["block", "b", "7", "0"], &tree);
    run("truncate", &["-s", "5M", "sparse"], &tree);
    run("touch", &["-d", "1969-12-31T12:34:56.123456789Z", "folder/below/big"], &tree);
    run("touch", &["-d", "2150-01-01T00:00:00.5Z", "empty"], &tree);
    run("setfattr", &["-n", "user.note", "-v", "kept", "folder/small"], &tree);
    let archive = source.path().join("tree.tar");
    let archive = archive.to_str().unwrap();
    run("tar", &["--xattrs", "--format=posix", "-cf", archive, "tree"], source.path());
    run("tar", &["--xattrs", "--xattrs-include=user.*", "-xpf", archive], &at);
    run("tar", &["--xattrs", "-df", archive], &at);
    let list = [
        "-c",
        "find tree -printf '%p %y %m %U %G %l %T@ %s %n\\n' | grep -v ' d ' | sort; find tree -type f | sort | xargs -d '\\n' getfattr -d",
    ];
    assert_eq!(run("sh", &list, &at), run("sh", &list, source.path()));
}

#[test]
fn rsync_has_nothing_to_do_the_second_time() {
    let cluster = cluster();
    let at = folder(&cluster, "rsync");
    let arguments = ["-aHX", "--itemize-changes", "/usr/include/linux/", "copy/"];
    assert!(!run("rsync", &arguments, &at).is_empty());
    assert_eq!(run("rsync", &arguments, &at), "", "rsync found differences in what it had just copied");
    let checked = ["-aHX", "--checksum", "--itemize-changes", "/usr/include/linux/", "copy/"];
    assert_eq!(run("rsync", &checked, &at), "");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let cluster = cluster();
    let at = folder(&cluster, "fio");
    for (name, options) in [
        ("sequential", &["--rw=write", "--bs=1M", "--size=128M"][..]),
        ("random", &["--rw=randwrite", "--bs=4k", "--size=16M", "--fsync=64"]),
        ("mixed", &["--rw=randrw", "--bsrange=512-70k", "--size=16M", "--ioengine=psync", "--end_fsync=1"]),
        ("mapped", &["--rw=randwrite", "--bs=4k", "--size=8M", "--ioengine=mmap"]),
        ("direct", &["--rw=randwrite", "--bs=4k", "--size=8M", "--direct=1"]),
    ] {
        let mut arguments =
            vec!["--output-format=terse", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
        let name = format!("--name={name}");
        arguments.push(&name);
        arguments.extend_from_slice(options);
        run("fio", &arguments, &at);
    }
}

#[test]
fn dbench_runs_without_an_error() {
    let cluster = cluster();
    let at = folder(&cluster, "dbench");
    let output = run("dbench", &["-D", at.to_str().unwrap(), "-t", "5", "4"], &at);
    assert!(output.contains("Throughput"), "{output}");
}
