//! Runs cases as different users and collects what is not as it should be. System calls are the raw ones, so that
//! nothing stands between a case and the kernel.

use std::ffi::{CString, OsStr};
use std::fmt::{Debug, Display};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// What a call returned, or its errno.
pub type Seen = Result<i64, i32>;

/// A user that cases run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    pub name: &'static str,
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

pub const ROOT: User = User { name: "root", uid: 0, gid: 0, groups: &[0] };
/// Root without `CAP_FSETID`.
pub const ROOT_WITHOUT_FSETID: User = User { name: "root without CAP_FSETID", uid: 0, gid: 0, groups: &[0] };
pub const ALICE: User = User { name: "alice", uid: 1001, gid: 1001, groups: &[2001] };
pub const BOB: User = User { name: "bob", uid: 1002, gid: 1002, groups: &[2001, 2002] };
/// The users that are different to most calls.
pub const USERS: [User; 3] = [ROOT, ALICE, BOB];
/// All of them.
const EVERYBODY: [User; 4] = [ROOT, ALICE, BOB, ROOT_WITHOUT_FSETID];

impl User {
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether the user is a member of the group.
    pub fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread with a user's identity, and a table of open files of its own.
struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// How long a case may take: a bound on hanging.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

impl Worker {
    fn start(user: User) -> Worker {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::spawn(move || {
            become_user(user);
            for job in queue {
                job();
            }
        });
        Worker { jobs: Some(jobs), thread: Some(thread) }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        let job = Box::new(move || {
            let _ = sender.send(work());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv_timeout(TIMEOUT).expect("a case hangs, or its thread died")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs.take();
        if !std::thread::panicking()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Makes this thread alone another user, with its own umask and open files.
fn become_user(user: User) {
    // SAFETY: plain numbers, and a list with its length.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_FILES | libc::CLONE_FS), 0);
        libc::umask(0o022);
        assert_eq!(libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid), 0);
        if user == ROOT_WITHOUT_FSETID {
            drop_capability(CAP_FSETID);
        }
    }
}

/// The number of `CAP_FSETID`.
const CAP_FSETID: u32 = 4;

/// Takes a capability away from this thread.
fn drop_capability(number: u32) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words of each set.
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: both structures are the kernel's, and outlive the calls.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()), 0);
        data[0].effective &= !(1 << number);
        assert_eq!(libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()), 0);
    }
}

/// Collects cases.
pub struct Cases {
    root: PathBuf,
    workers: Vec<Worker>,
    folders: usize,
    count: usize,
    failures: Vec<String>,
}

impl Cases {
    pub fn new(root: &Path) -> Cases {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o777)).unwrap();
        let workers = EVERYBODY.iter().map(|user| Worker::start(*user)).collect();
        Cases { root: root.to_owned(), workers, folders: 0, count: 0, failures: Vec::new() }
    }

    /// How many cases there were, and what failed.
    pub fn finish(self) -> (usize, Vec<String>) {
        (self.count, self.failures)
    }

    /// A new folder that everybody may write to.
    pub fn folder(&mut self) -> PathBuf {
        self.folders += 1;
        let folder = self.root.join(format!("case-{}", self.folders));
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        folder
    }

    /// Does something as a user.
    pub fn as_user<T: Send + 'static>(&self, user: User, work: impl FnOnce() -> T + Send + 'static) -> T {
        let at = EVERYBODY.iter().position(|known| *known == user).unwrap();
        self.workers[at].run(work)
    }

    /// One case: the call must succeed (`errno` 0) or fail with `errno`.
    pub fn expect(
        &mut self,
        what: impl Display,
        user: User,
        errno: i32,
        call: impl FnOnce() -> Seen + Send + 'static,
    ) {
        let got = self.as_user(user, call).err().unwrap_or(0);
        self.note(got == errno, || {
            format!("{what} as {}: wanted {}, got {}", user.name, name(errno), name(got))
        });
    }

    /// One case: both must be equal.
    pub fn equal<T: PartialEq + Debug>(&mut self, what: impl Display, got: T, wanted: T) {
        let equal = got == wanted;
        self.note(equal, || format!("{what}: wanted {wanted:?}, got {got:?}"));
    }

    /// One case: this must be so.
    pub fn holds(&mut self, what: impl Display, is_so: bool) {
        self.note(is_so, || format!("{what} doesn't hold"));
    }

    fn note(&mut self, passed: bool, failure: impl FnOnce() -> String) {
        self.count += 1;
        if !passed {
            self.failures.push(failure());
        }
    }
}

