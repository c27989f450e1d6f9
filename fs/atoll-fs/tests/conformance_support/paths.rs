//! What is wrong with a path: every call that takes one says the same of it.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::harness::*;

/// A call that takes a path, with everything else in order.
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    /// `other`: an existing file, for calls that take two.
    run: fn(path: *const libc::c_char, other: *const libc::c_char) -> i64,
    /// It changes something, so a read-only mount refuses it.
    writes: bool,
    /// It makes the name.
    makes: bool,
    /// It follows a symbolic link at the end of the path.
    follows: bool,
}

// SAFETY of all calls: the strings outlive them; buffers are as long as is said.
const CALLS: &[Call] = &[
    Call {
        name: "open",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe { closed(libc::open(path, libc::O_RDONLY | libc::O_NONBLOCK)) },
    },
    Call {
        name: "open for writing",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { closed(libc::open(path, libc::O_WRONLY | libc::O_NONBLOCK)) },
    },
    Call {
        name: "open O_CREAT",
        writes: true,
        makes: true,
        follows: true,
        run: |path, _| unsafe { closed(libc::open(path, libc::O_CREAT | libc::O_WRONLY, 0o644)) },
    },
    Call {
        name: "open O_CREAT O_EXCL",
        writes: true,
        makes: true,
        follows: false,
        run: |path, _| unsafe {
            closed(libc::open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644))
        },
    },
    Call {
        name: "open O_DIRECTORY",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe { closed(libc::open(path, libc::O_RDONLY | libc::O_DIRECTORY)) },
    },
    Call {
        name: "stat",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe {
            let mut stat = std::mem::zeroed();
            libc::stat(path, &raw mut stat).into()
        },
    },
    Call {
        name: "lstat",
        writes: false,
        makes: false,
        follows: false,
        run: |path, _| unsafe {
            let mut stat = std::mem::zeroed();
            libc::lstat(path, &raw mut stat).into()
        },
    },
    Call {
        name: "statx",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe {
            let mut statx = std::mem::zeroed();
            libc::statx(libc::AT_FDCWD, path, 0, libc::STATX_BTIME, &raw mut statx).into()
        },
    },
    Call {
        name: "statfs",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe {
            let mut statfs = std::mem::zeroed();
            libc::statfs(path, &raw mut statfs).into()
        },
    },
    Call {
        name: "access",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::access(path, libc::F_OK).into() },
    },
    Call {
        name: "readlink",
        writes: false,
        makes: false,
        follows: false,
        run: |path, _| unsafe {
            let mut to = [0; 64];
            libc::readlink(path, to.as_mut_ptr(), to.len()) as i64
        },
    },
    Call {
        name: "chmod",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::chmod(path, 0o644).into() },
    },
    Call {
        name: "chown",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::chown(path, u32::MAX, u32::MAX).into() },
    },
    Call {
        name: "lchown",
        writes: true,
        makes: false,
        follows: false,
        run: |path, _| unsafe { libc::lchown(path, u32::MAX, u32::MAX).into() },
    },
    Call {
        name: "truncate",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::truncate(path, 0).into() },
    },
    Call {
        name: "utimensat",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::utimensat(libc::AT_FDCWD, path, std::ptr::null(), 0).into() },
    },
    Call {
        name: "unlink",
        writes: true,
        makes: false,
        follows: false,
        run: |path, _| unsafe { libc::unlink(path).into() },
    },
    Call {
        name: "rmdir",
        writes: true,
        makes: false,
        follows: false,
        run: |path, _| unsafe { libc::rmdir(path).into() },
    },
    Call {
        name: "mkdir",
        writes: true,
        makes: true,
        follows: false,
        run: |path, _| unsafe { libc::mkdir(path, 0o755).into() },
    },
    Call {
        name: "mkfifo",
        writes: true,
        makes: true,
        follows: false,
        run: |path, _| unsafe { libc::mkfifo(path, 0o644).into() },
    },
    Call {
        name: "mknod",
        writes: true,
        makes: true,
        follows: false,
        run: |path, _| unsafe { libc::mknod(path, libc::S_IFREG | 0o644, 0).into() },
    },
    Call {
        name: "symlink",
        writes: true,
        makes: true,
        follows: false,
        run: |path, _| unsafe { libc::symlink(c"target".as_ptr(), path).into() },
    },
    Call {
        name: "link from",
        writes: true,
        makes: false,
        follows: false,
        run: |path, other| unsafe {
            let to = beside(other, b".new");
            libc::link(path, to.as_ptr()).into()
        },
    },
    Call {
        name: "link to",
        writes: true,
        makes: true,
        follows: false,
        run: |path, other| unsafe { libc::link(other, path).into() },
    },
    Call {
        name: "rename from",
        writes: true,
        makes: false,
        follows: false,
        run: |path, other| unsafe {
            let to = beside(other, b".new");
            libc::rename(path, to.as_ptr()).into()
        },
    },
    Call {
        name: "rename to",
        writes: true,
        makes: true,
        follows: false,
        run: |path, other| unsafe { libc::rename(other, path).into() },
    },
    Call {
        name: "getxattr",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe {
            let mut to = [0u8; 64];
            libc::getxattr(path, c"user.x".as_ptr(), to.as_mut_ptr().cast(), 64) as i64
        },
    },
    Call {
        name: "setxattr",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::setxattr(path, c"user.x".as_ptr(), c"v".as_ptr().cast(), 1, 0).into() },
    },
    Call {
        name: "listxattr",
        writes: false,
        makes: false,
        follows: true,
        run: |path, _| unsafe {
            let mut to = [0; 64];
            libc::listxattr(path, to.as_mut_ptr(), 64) as i64
        },
    },
    Call {
        name: "removexattr",
        writes: true,
        makes: false,
        follows: true,
        run: |path, _| unsafe { libc::removexattr(path, c"user.x".as_ptr()).into() },
    },
];

