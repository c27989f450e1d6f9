//! System calls as values, drawn at random, carried out by a user on both trees.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "all are system calls on strings and buffers that live until the call returns"
)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::StdRng;

/// A path relative to the tree's root.
type Name = Vec<u8>;

/// One system call (or a few that belong together).
#[derive(Clone, Debug)]
pub enum Call {
    Mkdir(Name, u32),
    Rmdir(Name),
    Unlink(Name),
    Mknod(Name, u32),
    Symlink(Name, Name),
    Readlink(Name),
    Link(Name, Name),
    Rename(Name, Name, u32),
    Chmod(Name, u32),
    Chown(Name, u32, u32),
    Truncate(Name, u64),
    Utimens(Name, Option<(i64, i64)>, Option<(i64, i64)>),
    Access(Name, i32),
    Stat(Name),
    List(Name),
    SetXattr(Name, Vec<u8>, Vec<u8>, i32),
    GetXattr(Name, Vec<u8>),
    ListXattr(Name),
    RemoveXattr(Name, Vec<u8>),
    /// Opens, does the rest, closes.
    WriteFile(Name, i32, u64, Vec<u8>),
    ReadFile(Name, u64, usize),
    /// Opens and keeps the handle under a number.
    Open(u8, Name, i32, u32),
    Close(u8),
    HandleWrite(u8, u64, Vec<u8>),
    HandleRead(u8, u64, usize),
    HandleTruncate(u8, u64),
    HandleStat(u8),
    HandleSync(u8, bool),
    HandleChmod(u8, u32),
    /// fallocate with this mode.
    Fallocate(Name, i32, u64, u64),
    /// copy_file_range from one file, at an offset, to another, for so many bytes.
    Copy(Name, u64, Name, u64, usize),
    /// `SEEK_DATA` or `SEEK_HOLE`.
    Seek(Name, u64, i32),
    /// Makes a file without a name in the first folder and links it as the second.
    Unnamed(Name, Name, Vec<u8>),
    /// Sets an access control list, the inherited one or the file's own: with bob's permissions and the mask.
    Acl(Name, bool, u16, u16),
    /// A lock of the open file, of bytes, without waiting.
    HandleLock(u8, i32, i64, i64),
    /// flock, without waiting.
    HandleFlock(u8, i32),
}

fn random_name(rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..16) {
        0 => vec![b'x'; 255],
        1 => vec![b'y'; 256],
        2 => b"\xff\xfe\x01".to_vec(),
        3 => b"with space\nand line".to_vec(),
        4 => b"...".to_vec(),
        n => vec![b'a' + n as u8 - 5],
    }
}

fn random_path(rng: &mut StdRng, known: &[Vec<u8>]) -> Name {
    let mut path = known[rng.random_range(0..known.len())].clone();
    if rng.random_bool(0.45) || path.is_empty() {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(random_name(rng));
    }
    if rng.random_range(0..60) == 0 {
        path.extend_from_slice([&b"/"[..], b"/.", b"/.."][rng.random_range(0..3)]);
    }
    path
}

fn random_data(rng: &mut StdRng) -> Vec<u8> {
    let length = match rng.random_range(0..6) {
        0 => 0,
        1 => rng.random_range(1..10),
        2 => 4096,
        3 => rng.random_range(1..20_000),
        4 => rng.random_range(16_000..17_000),
        _ => rng.random_range(1..200_000),
    };
    let mut data = vec![0; length];
    rng.fill(&mut data[..]);
    data
}

fn random_offset(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..6) {
        0 | 1 => 0,
        2 => rng.random_range(0..8192),
        3 => rng.random_range(0..100) * 4096,
        4 => (1 << 20) - rng.random_range(0..5000),
        _ => rng.random_range(0..3_000_000),
    }
}

fn random_time(rng: &mut StdRng) -> Option<(i64, i64)> {
    match rng.random_range(0..4) {
        0 => None,
        // Before 1970, after 2106; within what ext4 can hold.
        1 => Some((rng.random_range(-2_000_000_000..0), rng.random_range(0..1_000_000_000))),
        2 => Some((rng.random_range(4_300_000_000..10_000_000_000), rng.random_range(0..1_000_000_000))),
        _ => Some((rng.random_range(0..2_000_000_000), rng.random_range(0..1_000_000_000))),
    }
}

