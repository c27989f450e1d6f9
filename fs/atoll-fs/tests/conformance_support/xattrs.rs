//! Extended attributes.

use std::path::Path;

use super::harness::*;

pub fn run(cases: &mut Cases) {
    values(cases);
    names(cases);
    permissions(cases);
    kinds(cases);
}

// SAFETY of the calls: C strings, and buffers with their lengths.

fn set(path: &Path, name: &str, value: &[u8], flags: i32) -> Seen {
    seen(unsafe {
        libc::lsetxattr(c(path).as_ptr(), c(name).as_ptr(), value.as_ptr().cast(), value.len(), flags)
    })
}

fn get(path: &Path, name: &str, room: usize) -> Result<Vec<u8>, i32> {
    let mut value = vec![0u8; room];
    let length =
        seen(
            unsafe { libc::lgetxattr(c(path).as_ptr(), c(name).as_ptr(), value.as_mut_ptr().cast(), room) }
                as i64,
        )?;
    value.truncate(length as usize);
    Ok(value)
}

fn length(path: &Path, name: &str) -> Seen {
    seen(unsafe { libc::lgetxattr(c(path).as_ptr(), c(name).as_ptr(), std::ptr::null_mut(), 0) } as i64)
}

fn remove(path: &Path, name: &str) -> Seen {
    seen(unsafe { libc::lremovexattr(c(path).as_ptr(), c(name).as_ptr()) })
}

fn list(path: &Path) -> Result<Vec<String>, i32> {
    let mut names = vec![0u8; 65_536];
    let length =
        seen(unsafe { libc::llistxattr(c(path).as_ptr(), names.as_mut_ptr().cast(), names.len()) } as i64)?;
    let mut names: Vec<String> = names[..length as usize]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .filter(|name| name.starts_with("user.") || name.starts_with("trusted."))
        .collect();
    names.sort();
    Ok(names)
}

fn values(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        for kind in ["file", "folder"] {
            let path = folder.join(kind);
            if kind == "file" {
                put(&path, b"", user, 0o644)
            } else {
                put_folder(&path, user, 0o755)
            }
            for size in [0usize, 1, 100, 1000, 3000] {
                let (file, value) = (path.clone(), vec![size as u8; size]);
                let wanted = value.clone();
                cases.expect(format_args!("setxattr of {size} bytes on a {kind}"), user, 0, move || {
                    set(&file, "user.value", &value, 0)
                });
                let file = path.clone();
                let back = cases
                    .as_user(user, move || (get(&file, "user.value", 65_536), length(&file, "user.value")));
                cases.equal(format_args!("getxattr of {size} bytes"), back, (Ok(wanted), Ok(size as i64)));
            }
            let mut check = |what: &str, errno: i32, call: Box<dyn FnOnce(&Path) -> Seen + Send>| {
                let file = path.clone();
                cases.expect(format_args!("{what} on a {kind}"), user, errno, move || call(&file));
            };
            check(
                "getxattr with too little room",
                libc::ERANGE,
                Box::new(|path| get(path, "user.value", 10).map(|_| 0)),
            );
            check("getxattr of none", libc::ENODATA, Box::new(|path| get(path, "user.none", 10).map(|_| 0)));
            check("removexattr of none", libc::ENODATA, Box::new(|path| remove(path, "user.none")));
            check(
                "XATTR_CREATE of one that is there",
                libc::EEXIST,
                Box::new(|path| set(path, "user.value", b"x", libc::XATTR_CREATE)),
            );
            check(
                "XATTR_REPLACE of none",
                libc::ENODATA,
                Box::new(|path| set(path, "user.none", b"x", libc::XATTR_REPLACE)),
            );
            check("XATTR_CREATE", 0, Box::new(|path| set(path, "user.new", b"x", libc::XATTR_CREATE)));
            check("XATTR_REPLACE", 0, Box::new(|path| set(path, "user.new", b"yy", libc::XATTR_REPLACE)));
            check("unknown flags", libc::EINVAL, Box::new(|path| set(path, "user.new", b"x", 8)));
            check(
                "a value that is too long",
                libc::E2BIG,
                Box::new(|path| set(path, "user.new", &[0; 65_537], 0)),
            );
            let file = path.clone();
            let listed = cases.as_user(user, move || list(&file));
            cases.equal("listxattr", listed, Ok(vec!["user.new".to_owned(), "user.value".to_owned()]));
            let file = path.clone();
            cases.expect("removexattr", user, 0, move || remove(&file, "user.new"));
            let file = path.clone();
            let listed = cases.as_user(user, move || list(&file));
            cases.equal("listxattr afterwards", listed, Ok(vec!["user.value".to_owned()]));
            let file = path.clone();
            cases.expect("listxattr with too little room", user, libc::ERANGE, move || {
                let mut names = [0; 3];
                seen(unsafe { libc::llistxattr(c(&file).as_ptr(), names.as_mut_ptr(), 3) } as i64)
            });
        }
    }
}

