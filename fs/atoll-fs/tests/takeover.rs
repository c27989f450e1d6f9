//! Client processes that are killed while programs use their mount: a successor continues, no call fails, and nothing is lost or
//! done twice.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod served_support;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use atoll_fuse::device;
use nix::libc;

use served_support::{Client, Kept, Servers, folder};

/// Where the programs find their mount, and where they say how much they have done.
const PLACE: &str = "ATOLL_TEST_PLACE";
const ROUNDS: &str = "ATOLL_TEST_ROUNDS";
/// Kills of one run.
const KILLS: u32 = 10;
/// Names in the directory that is listed.
const LISTED: usize = 200;
/// Bytes of a line of the log.
const LINE_BYTES: usize = 24;

/// What the programs share.
struct Run {
    place: PathBuf,
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Run {
    /// Does something again and again until the end, with the number of the round.
    fn repeat(&self, mut round: impl FnMut(u64)) -> u64 {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            round(number);
            number += 1;
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        number
    }

    fn own(&self, name: &str) -> PathBuf {
        let path = self.place.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

/// Every call that would fail if it were carried out twice.
fn names(run: &Run) {
    let own = run.own("names");
    run.repeat(|number| {
        let directory = own.join(format!("d{number}"));
        fs::create_dir(&directory).unwrap();
        let (a, b, c, link) =
            (directory.join("a"), directory.join("b"), directory.join("c"), directory.join("link"));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&a).unwrap();
        file.write_all(&[number as u8; 3000]).unwrap();
        drop(file);
        fs::rename(&a, &b).unwrap();
        fs::hard_link(&b, &c).unwrap();
        std::os::unix::fs::symlink("b", &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("b"));
        assert_eq!(fs::read(&link).unwrap(), [number as u8; 3000]);
        for name in [b, c, link] {
            fs::remove_file(name).unwrap();
        }
        fs::remove_dir(&directory).unwrap();
    });
    assert_eq!(fs::read_dir(own).unwrap().count(), 0);
}

/// Lines that are appended once each.
fn log(run: &Run) {
    let path = run.own("log").join("log");
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path).unwrap();
    let line = |number: u64| format!("{number:>width$}\n", width = LINE_BYTES - 1);
    let lines = run.repeat(|number| {
        assert_eq!(file.write(line(number).as_bytes()).unwrap(), LINE_BYTES);
        if number % 16 == 0 {
            file.sync_all().unwrap();
        }
    });
    let expected: String = (0..lines).map(line).collect();
    assert!(fs::read_to_string(&path).unwrap() == expected, "lines are missing or there twice");
}

/// Blocks that are overwritten, and read as they were written last.
fn blocks(run: &Run) {
    let path = run.own("blocks").join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut written: BTreeMap<u64, u64> = BTreeMap::new();
    let check = |file: &File, at: u64, number: u64| {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, at * 4096).unwrap();
        assert!(block.chunks(8).all(|word| word == number.to_le_bytes()), "block {at} isn't number {number}");
    };
    run.repeat(|number| {
        let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        let block: Vec<u8> = number.to_le_bytes().iter().copied().cycle().take(4096).collect();
        file.write_all_at(&block, at * 4096).unwrap();
        written.insert(at, number);
        check(&file, at, number);
        match number % 32 {
            7 => file.sync_data().unwrap(),
            // A handle of its own.
            23 => written.iter().for_each(|(at, number)| check(&File::open(&path).unwrap(), *at, *number)),
            _ => {}
        }
    });
    drop(file);
    let file = File::open(&path).unwrap();
    written.iter().for_each(|(at, number)| check(&file, *at, *number));
}

/// A lock that is held all the time keeps others out.
fn locks(run: &Run) {
    let path = run.own("locks").join("file");
    let holder = File::create_new(&path).unwrap();
    let flock = |file: &File, how| {
        // SAFETY: no memory is passed.
        match unsafe { libc::flock(file.as_raw_fd(), how) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        }
    };
    flock(&holder, libc::LOCK_EX).unwrap();
    let other = File::open(&path).unwrap();
    run.repeat(|number| {
        assert_eq!(flock(&other, libc::LOCK_EX | libc::LOCK_NB), Err(libc::EWOULDBLOCK), "try {number}");
        if number % 8 == 0 {
            // Let go and taken again.
            flock(&holder, libc::LOCK_UN).unwrap();
            flock(&other, libc::LOCK_EX | libc::LOCK_NB).unwrap();
            assert_eq!(flock(&holder, libc::LOCK_EX | libc::LOCK_NB), Err(libc::EWOULDBLOCK));
            flock(&other, libc::LOCK_UN).unwrap();
            flock(&holder, libc::LOCK_EX | libc::LOCK_NB).unwrap();
        }
    });
}

/// A file without a name is there for who has it open.
fn unnamed(run: &Run) {
    let path = run.own("unnamed").join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    run.repeat(|number| {
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&number.to_le_bytes()).unwrap();
        if number % 16 == 3 {
            file.sync_all().unwrap();
        }
        let mut found = [0; 8];
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_exact(&mut found).unwrap();
        assert_eq!(u64::from_le_bytes(found), number);
        if number % 32 == 9 {
            let flags = libc::O_TMPFILE;
            let nameless =
                OpenOptions::new().read(true).write(true).custom_flags(flags).open(path.parent().unwrap());
            nameless.unwrap().write_all(b"nameless").unwrap();
        }
    });
}

