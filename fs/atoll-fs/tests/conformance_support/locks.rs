//! Locks: of processes, of open files, and flock. Each user's thread has its own table of open files, which is what
//! the kernel takes for a process here.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::harness::*;

const SET: i32 = libc::F_SETLK;
const OPEN_FILE: i32 = libc::F_OFD_SETLK;
const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const UNLOCK: i32 = libc::F_UNLCK;

pub fn run(cases: &mut Cases) {
    for open_file in [false, true] {
        conflicts(cases, open_file);
        ranges(cases, open_file);
    }
    testing(cases);
    closing(cases);
    flocks(cases);
    apart(cases);
    errors(cases);
    waiting(cases);
    deadlock(cases);
}

fn lock_of(kind: i32, start: i64, length: i64) -> libc::flock {
    // SAFETY: plain numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    lock.l_len = length;
    lock
}

fn lock(fd: i32, command: i32, kind: i32, start: i64, length: i64) -> Seen {
    let lock = lock_of(kind, start, length);
    // SAFETY: an open descriptor and a structure that outlives the call.
    seen(unsafe { libc::fcntl(fd, command, &raw const lock) })
}

fn flock(fd: i32, operation: i32) -> Seen {
    // SAFETY: a descriptor and a plain number.
    seen(unsafe { libc::flock(fd, operation) })
}

/// Opens a file as a user and keeps it.
fn held(cases: &Cases, user: User, path: &Path, flags: i32) -> i32 {
    let path = path.to_owned();
    cases.as_user(user, move || open(&path, flags, 0)).unwrap()
}

fn file(cases: &mut Cases) -> std::path::PathBuf {
    let path = cases.folder().join("file");
    put(&path, &[0; 1000], ALICE, 0o666);
    path
}

/// Which kinds keep which off, and that whoever has a lock may change it.
fn conflicts(cases: &mut Cases, open_file: bool) {
    let command = if open_file { OPEN_FILE } else { SET };
    for (first, second, conflict) in
        [(READ, READ, false), (READ, WRITE, true), (WRITE, READ, true), (WRITE, WRITE, true)]
    {
        for (start, length, touches) in
            [(0, 10, true), (9, 1, true), (10, 10, false), (5, 0, true), (0, 0, true), (20, 5, false)]
        {
            let path = file(cases);
            let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
            cases.expect("a first lock", ALICE, 0, move || lock(a, command, first, 0, 10));
            let errno = if conflict && touches { libc::EAGAIN } else { 0 };
            let what = format!(
                "kind {second} at {start}+{length} after kind {first} at 0+10, open files: {open_file}"
            );
            cases.expect(&what, BOB, errno, move || lock(b, command, second, start, length));
            cases.expect("letting go", ALICE, 0, move || lock(a, command, UNLOCK, 0, 0));
            cases.expect(format_args!("{what}, then"), BOB, 0, move || {
                lock(b, command, second, start, length)
            });
            cases.as_user(ALICE, move || close(a)).unwrap();
            cases.as_user(BOB, move || close(b)).unwrap();
        }
    }
}

/// Ranges are split by what is set within them, and joined again.
fn ranges(cases: &mut Cases, open_file: bool) {
    let command = if open_file { OPEN_FILE } else { SET };
    let path = file(cases);
    let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
    for (kind, start, length) in [
        (WRITE, 0, 100),
        (UNLOCK, 40, 20),
        (READ, 70, 10),
        (WRITE, 55, 10),
        (UNLOCK, 0, 5),
        (READ, 95, 0),
        (UNLOCK, 200, 50),
        (WRITE, 30, 40),
        (UNLOCK, 0, 0),
    ] {
        cases.expect(format_args!("kind {kind} at {start}+{length}"), ALICE, 0, move || {
            lock(a, command, kind, start, length)
        });
        // What bob may have, byte by byte, is what a table of bytes says.
        let table = cases.as_user(BOB, move || {
            let may = |kind: i32, at: i64| {
                let taken = lock(b, command, kind, at, 1).is_ok();
                let _ = lock(b, command, UNLOCK, at, 1);
                taken
            };
            (0..300).step_by(5).map(|at| (may(READ, at), may(WRITE, at))).collect::<Vec<_>>()
        });
        MODEL.with_borrow_mut(|model| {
            let end = if length == 0 { model.len() } else { (start + length) as usize };
            model[start as usize..end.min(1000)].fill(kind);
            let wanted: Vec<_> =
                (0..300).step_by(5).map(|at| (model[at] != WRITE, model[at] == UNLOCK)).collect();
            cases.equal(format_args!("what is left after kind {kind} at {start}+{length}"), table, wanted);
        });
    }
    cases.as_user(ALICE, move || close(a)).unwrap();
    cases.as_user(BOB, move || close(b)).unwrap();
}