/// Closes what was opened.
unsafe fn closed(fd: i32) -> i64 {
    if fd >= 0 {
        // SAFETY: it was just opened.
        unsafe { libc::close(fd) };
    }
    fd.into()
}

/// A path beside another one.
unsafe fn beside(path: *const libc::c_char, suffix: &[u8]) -> CString {
    // SAFETY: the caller's string.
    let path = unsafe { std::ffi::CStr::from_ptr(path) };
    CString::new([path.to_bytes(), suffix].concat()).unwrap()
}

/// A path that is wrong, and what every call says of it.
struct Wrong {
    what: &'static str,
    path: PathBuf,
    errno: i32,
}

pub fn run(cases: &mut Cases) {
    wrong_paths(cases);
    bad_pointers(cases);
    read_only(cases);
    longest(cases);
}

fn wrong_paths(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        put(&folder.join("file"), b"", user, 0o666);
        put(&folder.join("other"), b"", user, 0o666);
        put_folder(&folder.join("closed"), ROOT, 0o700);
        put_folder(&folder.join("listed"), ROOT, 0o744);
        std::os::unix::fs::symlink("loop", folder.join("loop")).unwrap();
        std::os::unix::fs::symlink("two", folder.join("one")).unwrap();
        std::os::unix::fs::symlink("one", folder.join("two")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
        std::os::unix::fs::symlink("file", folder.join("to-file")).unwrap();
        let long = "n".repeat(256);
        let deep = format!("{}x", "./".repeat(2048));
        let wrongs = [
            Wrong { what: "a missing folder", path: folder.join("missing/name"), errno: libc::ENOENT },
            Wrong { what: "an empty path", path: PathBuf::new(), errno: libc::ENOENT },
            Wrong { what: "a file as folder", path: folder.join("file/name"), errno: libc::ENOTDIR },
            Wrong {
                what: "a link to a file as folder",
                path: folder.join("to-file/name"),
                errno: libc::ENOTDIR,
            },
            Wrong {
                what: "a link to nowhere as folder",
                path: folder.join("dangling/name"),
                errno: libc::ENOENT,
            },
            Wrong { what: "a name that is too long", path: folder.join(&long), errno: libc::ENAMETOOLONG },
            Wrong {
                what: "a folder with a name that is too long",
                path: folder.join(&long).join("name"),
                errno: libc::ENAMETOOLONG,
            },
            Wrong { what: "a path that is too long", path: folder.join(&deep), errno: libc::ENAMETOOLONG },
            Wrong { what: "a loop as folder", path: folder.join("loop/name"), errno: libc::ELOOP },
            Wrong {
                what: "two links in a circle as folder",
                path: folder.join("one/name"),
                errno: libc::ELOOP,
            },
            Wrong {
                what: "a folder without search permission",
                path: folder.join("closed/name"),
                errno: libc::EACCES,
            },
            Wrong {
                what: "a folder that may only be listed",
                path: folder.join("listed/name"),
                errno: libc::EACCES,
            },
        ];
        for call in CALLS {
            for wrong in &wrongs {
                if wrong.errno == libc::EACCES && user.is_root() {
                    continue;
                }
                expect(cases, call, user, wrong.what, &wrong.path, &folder, wrong.errno);
            }
            if !call.makes {
                let missing = folder.join("no such name");
                expect(cases, call, user, "a missing name", &missing, &folder, libc::ENOENT);
            }
            if call.follows && !call.makes {
                expect(
                    cases,
                    call,
                    user,
                    "a link to nowhere",
                    &folder.join("dangling"),
                    &folder,
                    libc::ENOENT,
                );
                expect(cases, call, user, "a loop", &folder.join("loop"), &folder, libc::ELOOP);
            }
        }
    }
}