/// An errno for people.
fn name(errno: i32) -> String {
    match errno {
        0 => "success".to_owned(),
        _ => format!("{errno} ({})", std::io::Error::from_raw_os_error(errno)),
    }
}

/// A C string of a path.
pub fn c(path: impl AsRef<OsStr>) -> CString {
    CString::new(path.as_ref().as_bytes()).unwrap()
}

/// The result of a raw call.
pub fn seen(result: impl Into<i64>) -> Seen {
    let result = result.into();
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)) } else { Ok(result) }
}

// SAFETY of all calls below: every pointer is to a C string or a buffer that outlives the call, with its length.

/// Opens and closes.
pub fn opens(path: &Path, flags: i32, mode: u32) -> Seen {
    let fd = open(path, flags, mode)?;
    close(fd)
}

/// Opens. The descriptor belongs to the thread.
pub fn open(path: &Path, flags: i32, mode: u32) -> Result<i32, i32> {
    seen(unsafe { libc::open(c(path).as_ptr(), flags | libc::O_CLOEXEC, mode) }).map(|fd| fd as i32)
}

pub fn close(fd: i32) -> Seen {
    seen(unsafe { libc::close(fd) })
}

pub fn unlink(path: &Path) -> Seen {
    seen(unsafe { libc::unlink(c(path).as_ptr()) })
}

pub fn rmdir(path: &Path) -> Seen {
    seen(unsafe { libc::rmdir(c(path).as_ptr()) })
}

pub fn mkdir(path: &Path, mode: u32) -> Seen {
    seen(unsafe { libc::mkdir(c(path).as_ptr(), mode) })
}

/// A device is the zero device. (0:0 is a whiteout, which everybody may make.)
pub fn mknod(path: &Path, mode: u32) -> Seen {
    seen(unsafe { libc::mknod(c(path).as_ptr(), mode, libc::makedev(1, 5)) })
}

pub fn symlink(target: &str, path: &Path) -> Seen {
    seen(unsafe { libc::symlink(c(target).as_ptr(), c(path).as_ptr()) })
}

pub fn link(from: &Path, to: &Path) -> Seen {
    seen(unsafe { libc::link(c(from).as_ptr(), c(to).as_ptr()) })
}

pub fn rename(from: &Path, to: &Path, flags: u32) -> Seen {
    let (from, to) = (c(from), c(to));
    seen(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) })
}

pub fn chmod(path: &Path, mode: u32) -> Seen {
    seen(unsafe { libc::chmod(c(path).as_ptr(), mode) })
}

pub fn chown(path: &Path, uid: u32, gid: u32) -> Seen {
    seen(unsafe { libc::lchown(c(path).as_ptr(), uid, gid) })
}

pub fn truncate(path: &Path, size: i64) -> Seen {
    seen(unsafe { libc::truncate(c(path).as_ptr(), size) })
}

/// By effective ids.
pub fn access(path: &Path, mode: i32) -> Seen {
    seen(unsafe { libc::faccessat(libc::AT_FDCWD, c(path).as_ptr(), mode, libc::AT_EACCESS) })
}

pub fn stat(path: &Path) -> Result<libc::stat, i32> {
    let mut stat = unsafe { std::mem::zeroed() };
    seen(unsafe { libc::lstat(c(path).as_ptr(), &raw mut stat) }).map(|_| stat)
}

pub fn mode_of(path: &Path) -> u32 {
    stat(path).map_or(0, |stat| stat.st_mode & 0o7777)
}

pub fn pwrite(fd: i32, data: &[u8], offset: i64) -> Seen {
    seen(unsafe { libc::pwrite(fd, data.as_ptr().cast(), data.len(), offset) } as i64)
}

pub fn write(fd: i32, data: &[u8]) -> Seen {
    seen(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) } as i64)
}

pub fn pread(fd: i32, length: usize, offset: i64) -> Result<Vec<u8>, i32> {
    let mut data = vec![0; length];
    let got = seen(unsafe { libc::pread(fd, data.as_mut_ptr().cast(), length, offset) } as i64)?;
    data.truncate(got as usize);
    Ok(data)
}

/// Makes a file with content, owner and mode, as root.
pub fn put(path: &Path, content: &[u8], owner: User, mode: u32) {
    std::fs::write(path, content).unwrap();
    give(path, owner, mode);
}

/// Makes a folder with owner and mode, as root.
pub fn put_folder(path: &Path, owner: User, mode: u32) {
    std::fs::create_dir(path).unwrap();
    give(path, owner, mode);
}

/// Changes owner and mode, as root.
pub fn give(path: &Path, owner: User, mode: u32) {
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