thread_local! {
    /// The kind of lock at each byte.
    static MODEL: std::cell::RefCell<Vec<i32>> = std::cell::RefCell::new(vec![UNLOCK; 1000]);
}

/// `F_GETLK`
fn testing(cases: &mut Cases) {
    let path = file(cases);
    let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
    let test = |kind: i32, start: i64, length: i64| {
        move || {
            let mut lock = lock_of(kind, start, length);
            // SAFETY: an open descriptor and a structure that outlives the call.
            seen(unsafe { libc::fcntl(b, libc::F_GETLK, &raw mut lock) })?;
            Ok((i32::from(lock.l_type), lock.l_start, lock.l_len, lock.l_pid))
        }
    };
    let free = |found: Result<(i32, i64, i64, i32), i32>| found.map(|found| found.0);
    let found = cases.as_user(BOB, test(WRITE, 0, 0));
    cases.equal("nothing is in the way", free(found), Ok(UNLOCK));
    cases.expect("a lock", ALICE, 0, move || lock(a, SET, READ, 10, 20));
    let pid = std::process::id() as i32;
    let found = cases.as_user(BOB, test(WRITE, 0, 0));
    cases.equal("what is in the way", found, Ok((READ, 10, 20, pid)));
    let found = cases.as_user(BOB, test(READ, 0, 0));
    cases.equal("shared locks aren't", free(found), Ok(UNLOCK));
    let found = cases.as_user(BOB, test(WRITE, 0, 10));
    cases.equal("other bytes aren't", free(found), Ok(UNLOCK));
    cases.expect("another to the end", ALICE, 0, move || lock(a, SET, WRITE, 500, 0));
    let found = cases.as_user(BOB, test(READ, 100, 0));
    cases.equal("one to the end is", found, Ok((WRITE, 500, 0, pid)));
    cases.as_user(ALICE, move || close(a)).unwrap();
    let found = cases.as_user(BOB, test(WRITE, 0, 0));
    cases.equal("nothing after closing", free(found), Ok(UNLOCK));
    // An open file's lock is no process's: -1 on a local filesystem, 0 where the kernel passes on processes alone.
    let a = held(cases, ALICE, &path, libc::O_RDWR);
    cases.expect("an open file's lock", ALICE, 0, move || lock(a, OPEN_FILE, WRITE, 5, 5));
    let found = cases.as_user(BOB, test(WRITE, 0, 0));
    let (lock_found, pid) =
        (found.map(|found| (found.0, found.1, found.2)), found.map_or(0, |found| found.3));
    cases.equal("an open file's lock is in the way", lock_found, Ok((WRITE, 5, 5)));
    cases.holds(format_args!("an open file's lock names no process, not {pid}"), pid == 0 || pid == -1);
    cases.as_user(ALICE, move || close(a)).unwrap();
    cases.as_user(BOB, move || close(b)).unwrap();
}

/// A process's locks go when it closes any descriptor of the file; an open file's when it is closed for good.
fn closing(cases: &mut Cases) {
    for (command, survives) in [(SET, false), (OPEN_FILE, true)] {
        let path = file(cases);
        let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
        let other = held(cases, ALICE, &path, libc::O_RDONLY);
        cases.expect("a lock", ALICE, 0, move || lock(a, command, WRITE, 0, 0));
        cases.expect("closing another descriptor", ALICE, 0, move || close(other));
        let errno = if survives { libc::EAGAIN } else { 0 };
        cases.expect("is it gone", BOB, errno, move || lock(b, command, WRITE, 0, 0));
        cases.as_user(BOB, move || lock(b, command, UNLOCK, 0, 0)).unwrap();
        cases.expect("a lock again", ALICE, 0, move || lock(a, command, WRITE, 0, 0));
        // SAFETY: an open descriptor.
        let copy = cases.as_user(ALICE, move || seen(unsafe { libc::dup(a) })).unwrap() as i32;
        cases.expect("closing one of two for the same open file", ALICE, 0, move || close(a));
        cases.expect("is it gone now", BOB, errno, move || lock(b, command, WRITE, 0, 0));
        cases.as_user(BOB, move || lock(b, command, UNLOCK, 0, 0)).unwrap();
        cases.expect("closing the last", ALICE, 0, move || close(copy));
        cases.expect("it is gone in any case", BOB, 0, move || lock(b, command, WRITE, 0, 0));
        cases.as_user(BOB, move || close(b)).unwrap();
    }
}