fn expect(cases: &mut Cases, call: &Call, user: User, what: &str, path: &Path, folder: &Path, errno: i32) {
    let (run, path) = (call.run, c(path));
    let other = c(folder.join("other"));
    cases.expect(format_args!("{} of {what}", call.name), user, errno, move || {
        seen(run(path.as_ptr(), other.as_ptr()))
    });
}

fn bad_pointers(cases: &mut Cases) {
    let folder = cases.folder();
    put(&folder.join("other"), b"", ALICE, 0o666);
    for call in CALLS {
        let (run, other) = (call.run, c(folder.join("other")));
        cases.expect(format_args!("{} of a bad pointer", call.name), ALICE, libc::EFAULT, move || {
            seen(run(std::ptr::without_provenance(1), other.as_ptr()))
        });
    }
}

/// A read-only view of the folder.
fn read_only(cases: &mut Cases) {
    let folder = cases.folder();
    for name in ["file", "other"] {
        put(&folder.join(name), b"", ALICE, 0o666);
    }
    put_folder(&folder.join("view"), ROOT, 0o755);
    put_folder(&folder.join("real"), ALICE, 0o777);
    for name in ["file", "other"] {
        put(&folder.join("real").join(name), b"", ALICE, 0o666);
    }
    put_folder(&folder.join("real/folder"), ALICE, 0o777);
    let (view, real) = (folder.join("view"), folder.join("real"));
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let none = None::<&Path>;
    mount(Some(&real), &view, none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &view, none, read_only, none).unwrap();
    for user in [ROOT, ALICE] {
        for call in CALLS.iter().filter(|call| call.writes) {
            let name = match call.name {
                "rmdir" => "folder",
                _ if call.makes => "new",
                _ => "file",
            };
            // Both names of a call with two are on the read-only side, or it would be one between two mounts.
            let (run, path, other) = (call.run, c(view.join(name)), c(view.join("other")));
            cases.expect(format_args!("{} on a read-only mount", call.name), user, libc::EROFS, move || {
                seen(run(path.as_ptr(), other.as_ptr()))
            });
        }
        let (file, other) = (view.join("file"), folder.join("between"));
        let to = other.clone();
        cases.expect("link between mounts", user, libc::EXDEV, move || link(&file, &to));
        let file = view.join("file");
        cases.expect("rename between mounts", user, libc::EXDEV, move || rename(&file, &other, 0));
    }
    let busy = view.clone();
    cases.expect("rmdir of a mount point", ROOT, libc::EBUSY, move || rmdir(&busy));
    let (busy, to) = (view.clone(), folder.join("moved"));
    cases.expect("rename of a mount point", ROOT, libc::EBUSY, move || rename(&busy, &to, 0));
    let (from, busy) = (real.join("folder"), view.clone());
    cases.expect("rename over a mount point", ROOT, libc::EBUSY, move || rename(&from, &busy, 0));
    umount2(&view, MntFlags::MNT_DETACH).unwrap();
}

/// The longest names and paths work, and any byte but '/' and NUL is one.
fn longest(cases: &mut Cases) {
    let folder = cases.folder();
    let name = folder.join("n".repeat(255));
    cases.expect("mkdir of the longest name", ALICE, 0, move || mkdir(&name, 0o755));
    // A path of PATH_MAX - 1 bytes by way of a folder that is the current one.
    let path = PathBuf::from(format!(
        "{}/{}x",
        folder.display(),
        "./".repeat((4093 - folder.as_os_str().len()) / 2)
    ));
    let length = path.as_os_str().len();
    cases.holds("the path is as long as it may be", (4090..4096).contains(&length));
    cases.expect("creating by the longest path", ALICE, 0, move || {
        opens(&path, libc::O_CREAT | libc::O_RDWR, 0o600)
    });
    for byte in (1..=255u8).filter(|byte| *byte != b'/' && *byte != b'.') {
        let path = folder.join(std::ffi::OsStr::from_bytes(&[b'b', byte]));
        let again = path.clone();
        let made = cases.as_user(BOB, move || opens(&path, libc::O_CREAT | libc::O_EXCL, 0o600));
        if byte % 16 == 1 || made.is_err() {
            cases.equal(format_args!("a name with byte {byte}"), made.is_ok() && stat(&again).is_ok(), true);
        }
    }
    let names = std::fs::read_dir(&folder).unwrap().count();
    cases.equal("names of all bytes are listed", names, 253 + 2);
}