impl Call {
    /// Draws one of those that came later, which the second transport can't all do.
    pub fn random_further(rng: &mut StdRng, known: &[Vec<u8>]) -> Call {
        let path = random_path(rng, known);
        let handle = rng.random_range(0..6);
        let (keep, punch, zero) =
            (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        match rng.random_range(0..9) {
            0 | 1 => {
                let mode = [0, keep, punch | keep, zero, zero | keep][rng.random_range(0..5)];
                Call::Fallocate(path, mode, random_offset(rng), rng.random_range(0..200_000))
            }
            2 | 3 => {
                let (from, to) = (random_offset(rng), random_offset(rng));
                Call::Copy(random_path(rng, known), from, path, to, rng.random_range(0..2_000_000))
            }
            4 => {
                let whence = [libc::SEEK_DATA, libc::SEEK_HOLE][rng.random_range(0..2)];
                Call::Seek(path, random_offset(rng), whence)
            }
            5 => Call::Unnamed(random_path(rng, known), path, random_data(rng)),
            6 => Call::Acl(path, rng.random_bool(0.4), rng.random_range(0..8), rng.random_range(0..8)),
            7 => {
                let kind = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK][rng.random_range(0..3)];
                Call::HandleLock(handle, kind, rng.random_range(0..50), rng.random_range(0..50))
            }
            _ => {
                let operation = [libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN][rng.random_range(0..3)];
                Call::HandleFlock(handle, operation)
            }
        }
    }

    /// It goes by a handle, which belongs to one mount.
    pub fn is_about_a_handle(&self) -> bool {
        matches!(
            self,
            Call::Open(..)
                | Call::Close(_)
                | Call::HandleWrite(..)
                | Call::HandleRead(..)
                | Call::HandleTruncate(..)
                | Call::HandleStat(_)
                | Call::HandleSync(..)
                | Call::HandleChmod(..)
                | Call::HandleLock(..)
                | Call::HandleFlock(..)
        )
    }

    /// For people: names as text, content as its length.
    pub fn brief(&self) -> String {
        let name = |name: &[u8]| {
            String::from_utf8_lossy(name).replace(&"x".repeat(255), "x…").replace(&"y".repeat(256), "y…")
        };
        match self {
            Call::WriteFile(path, flags, offset, data) => {
                format!("WriteFile({:?}, {flags:#o}, {offset}, {} bytes)", name(path), data.len())
            }
            Call::HandleWrite(handle, offset, data) => {
                format!("HandleWrite({handle}, {offset}, {} bytes)", data.len())
            }
            Call::SetXattr(path, attribute, value, flags) => {
                format!("SetXattr({:?}, {:?}, {} bytes, {flags})", name(path), name(attribute), value.len())
            }
            Call::GetXattr(path, attribute) | Call::RemoveXattr(path, attribute) => {
                format!("GetXattr or RemoveXattr({:?}, {:?})", name(path), name(attribute))
            }
            Call::Rename(from, to, flags) => format!("Rename({:?}, {:?}, {flags})", name(from), name(to)),
            Call::Link(from, to) => format!("Link({:?}, {:?})", name(from), name(to)),
            Call::Symlink(target, path) => format!("Symlink({:?}, {:?})", name(target), name(path)),
            Call::Mkdir(path, mode) => format!("Mkdir({:?}, {mode:o})", name(path)),
            Call::Mknod(path, mode) => format!("Mknod({:?}, {mode:o})", name(path)),
            Call::Chmod(path, mode) => format!("Chmod({:?}, {mode:o})", name(path)),
            Call::Chown(path, uid, gid) => format!("Chown({:?}, {uid}, {gid})", name(path)),
            Call::Truncate(path, size) => format!("Truncate({:?}, {size})", name(path)),
            Call::Utimens(path, atime, mtime) => format!("Utimens({:?}, {atime:?}, {mtime:?})", name(path)),
            Call::Open(handle, path, flags, mode) => {
                format!("Open({handle}, {:?}, {flags:#o}, {mode:o})", name(path))
            }
            Call::ReadFile(path, offset, length) => format!("ReadFile({:?}, {offset}, {length})", name(path)),
            Call::Unnamed(folder, path, data) => {
                format!("Unnamed({:?}, {:?}, {} bytes)", name(folder), name(path), data.len())
            }
            Call::Copy(from, offset, to, to_offset, length) => {
                format!("Copy({:?}, {offset}, {:?}, {to_offset}, {length})", name(from), name(to))
            }
            Call::Fallocate(path, mode, offset, length) => {
                format!("Fallocate({:?}, {mode}, {offset}, {length})", name(path))
            }
            Call::Acl(path, default, bob, mask) => format!("Acl({:?}, {default}, {bob}, {mask})", name(path)),
            Call::Rmdir(path) => format!("Rmdir({:?})", name(path)),
            Call::Unlink(path) => format!("Unlink({:?})", name(path)),
            other => format!("{other:?}"),
        }
    }