fn flocks(cases: &mut Cases) {
    let (shared, exclusive, no_wait) = (libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_NB);
    for (first, second, errno) in [
        (shared, shared, 0),
        (shared, exclusive, libc::EWOULDBLOCK),
        (exclusive, shared, libc::EWOULDBLOCK),
        (exclusive, exclusive, libc::EWOULDBLOCK),
    ] {
        for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
            let path = file(cases);
            let (a, b) = (held(cases, ALICE, &path, access), held(cases, BOB, &path, access));
            cases.expect("a first flock", ALICE, 0, move || flock(a, first | no_wait));
            cases.expect(format_args!("flock {second} after {first}"), BOB, errno, move || {
                flock(b, second | no_wait)
            });
            cases.expect("letting go", ALICE, 0, move || flock(a, libc::LOCK_UN));
            cases.expect("flock then", BOB, 0, move || flock(b, second | no_wait));
            cases.as_user(BOB, move || close(b)).unwrap();
            cases.expect("flock after closing", ALICE, 0, move || flock(a, exclusive | no_wait));
            cases.as_user(ALICE, move || close(a)).unwrap();
        }
    }
    let path = file(cases);
    let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, ALICE, &path, libc::O_RDWR));
    cases.expect("flock", ALICE, 0, move || flock(a, exclusive | no_wait));
    cases.expect("flock by another open file of the same process", ALICE, libc::EWOULDBLOCK, move || {
        flock(b, exclusive | no_wait)
    });
    cases.expect("to shared", ALICE, 0, move || flock(a, shared | no_wait));
    cases.expect("then the other too", ALICE, 0, move || flock(b, shared | no_wait));
    cases.as_user(ALICE, move || close(a)).unwrap();
    cases.expect("to exclusive when alone", ALICE, 0, move || flock(b, exclusive | no_wait));
    cases.as_user(ALICE, move || close(b)).unwrap();
    let path = file(cases);
    let a = held(cases, ALICE, &path, libc::O_RDWR);
    cases.expect("flock of nothing sensible", ALICE, libc::EINVAL, move || flock(a, 64));
    cases.as_user(ALICE, move || close(a)).unwrap();
    cases.expect("flock of a closed descriptor", ALICE, libc::EBADF, || flock(999_999, libc::LOCK_SH));
}

/// flock has nothing to do with record locks; those of processes and of open files do with one another.
fn apart(cases: &mut Cases) {
    let path = file(cases);
    let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
    cases.expect("flock", ALICE, 0, move || flock(a, libc::LOCK_EX));
    cases.expect("a record lock beside it", BOB, 0, move || lock(b, SET, WRITE, 0, 0));
    cases.expect("an open file's lock is in the way of a process's", ALICE, libc::EAGAIN, move || {
        lock(a, OPEN_FILE, WRITE, 0, 0)
    });
    cases.expect("and in the way of its own process's", BOB, libc::EAGAIN, move || {
        lock(b, OPEN_FILE, WRITE, 0, 0)
    });
    cases.as_user(ALICE, move || close(a)).unwrap();
    cases.as_user(BOB, move || close(b)).unwrap();
}

fn errors(cases: &mut Cases) {
    let path = file(cases);
    for command in [SET, OPEN_FILE] {
        for (access, kind, errno) in [
            (libc::O_RDONLY, WRITE, libc::EBADF),
            (libc::O_WRONLY, READ, libc::EBADF),
            (libc::O_RDONLY, READ, 0),
            (libc::O_WRONLY, WRITE, 0),
        ] {
            let fd = held(cases, ALICE, &path, access);
            cases.expect(
                format_args!("kind {kind} by a descriptor with access {access}"),
                ALICE,
                errno,
                move || lock(fd, command, kind, 0, 0),
            );
            cases.as_user(ALICE, move || close(fd)).unwrap();
        }
        let fd = held(cases, ALICE, &path, libc::O_RDWR);
        for (what, kind, start, length, errno) in [
            ("an unknown kind", 77, 0, 0, libc::EINVAL),
            ("before the start", WRITE, -1, 1, libc::EINVAL),
            ("back past the start", WRITE, 5, -10, libc::EINVAL),
            ("backwards", WRITE, 10, -5, 0),
            ("past the largest offset", WRITE, i64::MAX, 2, libc::EOVERFLOW),
            ("the last byte", WRITE, i64::MAX, 1, 0),
        ] {
            cases.expect(format_args!("a lock {what}"), ALICE, errno, move || {
                lock(fd, command, kind, start, length)
            });
        }
        cases.as_user(ALICE, move || close(fd)).unwrap();
        cases.expect("a lock of a closed descriptor", ALICE, libc::EBADF, move || {
            lock(999_999, command, WRITE, 0, 0)
        });
    }
}

