//! What lends a file's power to whoever runs it (set-id bits, capabilities), and what is left of that when its content or
//! owner changes: every way to change it, by everybody, with each combination. There is no table of what should be: the
//! local filesystem of the running kernel says it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::harness::*;

/// What is seen of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    mode: u32,
    has_capability: bool,
}

/// The outcome of one case: 0 or an errno, what the caller sees right afterwards through the same descriptor (if it has
/// one), and what is seen once that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    errno: i32,
    at_once: Option<Left>,
    afterwards: Left,
}

type Done = (i32, Option<Left>);
type Change = fn(&Path) -> Done;

const BYTES: usize = 8192;
const CAPABILITY: &str = "security.capability";
const SAME: u32 = u32::MAX;
/// `cap_dac_read_search+ep`, as the kernel keeps it.
const VALUE: [u8; 20] = [1, 0, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const CHANGES: [(&str, Change); 26] = [
    ("write", |path| opened(path, 0, |fd| pwrite(fd, b"x", 0))),
    ("write of nothing", |path| opened(path, 0, |fd| pwrite(fd, b"", 0))),
    ("write at the end", |path| opened(path, 0, |fd| pwrite(fd, b"x", BYTES as i64))),
    ("O_DSYNC write", |path| opened(path, libc::O_DSYNC, |fd| pwrite(fd, b"x", 0))),
    ("append", |path| opened(path, libc::O_APPEND, |fd| write(fd, b"x"))),
    ("append of nothing", |path| opened(path, libc::O_APPEND, |fd| write(fd, b""))),
    ("O_DIRECT write", |path| opened(path, libc::O_DIRECT, |fd| write_block(fd, 0))),
    ("O_DIRECT append", |path| opened(path, libc::O_DIRECT | libc::O_APPEND, |fd| write_block(fd, 0))),
    ("O_DIRECT write at the end", |path| opened(path, libc::O_DIRECT, |fd| write_block(fd, BYTES as i64))),
    ("truncate", |path| (errno_of(truncate(path, 5)), None)),
    ("truncate to the same size", |path| (errno_of(truncate(path, BYTES as i64)), None)),
    ("ftruncate", |path| opened(path, 0, |fd| ftruncate(fd, 5))),
    ("ftruncate to more", |path| opened(path, 0, |fd| ftruncate(fd, 100_000))),
    ("open with O_TRUNC", |path| opened(path, libc::O_TRUNC, |_| Ok(0))),
    ("open with O_CREAT and O_TRUNC", |path| opened(path, libc::O_CREAT | libc::O_TRUNC, |_| Ok(0))),
    ("open", |path| opened(path, 0, |_| Ok(0))),
    ("fallocate", |path| opened(path, 0, |fd| fallocate(fd, 0, BYTES as i64))),
    ("fallocate that keeps the size", |path| {
        opened(path, 0, |fd| fallocate(fd, libc::FALLOC_FL_KEEP_SIZE, BYTES as i64))
    }),
    ("punching", |path| {
        opened(path, 0, |fd| fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0))
    }),
    ("zeroing", |path| opened(path, 0, |fd| fallocate(fd, libc::FALLOC_FL_ZERO_RANGE, 0))),
    ("zeroing that keeps the size", |path| {
        opened(path, 0, |fd| fallocate(fd, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, 0))
    }),
    ("copy_file_range", |path| opened(path, 0, copy_from_source)),
    ("a store through a mapping", |path| opened(path, 0, store)),
    ("chown to the same owner", |path| (errno_of(chown(path, 1001, SAME)), None)),
    ("chown to nobody else", |path| (errno_of(chown(path, SAME, SAME)), None)),
    ("chgrp to alice's group", |path| (errno_of(chown(path, SAME, 1001)), None)),
];

/// Root, root that may not keep set-id bits, the owner, and one who is neither.
const CALLERS: [User; 4] = [ROOT, ROOT_WITHOUT_FSETID, ALICE, BOB];
/// The files' groups: one that both are in, and one that neither is in.
const GROUPS: [u32; 2] = [2001, 3000];
const MODES: [u32; 5] = [0o6777, 0o6767, 0o2767, 0o4777, 0o777];