    /// True for times before 1970.
    pub fn sets_an_old_time(&self) -> bool {
        let old = |time: &Option<(i64, i64)>| time.is_some_and(|(seconds, _)| seconds < 0);
        matches!(self, Call::Utimens(_, atime, mtime) if old(atime) || old(mtime))
    }

    /// Takes set-id bits out of the modes.
    pub fn clear_setid(&mut self) {
        if let Call::Mkdir(_, mode)
        | Call::Mknod(_, mode)
        | Call::Chmod(_, mode)
        | Call::Open(_, _, _, mode)
        | Call::HandleChmod(_, mode) = self
        {
            *mode &= !0o6000;
        }
    }

    /// Draws one.
    pub fn random(rng: &mut StdRng, known: &[Vec<u8>]) -> Call {
        let path = random_path(rng, known);
        let mode = [0o777, 0o755, 0o644, 0o600, 0o4755, 0o2755, 0o2775, 0o1777, 0o000, 0o6777]
            [rng.random_range(0..10)];
        let handle = rng.random_range(0..6);
        let xattr = [&b"user.a"[..], b"user.b", b"user.\xff", b"trusted.t", b"user."][rng.random_range(0..5)]
            .to_vec();
        match rng.random_range(0..40) {
            0..=3 => Call::Mkdir(path, mode),
            4 => Call::Rmdir(path),
            5 | 6 => Call::Unlink(path),
            7 => {
                let kind =
                    [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, libc::S_IFCHR][rng.random_range(0..4)];
                Call::Mknod(path, kind | (mode & 0o777))
            }
            8 => Call::Symlink(random_path(rng, known), path),
            9 => Call::Readlink(path),
            10 | 11 => Call::Link(random_path(rng, known), path),
            12..=14 => {
                let flags = [0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE][rng.random_range(0..5)];
                Call::Rename(random_path(rng, known), path, flags)
            }
            15 | 16 => Call::Chmod(path, mode),
            17 => {
                let id = |rng: &mut StdRng| [0, 1001, 1002, u32::MAX][rng.random_range(0..4)];
                Call::Chown(path, id(rng), id(rng))
            }
            18 => Call::Truncate(path, random_offset(rng)),
            19 => Call::Utimens(path, random_time(rng), random_time(rng)),
            20 => Call::Access(path, rng.random_range(0..8)),
            21 => Call::Stat(path),
            22 => Call::List(path),
            23 => {
                let flags = [0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE][rng.random_range(0..4)];
                let length = rng.random_range(0..300);
                Call::SetXattr(path, xattr, vec![b'v'; length], flags)
            }
            24 => Call::GetXattr(path, xattr),
            25 => Call::ListXattr(path),
            26 => Call::RemoveXattr(path, xattr),
            27..=29 => {
                let flags = [
                    libc::O_CREAT,
                    libc::O_CREAT | libc::O_TRUNC,
                    libc::O_CREAT | libc::O_EXCL,
                    libc::O_CREAT | libc::O_APPEND,
                    0,
                    libc::O_SYNC,
                ][rng.random_range(0..6)];
                Call::WriteFile(path, flags, random_offset(rng), random_data(rng))
            }
            30 | 31 => Call::ReadFile(path, random_offset(rng), rng.random_range(0..300_000)),
            32 | 33 => {
                let access = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR][rng.random_range(0..3)];
                let flags = [0, libc::O_CREAT, libc::O_TRUNC, libc::O_APPEND, libc::O_CREAT | libc::O_EXCL];
                Call::Open(handle, path, access | flags[rng.random_range(0..5)], mode & 0o777)
            }
            34 => Call::Close(handle),
            35 => Call::HandleWrite(handle, random_offset(rng), random_data(rng)),
            36 => Call::HandleRead(handle, random_offset(rng), rng.random_range(0..300_000)),
            37 => Call::HandleTruncate(handle, random_offset(rng)),
            38 => Call::HandleStat(handle),
            _ if rng.random_bool(0.5) => Call::HandleSync(handle, rng.random_bool(0.5)),
            _ => Call::HandleChmod(handle, mode),
        }
    }
}

