//! Times: what changes them, who may set them, and that they go forward.

use std::path::Path;

use super::harness::*;

type Time = (i64, i64);

pub fn run(cases: &mut Cases) {
    changes(cases);
    setting(cases);
    permissions(cases);
    births(cases);
    staying(cases);
    set_while_buffered(cases);
    mapped(cases);
}

fn mtime(path: &Path) -> Time {
    stat(path).map_or((0, 0), |stat| (stat.st_mtime, stat.st_mtime_nsec))
}

fn ctime(path: &Path) -> Time {
    stat(path).map_or((0, 0), |stat| (stat.st_ctime, stat.st_ctime_nsec))
}

/// Until the clock that files are stamped with has moved on.
fn tick(folder: &Path) {
    let probe = folder.join("tick");
    std::fs::write(&probe, b"").unwrap();
    let before = ctime(&probe);
    loop {
        std::fs::write(&probe, b"x").unwrap();
        if ctime(&probe) > before {
            break;
        }
    }
    std::fs::remove_file(&probe).unwrap();
}

/// What each call moves: of the file and of its folder, mtime and ctime.
fn changes(cases: &mut Cases) {
    type Call = fn(&Path) -> Seen;
    // name, call, file's mtime, file's ctime, folder's times
    let calls: [(&str, Call, bool, bool, bool); 14] = [
        ("write", |path| on(path, |fd| pwrite(fd, b"x", 0)), true, true, false),
        ("truncate", |path| truncate(path, 100), true, true, false),
        ("truncate to the same size", |path| truncate(path, 7), true, true, false),
        ("chmod", |path| chmod(path, 0o600), false, true, false),
        ("chown", |path| chown(path, 1001, 2001), false, true, false),
        ("setxattr", |path| set(path), false, true, false),
        ("link", |path| link(path, &path.with_file_name("hard")), false, true, true),
        (
            "rename",
            |path| {
                rename(path, &path.with_file_name("file"), 0)
                    .and_then(|_| rename(path, &path.with_file_name("moved"), 0))
                    .and_then(|_| rename(&path.with_file_name("moved"), path, 0))
            },
            false,
            true,
            true,
        ),
        ("stat", |path| stat(path).map(|_| 0), false, false, false),
        ("open and close", |path| opens(path, libc::O_RDWR, 0), false, false, false),
        ("access", |path| access(path, libc::R_OK), false, false, false),
        // SAFETY: an open descriptor.
        (
            "fallocate",
            |path| on(path, |fd| seen(unsafe { libc::fallocate(fd, 0, 0, 5000) })),
            true,
            true,
            false,
        ),
        (
            "creating beside it",
            |path| opens(&path.with_file_name("beside"), libc::O_CREAT | libc::O_RDWR, 0o600),
            false,
            false,
            true,
        ),
        ("mkdir beside it", |path| mkdir(&path.with_file_name("folder"), 0o700), false, false, true),
    ];
    for user in [ROOT, ALICE] {
        for (what, call, moves_mtime, moves_ctime, moves_folder) in calls {
            let folder = cases.folder();
            let at = folder.join("at");
            put_folder(&at, user, 0o777);
            let path = at.join("file");
            put(&path, b"content", user, 0o644);
            let before = (mtime(&path), ctime(&path), mtime(&at), ctime(&at));
            tick(&folder);
            let file = path.clone();
            cases.expect(what, user, 0, move || call(&file));
            let after = (mtime(&path), ctime(&path), mtime(&at), ctime(&at));
            cases.equal(format_args!("{what} moves mtime"), after.0 > before.0, moves_mtime);
            cases.equal(format_args!("{what} moves ctime"), after.1 > before.1, moves_ctime);
            cases.equal(format_args!("{what} moves the folder's mtime"), after.2 > before.2, moves_folder);
            cases.equal(format_args!("{what} moves the folder's ctime"), after.3 > before.3, moves_folder);
        }
        for (what, kind) in [("unlink", "file"), ("rmdir", "folder")] {
            let folder = cases.folder();
            let at = folder.join("at");
            put_folder(&at, user, 0o777);
            let path = at.join(kind);
            if kind == "file" {
                put(&path, b"", user, 0o644)
            } else {
                put_folder(&path, user, 0o755)
            }
            let other = folder.join("other name");
            if kind == "file" {
                std::fs::hard_link(&path, &other).unwrap();
            }
            let before = (mtime(&at), ctime(&other));
            tick(&folder);
            let is_file = kind == "file";
            cases.expect(what, user, 0, move || if is_file { unlink(&path) } else { rmdir(&path) });
            cases.holds(format_args!("{what} moves the folder's mtime"), mtime(&at) > before.0);
            if is_file {
                cases.holds("unlink moves the ctime of what has other names", ctime(&other) > before.1);
            }
        }
    }
}

