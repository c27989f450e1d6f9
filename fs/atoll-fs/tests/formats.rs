//! Data folders of each format version: what an earlier version has left is read, or refused as documented

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{atoll_fs, require_fuse, run, text};

/// Where data folders are kept as each version has left them, killed in the middle of its work: `v<version>.tar.gz`. When a
/// format changes, one of the version before is added here.
fn kept() -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs this")).join("tests/formats")
}

/// What is in each of them.
fn check(mount: &Path) {
    let read = |name: &str| fs::read(mount.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(read("inline"), b"a small file\n");
    assert_eq!(read("folder/second-name"), b"a small file\n");
    let inline = fs::metadata(mount.join("inline")).unwrap();
    assert_eq!((inline.nlink(), inline.permissions().mode() & 0o777), (2, 0o640));
    let chunked: Vec<u8> = (0..300_000u32).map(|at| (at * 7 + at / 4096) as u8).collect();
    assert!(read("folder/renamed") == chunked);
    assert!(!mount.join("folder/chunked").exists());
    assert_eq!(fs::read_link(mount.join("link")).unwrap(), Path::new("folder/chunked"));
    let sparse = read("folder/inner/sparse");
    assert!(sparse.len() == 10_000_000 && &sparse[9_000_000..9_000_003] == b"end");
    assert!(sparse[..9_000_000].iter().all(|byte| *byte == 0));
    let later: Vec<u8> = (0..20_000u32).map(|at| (at * 5 + 3) as u8).collect();
    assert!(read("later") == later, "what was in the log only");
}

#[test]
fn data_of_every_version_is_read_and_written_on() {
    require_fuse();
    let mut versions = 0;
    for entry in fs::read_dir(kept()).unwrap().map(Result::unwrap) {
        versions += 1;
        let folder = tempfile::Builder::new().prefix("atoll-formats-").tempdir().unwrap();
        let (data, mount) = (folder.path().join("data"), folder.path().join("mnt"));
        run("tar", &["-xzf", entry.path().to_str().unwrap()], folder.path());
        let local = |what: &str| {
            let mut command = std::process::Command::new(atoll_fs());
            let output = command.args(["local", what]).arg(&mount).arg("--data").arg(&data).output().unwrap();
            assert!(output.status.success(), "{}: {}", entry.path().display(), text(&output));
        };
        // Again: what this version has written is read by it, too.
        for round in 0..2 {
            local("up");
            let seen = std::panic::catch_unwind(|| {
                check(&mount);
                fs::write(mount.join(format!("new-{round}")), b"new").unwrap();
            });
            local("down");
            seen.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    }
    assert!(versions > 0, "no version is kept");
}