/// Carries out every case in a folder.
pub fn table(root: &Path) -> BTreeMap<String, Outcome> {
    let mut cases = Cases::new(root);
    let mut table = BTreeMap::new();
    for (what, change) in CHANGES {
        let folder = cases.folder();
        let source = folder.join("source");
        put(&source, &[b's'; BYTES], ROOT, 0o644);
        for caller in CALLERS {
            for group in GROUPS {
                let path = folder.join(format!("{} {group}", caller.name));
                std::fs::write(&path, [b'f'; BYTES]).unwrap();
                for mode in MODES {
                    for has_capability in [false, true] {
                        give(&path, User { gid: group, ..ALICE }, mode);
                        set_capability(&path, has_capability);
                        let before = Left { mode, has_capability };
                        assert_eq!(left(&path), before, "{what}");
                        let changed = path.clone();
                        let (errno, at_once) = cases.as_user(caller, move || change(&changed));
                        let outcome = Outcome { errno, at_once, afterwards: left(&path) };
                        let with = if has_capability { "with" } else { "without" };
                        let case = format!(
                            "{what} by {}: {mode:o}, group {group}, {with} a capability",
                            caller.name
                        );
                        table.insert(case, outcome);
                    }
                }
            }
        }
    }
    table
}

/// Opens for reading and writing, does something, looks, closes.
fn opened(path: &Path, flags: i32, work: fn(i32) -> Seen) -> Done {
    let fd = match open(path, libc::O_RDWR | flags, 0o600) {
        Ok(fd) => fd,
        Err(errno) => return (errno, None),
    };
    let errno = errno_of(work(fd));
    let seen = left(&PathBuf::from(format!("/proc/thread-self/fd/{fd}")));
    (close(fd).err().unwrap_or(errno), Some(seen))
}

fn errno_of(seen: Seen) -> i32 {
    seen.err().unwrap_or(0)
}

/// Follows links, so that it can be told what a descriptor stands for.
fn left(path: &Path) -> Left {
    let mut stat = unsafe { std::mem::zeroed() };
    seen(unsafe { libc::stat(c(path).as_ptr(), &raw mut stat) }).unwrap();
    let found =
        seen(unsafe { libc::getxattr(c(path).as_ptr(), c(CAPABILITY).as_ptr(), std::ptr::null_mut(), 0) }
            as i64);
    let mut names = [0u8; 1024];
    let length =
        seen(unsafe { libc::listxattr(c(path).as_ptr(), names.as_mut_ptr().cast(), names.len()) } as i64);
    let listed =
        names[..length.unwrap() as usize].split(|byte| *byte == 0).any(|name| name == CAPABILITY.as_bytes());
    assert_eq!(found.is_ok(), listed, "{found:?}");
    Left { mode: stat.st_mode & 0o7777, has_capability: listed }
}

fn set_capability(path: &Path, there: bool) {
    let (path, name) = (c(path), c(CAPABILITY));
    let done = match there {
        true => seen(unsafe {
            libc::setxattr(path.as_ptr(), name.as_ptr(), VALUE.as_ptr().cast(), VALUE.len(), 0)
        }),
        false => match seen(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }) {
            Err(libc::ENODATA) => Ok(0),
            done => done,
        },
    };
    done.unwrap();
}

fn ftruncate(fd: i32, size: i64) -> Seen {
    seen(unsafe { libc::ftruncate(fd, size) })
}

/// A block at `offset`.
fn fallocate(fd: i32, mode: i32, offset: i64) -> Seen {
    seen(unsafe { libc::fallocate(fd, mode, offset, 4096) })
}

/// A block, from memory that direct I/O takes.
fn write_block(fd: i32, offset: i64) -> Seen {
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    pwrite(fd, &Block([b'd'; 4096]).0, offset)
}

/// Copies a block of the file `source` beside it.
fn copy_from_source(fd: i32) -> Seen {
    let path = std::fs::read_link(format!("/proc/thread-self/fd/{fd}")).unwrap();
    let source = open(&path.with_file_name("source"), libc::O_RDONLY, 0)?;
    let (mut from, mut to) = (0, 0);
    let copied =
        seen(unsafe { libc::copy_file_range(source, &raw mut from, fd, &raw mut to, 4096, 0) } as i64);
    close(source)?;
    copied
}

/// Stores a byte through a mapping and waits until it is written.
fn store(fd: i32) -> Seen {
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, fd, 0);
        assert_ne!(map, libc::MAP_FAILED);
        map.cast::<u8>().write_volatile(b'm');
        let done = seen(libc::msync(map, 4096, libc::MS_SYNC));
        libc::munmap(map, 4096);
        done
    }
}
