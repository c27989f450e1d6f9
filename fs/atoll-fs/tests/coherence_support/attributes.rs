//! Names and attributes under changes by several threads of one mount: whenever all of them stand still, what the kernel
//! has kept is what the filesystem says when it is asked.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Random;

const DIRECTORIES: u64 = 3;
const NAMES: u64 = 6;
const CHANGING: usize = 4;
const LOOKING: usize = 2;
/// How long the threads run until they stand still.
const TURN: Duration = Duration::from_millis(40);

/// What statx(2) says; `force`: the filesystem is asked.
fn statx(path: &Path, force: bool) -> io::Result<[i64; 11]> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::AT_SYMLINK_NOFOLLOW
        | if force { libc::AT_STATX_FORCE_SYNC } else { libc::AT_STATX_SYNC_AS_STAT };
    // SAFETY: a name that ends with a zero, and a buffer that the kernel fills if it returns 0.
    let found = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        if libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, libc::STATX_BASIC_STATS, &mut found) != 0 {
            return Err(io::Error::last_os_error());
        }
        found
    };
    Ok([
        found.stx_ino as i64,
        i64::from(found.stx_mode),
        i64::from(found.stx_nlink),
        i64::from(found.stx_uid),
        found.stx_size as i64,
        found.stx_blocks as i64,
        found.stx_mtime.tv_sec,
        i64::from(found.stx_mtime.tv_nsec),
        found.stx_ctime.tv_sec,
        i64::from(found.stx_ctime.tv_nsec),
        i64::from(found.stx_gid),
    ])
}

fn directory(root: &Path, number: u64) -> PathBuf {
    root.join(format!("directory-{number}"))
}

fn any(root: &Path, random: &mut Random) -> PathBuf {
    directory(root, random.below(DIRECTORIES)).join(format!("name-{}", random.below(NAMES)))
}

/// Something that a program does with names; most of it fails, because the name is there or isn't.
fn change(root: &Path, random: &mut Random) -> io::Result<()> {
    let (one, other) = (any(root, random), any(root, random));
    match random.below(14) {
        0 | 1 => std::fs::OpenOptions::new().write(true).create_new(true).open(one).map(drop),
        2 => std::fs::create_dir(one),
        3 => symlink("somewhere", one),
        4 | 5 => std::fs::remove_file(one),
        6 => std::fs::remove_dir(one),
        7 | 8 => std::fs::rename(one, other),
        9 => std::fs::hard_link(one, other),
        10 => std::fs::set_permissions(one, PermissionsExt::from_mode(0o600 + random.below(64) as u32)),
        11 => {
            let file = std::fs::OpenOptions::new().write(true).open(one)?;
            file.write_all_at(&vec![7; random.below(9000) as usize], random.below(5000))
        }
        12 => {
            let file = std::fs::OpenOptions::new().write(true).open(one)?;
            file.set_len(random.below(9000))
        }
        _ => {
            let name = CString::new(one.as_os_str().as_bytes())?;
            let value = random.below(1000).to_le_bytes();
            // SAFETY: strings that end with a zero, and a value of this length.
            let done = unsafe {
                libc::setxattr(name.as_ptr(), c"user.x".as_ptr(), value.as_ptr().cast(), value.len(), 0)
            };
            if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        }
    }
}

/// Errors that a program may get because another one was faster.
fn is_expected(error: &io::Error) -> bool {
    [
        libc::ENOENT,
        libc::EEXIST,
        libc::EISDIR,
        libc::ENOTDIR,
        libc::ENOTEMPTY,
        libc::EPERM,
        libc::EINVAL,
        libc::ELOOP,
        libc::ENOTSUP,
    ]
    .contains(&error.raw_os_error().unwrap_or(0))
}

/// Compares what is kept with what is asked for; everything stands still.
fn compare(root: &Path) -> Result<u64, String> {
    let mut found = 0;
    for number in 0..DIRECTORIES {
        let folder = directory(root, number);
        let kept: Vec<_> = (0..NAMES).map(|name| folder.join(format!("name-{name}"))).collect();
        let kept: Vec<_> =
            kept.into_iter().chain([folder.clone()]).map(|path| (statx(&path, false).ok(), path)).collect();
        let listed = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let listed: BTreeSet<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
        for (kept, path) in kept {
            if path != folder && kept.is_some() != listed.contains(&path) {
                return Err(format!("{}: kept as {kept:?}, and listed are {listed:?}", path.display()));
            }
            let asked = statx(&path, true).ok();
            if kept != asked {
                return Err(format!("{}: kept as {kept:?}, and it is {asked:?}", path.display()));
            }
            found += u64::from(kept.is_some());
        }
    }
    Ok(found)
}

pub fn run(root: &Path, seed: u64, time: Duration) {
    for number in 0..DIRECTORIES {
        std::fs::create_dir(directory(root, number)).expect("a directory");
    }
    let (turns, over) = (Barrier::new(CHANGING + LOOKING + 1), AtomicBool::new(false));
    let wrong = Mutex::new(Vec::new());
    let until = Instant::now() + time;
    let outcome = std::thread::scope(|scope| {
        for thread in 0..CHANGING + LOOKING {
            let (turns, over, wrong) = (&turns, &over, &wrong);
            scope.spawn(move || {
                let mut random = Random::new(seed ^ (thread as u64 + 1) << 32);
                loop {
                    turns.wait();
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let end = Instant::now() + TURN;
                    while Instant::now() < end {
                        if thread < CHANGING {
                            match change(root, &mut random) {
                                Err(error) if !is_expected(&error) => wrong.lock().push(error.to_string()),
                                _ => {}
                            }
                        } else {
                            let _ = statx(&any(root, &mut random), random.below(2) == 0);
                            let _ = statx(&directory(root, random.below(DIRECTORIES)), random.below(2) == 0);
                            let _ = std::fs::read_dir(directory(root, random.below(DIRECTORIES)))
                                .map(Iterator::count);
                        }
                    }
                    turns.wait();
                }
            });
        }
        let (mut compared, mut outcome) = (0, Ok(()));
        loop {
            let end = Instant::now() > until || outcome.is_err() || !wrong.lock().is_empty();
            over.store(end, Ordering::SeqCst);
            turns.wait();
            if end {
                break outcome.map(|()| compared);
            }
            turns.wait();
            match compare(root) {
                Ok(found) => compared += found,
                Err(error) => outcome = Err(error),
            }
        }
    });
    assert_eq!(wrong.into_inner(), Vec::<String>::new(), "seed {seed}");
    match outcome {
        Ok(compared) => assert!(compared > 0, "there was never anything to compare"),
        Err(error) => panic!("seed {seed}: {error}"),
    }
}