fn names(cases: &mut Cases) {
    let folder = cases.folder();
    let path = folder.join("file");
    put(&path, b"", ALICE, 0o644);
    let longest = format!("user.{}", "n".repeat(250));
    let too_long = format!("user.{}", "n".repeat(251));
    for (what, name, errno) in [
        ("the longest name", longest.as_str(), 0),
        ("a name that is too long", &too_long, libc::ERANGE),
        ("an empty name", "", libc::ERANGE),
        ("a namespace alone", "user.", libc::EINVAL),
        ("no namespace", "value", libc::EOPNOTSUPP),
        ("an unknown namespace", "other.value", libc::EOPNOTSUPP),
        ("odd characters", "user.\u{1}\u{e4} \n", 0),
    ] {
        let (file, name) = (path.clone(), name.to_owned());
        let again = name.clone();
        cases.expect(format_args!("setxattr with {what}"), ALICE, errno, move || set(&file, &name, b"x", 0));
        if errno == 0 {
            let file = path.clone();
            let back = cases.as_user(ALICE, move || get(&file, &again, 10));
            cases.equal(format_args!("getxattr with {what}"), back, Ok(b"x".to_vec()));
        }
    }
}

fn permissions(cases: &mut Cases) {
    let folder = cases.folder();
    for (mode, reads, writes) in
        [(0o666, true, true), (0o644, true, false), (0o600, false, false), (0o622, false, true)]
    {
        let path = folder.join(format!("{mode:o}"));
        put(&path, b"", ALICE, mode);
        set(&path, "user.value", b"x", 0).unwrap();
        let errno = |allowed: bool| if allowed { 0 } else { libc::EACCES };
        for user in USERS {
            let (reads, writes) = (user != BOB || reads, user != BOB || writes);
            let file = path.clone();
            cases.expect(format_args!("getxattr, mode {mode:o}"), user, errno(reads), move || {
                get(&file, "user.value", 10).map(|_| 0)
            });
            let file = path.clone();
            cases.expect(format_args!("setxattr, mode {mode:o}"), user, errno(writes), move || {
                set(&file, "user.value", b"y", 0)
            });
            let file = path.clone();
            cases.expect(format_args!("listxattr, mode {mode:o}"), user, 0, move || list(&file).map(|_| 0));
        }
    }
    let path = folder.join("trusted");
    put(&path, b"", ALICE, 0o666);
    for user in USERS {
        let (set_errno, get_errno) = if user.is_root() { (0, 0) } else { (libc::EPERM, libc::ENODATA) };
        let file = path.clone();
        cases.expect("setxattr of a trusted one", user, set_errno, move || {
            set(&file, "trusted.value", b"x", 0)
        });
        let file = path.clone();
        cases.expect("getxattr of a trusted one", user, get_errno, move || {
            get(&file, "trusted.value", 10).map(|_| 0)
        });
        let file = path.clone();
        let listed = cases.as_user(user, move || list(&file));
        let wanted = if user.is_root() { vec!["trusted.value".to_owned()] } else { Vec::new() };
        cases.equal("listing trusted ones", listed, Ok(wanted));
    }
    // In a sticky folder's own attributes only the owner writes.
    let sticky = folder.join("sticky");
    put_folder(&sticky, ALICE, 0o1777);
    for user in USERS {
        let errno = if user == BOB { libc::EPERM } else { 0 };
        let file = sticky.clone();
        cases.expect("setxattr of a sticky folder", user, errno, move || set(&file, "user.value", b"x", 0));
    }
}

/// Only files and folders have attributes of users.
fn kinds(cases: &mut Cases) {
    let folder = cases.folder();
    mknod(&folder.join("fifo"), libc::S_IFIFO | 0o666).unwrap();
    mknod(&folder.join("socket"), libc::S_IFSOCK | 0o666).unwrap();
    std::os::unix::fs::symlink("file", folder.join("link")).unwrap();
    for kind in ["fifo", "socket", "link"] {
        let path = folder.join(kind);
        std::os::unix::fs::lchown(&path, Some(1001), Some(1001)).unwrap();
        for user in [ROOT, ALICE] {
            let file = path.clone();
            cases.expect(format_args!("setxattr of a {kind}"), user, libc::EPERM, move || {
                set(&file, "user.value", b"x", 0)
            });
            let file = path.clone();
            cases.expect(format_args!("getxattr of a {kind}"), user, libc::ENODATA, move || {
                get(&file, "user.value", 10).map(|_| 0)
            });
        }
        let file = path.clone();
        cases.expect(format_args!("a trusted one of a {kind}"), ROOT, 0, move || {
            set(&file, "trusted.value", b"x", 0)
        });
    }
}