/// A change of owner or mode to what it is already isn't carried out: on a mount it changes nothing, ctime
/// neither, so that walks which set what is set (a pod's `fsGroup`) cost nothing; a local folder moves ctime.
const NOTHING_TO_CHANGE: &[u8] = b"nothing to change";

/// What a call returned: errno, or what it showed.
pub type Seen = Result<Vec<u8>, i32>;

/// Joins a root and a path of bytes.
pub fn join(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(std::ffi::OsStr::from_bytes(path)) }
}

/// One tree with the handles that are open in it.
pub struct Tree {
    root: PathBuf,
    handles: BTreeMap<u8, i32>,
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn unit(result: libc::c_int) -> Seen {
    if result < 0 { Err(errno()) } else { Ok(Vec::new()) }
}

/// The attributes that must be equal.
pub fn shown(stat: &libc::stat) -> Vec<u8> {
    let kind = stat.st_mode & libc::S_IFMT;
    let links = if kind == libc::S_IFDIR { 0 } else { stat.st_nlink };
    let size = if kind == libc::S_IFREG || kind == libc::S_IFLNK { stat.st_size } else { 0 };
    format!(
        "mode {:o} owner {}:{} links {links} size {size} device {}",
        stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev
    )
    .into_bytes()
}

fn timespec(time: Option<(i64, i64)>) -> libc::timespec {
    match time {
        Some((seconds, nanos)) => libc::timespec { tv_sec: seconds, tv_nsec: nanos },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    }
}

impl Tree {
    /// The tree below `root`.
    pub fn new(root: &Path) -> Tree {
        Tree { root: root.to_owned(), handles: BTreeMap::new() }
    }

    fn c(&self, path: &[u8]) -> CString {
        CString::new(join(&self.root, path).as_os_str().as_bytes()).unwrap()
    }

    fn handle(&self, number: u8) -> Result<i32, i32> {
        self.handles.get(&number).copied().ok_or(libc::EBADF)
    }