fn on(path: &Path, work: fn(i32) -> Seen) -> Seen {
    let fd = open(path, libc::O_RDWR, 0)?;
    let done = work(fd);
    close(fd)?;
    done
}

fn set(path: &Path) -> Seen {
    // SAFETY: C strings and a value of one byte.
    seen(unsafe { libc::setxattr(c(path).as_ptr(), c"user.x".as_ptr(), c"v".as_ptr().cast(), 1, 0) })
}

fn utimens(path: &Path, times: Option<[libc::timespec; 2]>, flags: i32) -> Seen {
    let at = times.as_ref().map_or(std::ptr::null(), |times| times.as_ptr());
    // SAFETY: a C string; two times, or none.
    seen(unsafe { libc::utimensat(libc::AT_FDCWD, c(path).as_ptr(), at, flags) })
}

const fn time(seconds: i64, nanos: i64) -> libc::timespec {
    libc::timespec { tv_sec: seconds, tv_nsec: nanos }
}

fn setting(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        put(&path, b"", user, 0o644);
        for (seconds, nanos) in [
            (0, 0),
            (1, 1),
            (1_000_000_000, 999_999_999),
            (-1, 5),
            (-2_000_000_000, 0),
            (4_294_967_296, 7),
            (10_000_000_000, 123_456_789),
        ] {
            let file = path.clone();
            let times = [time(seconds, nanos), time(seconds + 1, nanos)];
            cases.expect(format_args!("utimensat to {seconds}.{nanos}"), user, 0, move || {
                utimens(&file, Some(times), 0)
            });
            let stat = stat(&path).unwrap();
            let found = (stat.st_atime, stat.st_atime_nsec, stat.st_mtime, stat.st_mtime_nsec);
            cases.equal(
                format_args!("times after utimensat to {seconds}.{nanos}"),
                found,
                (seconds, nanos, seconds + 1, nanos),
            );
        }
        let (now, omit) = (time(0, libc::UTIME_NOW), time(0, libc::UTIME_OMIT));
        let file = path.clone();
        cases
            .expect("utimensat of atime alone", user, 0, move || utimens(&file, Some([time(5, 6), omit]), 0));
        let found = stat(&path).unwrap();
        cases.equal("mtime stays", (found.st_atime, found.st_mtime), (5, 10_000_000_001));
        let file = path.clone();
        cases.expect("utimensat of mtime to now", user, 0, move || utimens(&file, Some([omit, now]), 0));
        let found = stat(&path).unwrap();
        cases.holds(
            "mtime is now, atime stays",
            found.st_atime == 5 && found.st_mtime > 1_600_000_000 && found.st_mtime < 10_000_000_000,
        );
        for nanos in [1_000_000_000, -1, i64::MAX] {
            let file = path.clone();
            cases.expect(format_args!("utimensat with {nanos} ns"), user, libc::EINVAL, move || {
                utimens(&file, Some([time(0, nanos), omit]), 0)
            });
        }
        let link = folder.join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(user.uid), Some(user.gid)).unwrap();
        let itself = link.clone();
        cases.expect("utimensat of a link itself", user, 0, move || {
            utimens(&itself, Some([time(77, 0), time(78, 0)]), libc::AT_SYMLINK_NOFOLLOW)
        });
        cases.equal("the link's mtime", (mtime(&link).0, mtime(&path).0 > 1_600_000_000), (78, true));
        let before = ctime(&path);
        tick(&folder);
        let file = path.clone();
        cases.expect("utimensat of nothing", user, 0, move || utimens(&file, Some([omit, omit]), 0));
        cases.equal("and ctime stays", ctime(&path), before);
    }
}