/// A directory is listed whole.
fn listing(run: &Run) {
    let own = run.own("listed");
    for number in 0..LISTED {
        File::create_new(own.join(format!("{number}"))).unwrap();
    }
    run.repeat(|_| assert_eq!(fs::read_dir(&own).unwrap().map(Result::unwrap).count(), LISTED));
}

/// Attributes that may be made once only, and removed once.
fn attributes(run: &Run) {
    let path = run.own("attributes").join("file");
    File::create_new(&path).unwrap();
    let (path, name) = (CString::new(path.to_str().unwrap()).unwrap(), CString::new("user.a").unwrap());
    let check = |result: i32| assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    run.repeat(|number| {
        let value = number.to_le_bytes();
        // SAFETY: the strings and the value outlive the calls.
        unsafe {
            check(libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 8, libc::XATTR_CREATE));
            check(libc::removexattr(path.as_ptr(), name.as_ptr()));
        }
    });
}

/// Files that are written, have their times and modes set, and are closed: as they were set they stay, whoever commits their data.
fn closed(run: &Run) {
    let own = run.own("closed");
    let mut written: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    let time = |number: u64| UNIX_EPOCH + Duration::from_secs(1_000_000_000 + number);
    let check = |at: u64, &(number, bytes): &(u64, usize)| {
        let path = own.join(at.to_string());
        let found = fs::metadata(&path).unwrap();
        let (mode, modified) = (found.permissions().mode() & 0o7777, found.modified().unwrap());
        assert_eq!((mode, modified, found.len()), (0o4750, time(number), bytes as u64), "round {number}");
        let content = fs::read(&path).unwrap();
        assert!(content == vec![number as u8; bytes], "the content of round {number}");
    };
    run.repeat(|number| {
        let at = number % 16;
        let path = own.join(at.to_string());
        if number % 3 == 0 && written.contains_key(&at) {
            fs::remove_file(&path).unwrap();
        }
        let bytes = 10_000 + (number as usize * 7919) % 60_000;
        let mut file = File::create(&path).unwrap();
        file.write_all(&vec![number as u8; bytes]).unwrap();
        file.set_permissions(Permissions::from_mode(0o4750)).unwrap();
        file.set_modified(time(number)).unwrap();
        drop(file);
        written.insert(at, (number, bytes));
        let other = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        written.get(&other).iter().for_each(|written| check(other, written));
    });
    written.iter().for_each(|(at, written)| check(*at, written));
}

/// The programs, until their standard input ends. In a process of its own: who has files open on a mount that nobody serves
/// can't start processes, since exec(2) closes them.
fn programs(place: PathBuf, rounds: &Path) {
    let run = Arc::new(Run { place, stop: AtomicBool::new(false), rounds: AtomicU64::new(0) });
    let programs: Vec<thread::JoinHandle<()>> =
        [names, log, blocks, locks, unnamed, listing, attributes, closed]
            .map(|program: fn(&Run)| {
                let run = Arc::clone(&run);
                thread::spawn(move || {
                    // The others end, too.
                    let guard = StopAll(&run.stop);
                    program(&run);
                    std::mem::forget(guard);
                })
            })
            .into();
    let waiting = Arc::clone(&run);
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        waiting.stop.store(true, Ordering::Relaxed);
    });
    while !run.stop.load(Ordering::Relaxed) {
        fs::write(rounds, run.rounds.load(Ordering::Relaxed).to_string()).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    let failed = programs.into_iter().filter_map(|program| program.join().err()).count();
    assert_eq!(failed, 0, "programs failed");
}

/// The process of the programs; it ends with this.
struct Programs {
    process: Child,
    rounds: PathBuf,
}

impl Programs {
    fn start(test: &str, servers: &Servers, place: &Path) -> Programs {
        let rounds = servers.path("rounds");
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(PLACE, place)
            .env(ROUNDS, &rounds)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Programs { process, rounds }
    }

    fn rounds(&mut self) -> u64 {
        assert_eq!(self.process.try_wait().unwrap(), None, "the programs have failed");
        fs::read_to_string(&self.rounds).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(0)
    }