/// A blocked lock is had as soon as it is free.
fn waiting(cases: &mut Cases) {
    for (what, take, wait, release) in [
        (
            "a process's",
            (|fd| lock(fd, SET, WRITE, 0, 0)) as fn(i32) -> Seen,
            (|fd| lock(fd, libc::F_SETLKW, READ, 5, 1)) as fn(i32) -> Seen,
            (|fd| lock(fd, SET, UNLOCK, 0, 0)) as fn(i32) -> Seen,
        ),
        (
            "an open file's",
            |fd| lock(fd, OPEN_FILE, WRITE, 0, 0),
            |fd| lock(fd, libc::F_OFD_SETLKW, WRITE, 5, 1),
            |fd| lock(fd, OPEN_FILE, UNLOCK, 0, 0),
        ),
        (
            "flock",
            |fd| flock(fd, libc::LOCK_EX),
            |fd| flock(fd, libc::LOCK_SH),
            |fd| flock(fd, libc::LOCK_UN),
        ),
        (
            "a process's that closes",
            |fd| lock(fd, SET, WRITE, 0, 0),
            |fd| lock(fd, libc::F_SETLKW, WRITE, 0, 0),
            close,
        ),
        (
            "an open file's that is closed",
            |fd| lock(fd, OPEN_FILE, WRITE, 0, 0),
            |fd| lock(fd, libc::F_OFD_SETLKW, WRITE, 0, 0),
            close,
        ),
        ("flock that is closed", |fd| flock(fd, libc::LOCK_EX), |fd| flock(fd, libc::LOCK_EX), close),
    ] {
        let path = file(cases);
        let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
        cases.expect(what, ALICE, 0, move || take(a));
        let had = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&had);
        let (waiting, waits) = std::thread::scope(|scope| {
            let cases = &*cases;
            let waiter = scope.spawn(move || {
                cases.as_user(BOB, move || {
                    let done = wait(b);
                    told.store(true, Ordering::SeqCst);
                    done
                })
            });
            // It must not come through while the lock is held: a moment is enough to show that it usually would.
            std::thread::sleep(Duration::from_millis(20));
            let waits = !had.load(Ordering::SeqCst);
            let released = cases.as_user(ALICE, move || release(a));
            (waiter.join().unwrap().and(released), waits)
        });
        cases.holds(format_args!("{what}: the other one waits"), waits);
        cases.equal(format_args!("{what}: and has it then"), waiting, Ok(0));
        cases.as_user(BOB, move || close(b)).unwrap();
        let _ = cases.as_user(ALICE, move || close(a));
    }
}

/// Two processes that wait for each other: one is told.
fn deadlock(cases: &mut Cases) {
    let path = file(cases);
    let (a, b) = (held(cases, ALICE, &path, libc::O_RDWR), held(cases, BOB, &path, libc::O_RDWR));
    cases.expect("the first byte", ALICE, 0, move || lock(a, SET, WRITE, 0, 1));
    cases.expect("the second byte", BOB, 0, move || lock(b, SET, WRITE, 1, 1));
    let began = Instant::now();
    let (alice, bob) = std::thread::scope(|scope| {
        let cases = &*cases;
        let wait = |user: User, fd: i32, at: i64| {
            scope.spawn(move || {
                cases.as_user(user, move || {
                    let waited = lock(fd, libc::F_SETLKW, WRITE, at, 1);
                    // Whoever is told lets go of what it has, as it should.
                    if waited == Err(libc::EDEADLK) {
                        lock(fd, SET, UNLOCK, 0, 0)?;
                    }
                    waited
                })
            })
        };
        let (alice, bob) = (wait(ALICE, a, 1), wait(BOB, b, 0));
        (alice.join().unwrap(), bob.join().unwrap())
    });
    let mut seen = [alice.err(), bob.err()];
    seen.sort();
    cases.equal("one of two that wait for each other is told", seen, [None, Some(libc::EDEADLK)]);
    cases.holds("soon", began.elapsed() < Duration::from_secs(30));
    cases.as_user(ALICE, move || close(a)).unwrap();
    cases.as_user(BOB, move || close(b)).unwrap();
}