/// To now: who may write. To anything else: the owner.
fn permissions(cases: &mut Cases) {
    let folder = cases.folder();
    let (now, omit) = (time(0, libc::UTIME_NOW), time(0, libc::UTIME_OMIT));
    for (mode, writable) in [(0o666, true), (0o644, false)] {
        let path = folder.join(format!("{mode:o}"));
        put(&path, b"", ALICE, mode);
        let denied = if writable { 0 } else { libc::EACCES };
        for (what, times, errno) in [
            ("no times", None, denied),
            ("both now", Some([now, now]), denied),
            ("both omitted", Some([omit, omit]), 0),
            ("one now", Some([now, omit]), libc::EPERM),
            ("a given time", Some([time(1, 1), time(1, 1)]), libc::EPERM),
            ("one given time", Some([omit, time(1, 1)]), libc::EPERM),
        ] {
            for user in USERS {
                let errno = if user == BOB { errno } else { 0 };
                let file = path.clone();
                cases.expect(format_args!("utimensat with {what}, mode {mode:o}"), user, errno, move || {
                    utimens(&file, times, 0)
                });
            }
        }
    }
}

/// statx tells when a file was made, and that never changes.
fn births(cases: &mut Cases) {
    fn birth(path: &Path) -> Option<(i64, u32)> {
        // SAFETY: a C string, and a buffer that the call fills.
        let statx = unsafe {
            let mut statx: libc::statx = std::mem::zeroed();
            let flags = libc::AT_SYMLINK_NOFOLLOW;
            seen(libc::statx(libc::AT_FDCWD, c(path).as_ptr(), flags, libc::STATX_BTIME, &raw mut statx))
                .ok()?;
            statx
        };
        (statx.stx_mask & libc::STATX_BTIME != 0).then_some((statx.stx_btime.tv_sec, statx.stx_btime.tv_nsec))
    }
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        tick(&folder);
        let file = path.clone();
        cases.expect("creating", user, 0, move || opens(&file, libc::O_CREAT | libc::O_RDWR, 0o644));
        let born = birth(&path);
        cases.holds("a birth time is told", born.is_some());
        tick(&folder);
        let file = path.clone();
        let changed = cases.as_user(user, move || {
            truncate(&file, 100)
                .and_then(|_| chmod(&file, 0o600))
                .and_then(|_| utimens(&file, Some([time(1, 1), time(1, 1)]), 0))
        });
        cases.equal("changing everything", changed, Ok(0));
        cases.equal("the birth time stays", birth(&path), born);
        let later = folder.join("later");
        let file = later.clone();
        cases.expect("creating another", user, 0, move || opens(&file, libc::O_CREAT | libc::O_RDWR, 0o644));
        cases.holds("it is born later", birth(&later) > born);
    }
}