    fn end(mut self) {
        drop(self.process.stdin.take());
        let process = &mut self.process;
        common::wait_until("the programs end", || process.try_wait().unwrap().is_some());
        assert!(process.wait().unwrap().success(), "the programs have failed");
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs programs on a mount whose client is killed again and again. `test`: who asks for it; the process of the programs does the
/// same, and is told its place.
fn programs_over_kills(test: &str, flags: &[&str]) {
    if let (Some(place), Some(rounds)) = (std::env::var_os(PLACE), std::env::var_os(ROUNDS)) {
        return programs(place.into(), Path::new(&rounds));
    }
    let servers = Servers::start(flags);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    let kept: Kept = client.mount(&servers, &place);
    let mut programs = Programs::start(test, &servers, &place);
    for kill in 0..KILLS {
        let before = programs.rounds();
        common::wait_until("the programs continue", || programs.rounds() > before + 20);
        thread::sleep(Duration::from_millis(u64::from(kill) * 97 % 500));
        client.kill();
        client = servers.successor("node-1", &kept);
    }
    let before = programs.rounds();
    common::wait_until("the programs continue", || programs.rounds() > before);
    programs.end();
    drop(kept);
    ends_clean(&servers, &place, &mut client);
}

/// Unmounts, mounts again, and looks whether everything that has no name was freed.
fn ends_clean(servers: &Servers, place: &Path, client: &mut Client) {
    device::unmount(place, false).unwrap();
    assert_eq!(client.exit_code(), Some(0));
    let mut again = servers.client("node-1", &servers.key());
    drop(again.mount(servers, place));
    let log = fs::read_to_string(place.join("log/log")).unwrap();
    assert!(log.lines().enumerate().all(|(number, line)| line.trim() == number.to_string()));
    device::unmount(place, false).unwrap();
    common::wait_until("nothing without a name is left", || servers.status()["orphans"] == 0);
}

struct StopAll<'a>(&'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_call_fails_while_the_client_of_a_shared_volume_is_killed() {
    programs_over_kills("no_call_fails_while_the_client_of_a_shared_volume_is_killed", &[]);
}

#[test]
fn no_call_fails_while_the_client_of_a_volume_for_one_mount_is_killed() {
    programs_over_kills(
        "no_call_fails_while_the_client_of_a_volume_for_one_mount_is_killed",
        &["--exclusive"],
    );
}

/// What people do with a filesystem: a repository, an archive, a database. Their results are right or the script ends with 1.
const SCRIPT: &str = r#"
set -eu
source=$1; place=$2
cd "$place"
git clone -q --no-local "$source" clone
git -C clone fsck --full --strict
test -z "$(git -C clone status --porcelain)"
tar -C "$source" -cf archive.tar .
mkdir extracted
tar -C extracted -xf archive.tar
diff -r "$source" extracted
for round in 1 2 3; do
  sqlite3 base.db "create table if not exists t (a integer primary key, b text);
    insert into t (b) select hex(randomblob(100)) from (values (1), (2), (3), (4), (5));"
  sqlite3 base.db "begin; update t set b = b || '$round' where a % 2 = 0; delete from t where a % 7 = 3; commit;"
done
test "$(sqlite3 base.db 'pragma integrity_check')" = ok
cp -a extracted copied
diff -r extracted copied
rm -r clone extracted
"#;

/// `kind`: of the volume. Returns the number of kills.
fn script_over_kills(kind: &[&str]) -> u32 {
    let source = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| common::run("git", arguments, source.path());
    git(&["init", "-q", "-b", "main", "."]);
    for number in 0..80_usize {
        let directory = source.path().join(format!("d{}", number % 12));
        fs::create_dir_all(&directory).unwrap();
        let bytes = if number % 5 == 0 { 40_000 } else { 900 };
        fs::write(directory.join(format!("f{number}")), format!("{number} ").repeat(bytes / 4)).unwrap();
    }
    git(&["add", "-A"]);
    git(&["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "all"]);
    let servers = Servers::start(kind);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    let kept = client.mount(&servers, &place);
    let log = File::create(servers.path("script")).unwrap();
    let mut script = Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .args([source.path(), &place])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut kills = 0;
    let ended = loop {
        thread::sleep(Duration::from_millis(150 + u64::from(kills) * 89 % 400));
        if let Some(ended) = script.try_wait().unwrap() {
            break ended;
        }
        client.kill();
        client = servers.successor("node-1", &kept);
        kills += 1;
    };
    let said = fs::read_to_string(servers.path("script")).unwrap();
    assert!(ended.success(), "after {kills} kills: {said}");
    drop(kept);
    device::unmount(&place, false).unwrap();
    assert_eq!(client.exit_code(), Some(0));
    kills
}

#[test]
fn real_programs_do_not_notice_that_the_client_is_killed() {
    for kind in [&["--exclusive"][..], &[]] {
        let kills = script_over_kills(kind);
        assert!(kills > 0, "the script was too fast to be disturbed");
    }
}

#[test]
fn what_was_written_outlives_a_successor_that_fails() {
    let servers = Servers::start(&[]);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    let kept = client.mount(&servers, &place);
    // In another process, which has the file open.
    let mut writer = Command::new("sh")
        .args(["-c", "exec 9>\"$0\"; printf 'not synced' >&9; echo written; read line"])
        .arg(place.join("file"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 7];
    writer.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    client.kill();
    let refused = servers.refused_successor("node-1", &kept);
    assert!(refused.starts_with("failed 4 "), "{refused}");
    client = servers.successor("node-1", &kept);
    drop(writer.stdin.take());
    writer.wait().unwrap();
    assert_eq!(fs::read(place.join("file")).unwrap(), b"not synced");
    drop(kept);
    device::unmount(&place, false).unwrap();
    assert_eq!(client.exit_code(), Some(0));
}