    // SAFETY of the calls below: every pointer is to a C string or buffer that outlives the call, with its length.
    pub fn run(&mut self, call: &Call) -> Seen {
        match call {
            Call::Mkdir(path, mode) => unit(unsafe { libc::mkdir(self.c(path).as_ptr(), *mode) }),
            Call::Rmdir(path) => unit(unsafe { libc::rmdir(self.c(path).as_ptr()) }),
            Call::Unlink(path) => unit(unsafe { libc::unlink(self.c(path).as_ptr()) }),
            Call::Mknod(path, mode) => {
                unit(unsafe { libc::mknod(self.c(path).as_ptr(), *mode, libc::makedev(1, 3)) })
            }
            Call::Symlink(target, path) => {
                let target = CString::new(target.clone()).unwrap();
                unit(unsafe { libc::symlink(target.as_ptr(), self.c(path).as_ptr()) })
            }
            Call::Readlink(path) => {
                let mut buffer = vec![0u8; 5000];
                let n = unsafe {
                    libc::readlink(self.c(path).as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
                };
                if n < 0 { Err(errno()) } else { Ok(buffer[..n as usize].to_vec()) }
            }
            Call::Link(from, to) => unit(unsafe { libc::link(self.c(from).as_ptr(), self.c(to).as_ptr()) }),
            Call::Rename(from, to, flags) => {
                let (from, to) = (self.c(from), self.c(to));
                unit(unsafe {
                    libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), *flags)
                })
            }
            Call::Chmod(path, mode) => {
                let path = self.c(path);
                let mut stat = unsafe { std::mem::zeroed() };
                unit(unsafe { libc::stat(path.as_ptr(), &raw mut stat) })?;
                if stat.st_mode & 0o7777 == *mode {
                    return Ok(NOTHING_TO_CHANGE.to_vec());
                }
                unit(unsafe { libc::chmod(path.as_ptr(), *mode) })
            }
            Call::Chown(path, uid, gid) => {
                let path = self.c(path);
                let mut stat = unsafe { std::mem::zeroed() };
                unit(unsafe { libc::lstat(path.as_ptr(), &raw mut stat) })?;
                let same = |id: u32, is: u32| id == u32::MAX || id == is;
                if same(*uid, stat.st_uid) && same(*gid, stat.st_gid) {
                    return Ok(NOTHING_TO_CHANGE.to_vec());
                }
                unit(unsafe { libc::lchown(path.as_ptr(), *uid, *gid) })
            }
            Call::Truncate(path, size) => {
                unit(unsafe { libc::truncate(self.c(path).as_ptr(), *size as i64) })
            }
            Call::Utimens(path, atime, mtime) => {
                let times = [timespec(*atime), timespec(*mtime)];
                let path = self.c(path);
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                unit(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) })?;
                let mut stat = unsafe { std::mem::zeroed() };
                unit(unsafe { libc::lstat(path.as_ptr(), &raw mut stat) })?;
                let atime = atime.map(|_| (stat.st_atime, stat.st_atime_nsec));
                let mtime = mtime.map(|_| (stat.st_mtime, stat.st_mtime_nsec));
                Ok(format!("{atime:?} {mtime:?}").into_bytes())
            }
            Call::Access(path, mode) => {
                let flags = libc::AT_EACCESS;
                unit(unsafe { libc::faccessat(libc::AT_FDCWD, self.c(path).as_ptr(), *mode, flags) })
            }
            Call::Stat(path) => {
                let mut stat = unsafe { std::mem::zeroed() };
                unit(unsafe { libc::lstat(self.c(path).as_ptr(), &raw mut stat) }).map(|_| shown(&stat))
            }
            Call::List(path) => match std::fs::read_dir(join(&self.root, path)) {
                Ok(entries) => {
                    let mut names: Vec<Vec<u8>> = Vec::new();
                    for entry in entries {
                        let entry = entry.map_err(|error| error.raw_os_error().unwrap_or(0))?;
                        names.push(entry.file_name().as_bytes().to_vec());
                    }
                    names.sort();
                    Ok(names.join(&b'/'))
                }
                Err(error) => Err(error.raw_os_error().unwrap_or(0)),
            },
            Call::SetXattr(path, name, value, flags) => {
                let name = CString::new(name.clone()).unwrap();
                let value_at = value.as_ptr().cast();
                unit(unsafe {
                    libc::lsetxattr(self.c(path).as_ptr(), name.as_ptr(), value_at, value.len(), *flags)
                })
            }
            Call::GetXattr(path, name) => {
                let name = CString::new(name.clone()).unwrap();
                let mut buffer = vec![0u8; 70_000];
                let into = buffer.as_mut_ptr().cast();
                let n = unsafe { libc::lgetxattr(self.c(path).as_ptr(), name.as_ptr(), into, buffer.len()) };
                if n < 0 { Err(errno()) } else { Ok(buffer[..n as usize].to_vec()) }
            }
            Call::ListXattr(path) => {
                let mut buffer = vec![0u8; 70_000];
                let n = unsafe {
                    libc::llistxattr(self.c(path).as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
                };
                if n < 0 {
                    return Err(errno());
                }
                let mut names: Vec<&[u8]> =
                    buffer[..n as usize].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
                names.sort_unstable();
                Ok(names.join(&b'/'))
            }
            Call::RemoveXattr(path, name) => {
                let name = CString::new(name.clone()).unwrap();
                unit(unsafe { libc::lremovexattr(self.c(path).as_ptr(), name.as_ptr()) })
            }
            Call::WriteFile(path, flags, offset, data) => {
                let fd = self.open(path, flags | libc::O_WRONLY, 0o666)?;
                let written = write_all(fd, *offset, data);
                let closed = unit(unsafe { libc::close(fd) });
                written.and(closed)
            }
            Call::ReadFile(path, offset, length) => {
                let fd = self.open(path, libc::O_RDONLY, 0)?;
                let read = read_all(fd, *offset, *length);
                unit(unsafe { libc::close(fd) })?;
                read
            }
            Call::Open(number, path, flags, mode) => {
                self.close(*number);
                let fd = self.open(path, *flags, *mode)?;
                self.handles.insert(*number, fd);
                Ok(Vec::new())
            }
            Call::Close(number) => {
                self.handle(*number)?;
                self.close(*number);
                Ok(Vec::new())
            }
            Call::HandleWrite(number, offset, data) => write_all(self.handle(*number)?, *offset, data),
            Call::HandleRead(number, offset, length) => read_all(self.handle(*number)?, *offset, *length),
            Call::HandleTruncate(number, size) => {
                unit(unsafe { libc::ftruncate(self.handle(*number)?, *size as i64) })
            }
            Call::HandleStat(number) => {
                let mut stat = unsafe { std::mem::zeroed() };
                unit(unsafe { libc::fstat(self.handle(*number)?, &raw mut stat) }).map(|_| shown(&stat))
            }
            Call::HandleSync(number, data_only) => {
                let fd = self.handle(*number)?;
                unit(if *data_only { unsafe { libc::fdatasync(fd) } } else { unsafe { libc::fsync(fd) } })
            }
            Call::HandleChmod(number, mode) => {
                let fd = self.handle(*number)?;
                let mut stat = unsafe { std::mem::zeroed() };
                unit(unsafe { libc::fstat(fd, &raw mut stat) })?;
                if stat.st_mode & 0o7777 == *mode {
                    return Ok(NOTHING_TO_CHANGE.to_vec());
                }
                unit(unsafe { libc::fchmod(fd, *mode) })
            }
            Call::Fallocate(path, mode, offset, length) => {
                let fd = self.open(path, libc::O_WRONLY, 0)?;
                let done = unit(unsafe { libc::fallocate(fd, *mode, *offset as i64, *length as i64) });
                unit(unsafe { libc::close(fd) })?;
                done
            }
            Call::Copy(from, offset, to, to_offset, length) => {
                let source = self.open(from, libc::O_RDONLY, 0)?;
                let target = self.open(to, libc::O_WRONLY, 0);
                let copied = target.and_then(|fd| {
                    let copied = copy_all(source, *offset as i64, fd, *to_offset as i64, *length);
                    unit(unsafe { libc::close(fd) }).and(copied)
                });
                unit(unsafe { libc::close(source) })?;
                copied
            }
            Call::Seek(path, offset, whence) => {
                let fd = self.open(path, libc::O_RDONLY, 0)?;
                // Which zeroes are a hole is a filesystem's own affair (a copy may keep holes or fill them). What
                // isn't found has to read as zeroes, and beyond the end there is nothing.
                let found = if is_file(fd) { sought(fd, *offset, *whence) } else { Ok(Vec::new()) };
                unit(unsafe { libc::close(fd) })?;
                found
            }
            Call::Unnamed(folder, path, data) => {
                let fd = self.open(folder, libc::O_TMPFILE | libc::O_RDWR, 0o664)?;
                let from = CString::new(format!("/proc/self/fd/{fd}")).unwrap();
                let written = write_all(fd, 0, data);
                let linked = unit(unsafe {
                    let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
                    libc::linkat(here, from.as_ptr(), here, self.c(path).as_ptr(), follow)
                });
                unit(unsafe { libc::close(fd) })?;
                written.and(linked)
            }
            Call::Acl(path, default, bob, mask) => {
                let name = if *default { c"system.posix_acl_default" } else { c"system.posix_acl_access" };
                let none = u32::MAX;
                let entries =
                    [(1u16, 7u16, none), (2, *bob, 1002), (4, 5, none), (0x10, *mask, none), (0x20, 4, none)];
                let mut value = 2u32.to_le_bytes().to_vec();
                for (tag, allowed, id) in entries {
                    value
                        .extend([&tag.to_le_bytes()[..], &allowed.to_le_bytes(), &id.to_le_bytes()].concat());
                }
                let at = value.as_ptr().cast();
                unit(unsafe { libc::setxattr(self.c(path).as_ptr(), name.as_ptr(), at, value.len(), 0) })
            }
            Call::HandleLock(number, kind, start, length) => {
                let fd = self.handle(*number)?;
                if !is_file(fd) {
                    return Ok(Vec::new());
                }
                unit(unsafe {
                    let mut lock: libc::flock = std::mem::zeroed();
                    lock.l_type = *kind as i16;
                    (lock.l_start, lock.l_len) = (*start, *length);
                    libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock)
                })
            }
            Call::HandleFlock(number, operation) => {
                let fd = self.handle(*number)?;
                if !is_file(fd) {
                    return Ok(Vec::new());
                }
                unit(unsafe { libc::flock(fd, *operation | libc::LOCK_NB) })
            }
        }
    }

    fn open(&self, path: &[u8], flags: i32, mode: u32) -> Result<i32, i32> {
        // A fifo without a partner, or a device, must not be waited for.
        let flags = flags | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        // SAFETY: the path is a C string that outlives the call.
        let fd = unsafe { libc::open(self.c(path).as_ptr(), flags, mode) };
        if fd < 0 {
            return Err(errno());
        }
        // SAFETY: fd is open and ours; stat is written by the call.
        let kind = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            libc::fstat(fd, &raw mut stat);
            stat.st_mode & libc::S_IFMT
        };
        if kind == libc::S_IFREG || kind == libc::S_IFDIR {
            return Ok(fd);
        }
        // SAFETY: fd is ours.
        unsafe { libc::close(fd) };
        Err(-1)
    }

    /// Closes a handle, if it is open.
    pub fn close(&mut self, number: u8) {
        if let Some(fd) = self.handles.remove(&number) {
            // SAFETY: the handle is ours and is forgotten with this.
            unsafe { libc::close(fd) };
        }
    }
}