/// A time that was shown stays what it is until something is done: writing out what is buffered is nothing that anybody
/// did.
fn staying(cases: &mut Cases) {
    type Step = fn(i32, &Path) -> Seen;
    let steps: [(&str, Step); 6] = [
        ("a lock", |fd, _| record_lock(fd, libc::F_WRLCK)),
        ("an unlock", |fd, _| record_lock(fd, libc::F_UNLCK)),
        // SAFETY: an open descriptor.
        ("fsync", |fd, _| seen(unsafe { libc::fsync(fd) })),
        ("opening and closing", |_, path| opens(path, libc::O_RDWR, 0)),
        ("a look at the content", |fd, _| pread(fd, 10, 0).map(|_| 0)),
        ("close", |fd, _| close(fd)),
    ];
    for (what, between) in
        [("nothing", None), ("setxattr", Some(set as fn(&Path) -> Seen)), ("unlink", Some(unlink_other))]
    {
        let folder = cases.folder();
        let path = folder.join("file");
        put(&path, b"content", ROOT, 0o644);
        std::fs::hard_link(&path, path.with_file_name("other")).unwrap();
        tick(&folder);
        let fd = open(&path, libc::O_RDWR, 0).unwrap();
        // Some writes that go out together, and parts of them.
        for at in 0..5 {
            pwrite(fd, b"written", at * 100_000).unwrap();
        }
        if let Some(between) = between {
            between(&path).unwrap();
        }
        let shown = (mtime(&path), ctime(&path));
        for (step, call) in steps {
            cases.equal(format_args!("{step} after a write and {what}"), call(fd, &path).is_ok(), true);
            let now = (mtime(&path), ctime(&path));
            cases.equal(format_args!("times after {step}, a write and {what} before it"), now, shown);
        }
    }
}

/// A mode that is set anew while a write that cleared bits of it is buffered is what it is in the end.
fn set_while_buffered(cases: &mut Cases) {
    let folder = cases.folder();
    let path = folder.join("file");
    put(&path, b"content", ROOT, 0o4666);
    let file = path.clone();
    let fd = cases.as_user(ALICE, move || {
        let fd = open(&file, libc::O_RDWR, 0)?;
        pwrite(fd, b"x", 0).map(|_| fd)
    });
    let fd = fd.unwrap();
    cases.equal("a mode after a stranger's write", mode_of(&path), 0o666);
    chmod(&path, 0o4666).unwrap();
    let done = cases.as_user(ALICE, move || {
        // SAFETY: an open descriptor.
        seen(unsafe { libc::fsync(fd) })?;
        close(fd)
    });
    done.unwrap();
    cases.equal("a mode that was set after a write", mode_of(&path), 0o4666);
}

fn unlink_other(path: &Path) -> Seen {
    unlink(&path.with_file_name("other"))
}

fn record_lock(fd: i32, kind: i32) -> Seen {
    // SAFETY: an open descriptor, and a structure that outlives the call.
    seen(unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as i16;
        libc::fcntl(fd, libc::F_SETLK, &raw const lock)
    })
}

/// A time that was set after a store through a mapping is not set again when its page is written.
fn mapped(cases: &mut Cases) {
    const LENGTH: usize = 8192;
    for (what, write_out) in [("msync", libc::MS_SYNC), ("munmap", 0)] {
        let folder = cases.folder();
        let path = folder.join("file");
        put(&path, &[0; LENGTH], ROOT, 0o644);
        let fd = open(&path, libc::O_RDWR, 0).unwrap();
        // SAFETY: a new mapping of a file of this length, which nothing else refers to.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let start = libc::mmap(std::ptr::null_mut(), LENGTH, access, libc::MAP_SHARED, fd, 0);
            assert!(start != libc::MAP_FAILED);
            start.cast::<u8>().add(5000).write_volatile(7);
            utimens(&path, Some([time(1_500_000_000, 0), time(1_500_000_000, 0)]), 0).unwrap();
            let shown = (mtime(&path), ctime(&path));
            cases.equal(format_args!("mtime that is set before {what}"), shown.0, (1_500_000_000, 0));
            if write_out != 0 {
                libc::msync(start, LENGTH, write_out);
            }
            libc::munmap(start, LENGTH);
            close(fd).unwrap();
            cases.equal(format_args!("times after {what}"), (mtime(&path), ctime(&path)), shown);
        }
        cases.equal("what was stored", std::fs::read(&path).unwrap()[5000], 7);
    }
}