/// A regular file: folders keep locks of their own mount, and say other things of data and holes.
fn is_file(fd: i32) -> bool {
    // SAFETY: fd is open; stat is written by the call.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// All of a range, in as many calls as it takes.
fn copy_all(from: i32, mut at: i64, to: i32, mut target: i64, length: usize) -> Seen {
    let mut left = length;
    while left > 0 {
        // SAFETY: descriptors, and offsets that the call changes.
        let done = unsafe { libc::copy_file_range(from, &raw mut at, to, &raw mut target, left, 0) };
        match done {
            ..0 => return Err(errno()),
            0 => break,
            done => left -= done as usize,
        }
    }
    Ok((length - left).to_string().into_bytes())
}

fn write_all(fd: i32, offset: u64, data: &[u8]) -> Seen {
    // SAFETY: the buffer outlives the call.
    let n = unsafe { libc::pwrite(fd, data.as_ptr().cast(), data.len(), offset as i64) };
    if n < 0 { Err(errno()) } else { Ok(n.to_string().into_bytes()) }
}

fn read_all(fd: i32, offset: u64, length: usize) -> Seen {
    let mut buffer = vec![0u8; length];
    // SAFETY: the buffer outlives the call.
    let n = unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), offset as i64) };
    if n < 0 { Err(errno()) } else { Ok(buffer[..n as usize].to_vec()) }
}

/// Bytes that are looked at of what a search for data skipped.
const SKIPPED_BYTES_MAX: u64 = 8 << 20;

/// Searches for data or a hole; fails as lseek does, or with `EILSEQ` if it skipped data or went backwards.
fn sought(fd: i32, offset: u64, whence: i32) -> Result<Vec<u8>, i32> {
    let size = unsafe { libc::lseek(fd, 0, libc::SEEK_END) } as u64;
    let found = unsafe { libc::lseek(fd, offset as i64, whence) };
    let end = match found {
        -1 if errno() == libc::ENXIO && offset < size && whence == libc::SEEK_DATA => size,
        -1 => return Err(errno()),
        found => found as u64,
    };
    if end < offset || end > size {
        return Err(libc::EILSEQ);
    }
    if whence == libc::SEEK_DATA {
        let mut skipped = vec![0; (end - offset).min(SKIPPED_BYTES_MAX) as usize];
        let read = unsafe { libc::pread(fd, skipped.as_mut_ptr().cast(), skipped.len(), offset as i64) };
        if read < 0 {
            return Err(errno());
        }
        if skipped.iter().any(|byte| *byte != 0) {
            return Err(libc::EILSEQ);
        }
    }
    Ok(Vec::new())
}
