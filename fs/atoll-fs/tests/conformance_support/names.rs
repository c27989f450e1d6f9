//! Making, removing, renaming and opening, for every kind of thing that may be there.

use std::path::Path;

use super::harness::*;

/// Kinds of things.
const KINDS: [&str; 7] = ["nothing", "file", "folder", "full folder", "link", "fifo", "socket"];

fn make(kind: &str, path: &Path, owner: User) {
    match kind {
        "nothing" => return,
        "file" => std::fs::write(path, b"content").unwrap(),
        "folder" => std::fs::create_dir(path).unwrap(),
        "full folder" => {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("inside"), b"").unwrap();
        }
        "link" => std::os::unix::fs::symlink("target", path).unwrap(),
        "fifo" => mknod(path, libc::S_IFIFO | 0o644).map(drop).unwrap(),
        "socket" => mknod(path, libc::S_IFSOCK | 0o644).map(drop).unwrap(),
        other => panic!("{other}"),
    }
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).unwrap();
}

fn is_folder(kind: &str) -> bool {
    kind.ends_with("folder")
}

pub fn run(cases: &mut Cases) {
    taken(cases);
    removing(cases);
    renaming(cases);
    exchanging(cases);
    linking(cases);
    opening(cases);
    special(cases);
    unnamed(cases);
}

/// What is to be new must not be there.
fn taken(cases: &mut Cases) {
    type Make = fn(&Path) -> Seen;
    let calls: [(&str, Make); 7] = [
        ("mkdir", |path| mkdir(path, 0o755)),
        ("mkfifo", |path| mknod(path, libc::S_IFIFO | 0o600)),
        ("mknod of a file", |path| mknod(path, libc::S_IFREG | 0o600)),
        ("mknod of a socket", |path| mknod(path, libc::S_IFSOCK | 0o600)),
        ("symlink", |path| symlink("somewhere", path)),
        ("link", |path| link(&path.with_file_name("other"), path)),
        ("open O_EXCL", |path| opens(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o600)),
    ];
    for user in USERS {
        let folder = cases.folder();
        put(&folder.join("other"), b"", user, 0o666);
        for (what, call) in calls {
            for kind in KINDS {
                let path = folder.join(format!("{what} {kind}"));
                make(kind, &path, user);
                let errno = if kind == "nothing" { 0 } else { libc::EEXIST };
                cases.expect(format_args!("{what} where there is {kind}"), user, errno, move || call(&path));
            }
        }
    }
}

fn removing(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        for kind in KINDS {
            let path = folder.join(kind);
            make(kind, &path, user);
            let (wanted_unlink, wanted_rmdir) = match kind {
                "nothing" => (libc::ENOENT, libc::ENOENT),
                "folder" => (libc::EISDIR, 0),
                "full folder" => (libc::EISDIR, libc::ENOTEMPTY),
                _ => (0, libc::ENOTDIR),
            };
            let again = path.clone();
            cases.expect(format_args!("rmdir of {kind}"), user, wanted_rmdir, move || rmdir(&again));
            let after = if kind == "folder" { libc::ENOENT } else { wanted_unlink };
            cases.expect(format_args!("unlink of {kind}"), user, after, move || unlink(&path));
        }
        for (name, errno) in [(".", libc::EINVAL), ("..", libc::ENOTEMPTY)] {
            let path = folder.join("dots").join(name);
            let _ = std::fs::create_dir(folder.join("dots"));
            cases.expect(format_args!("rmdir of {name}"), user, errno, move || rmdir(&path));
        }
    }
    // A folder that is removed while it is used.
    let folder = cases.folder();
    put_folder(&folder.join("used"), ALICE, 0o755);
    let path = folder.join("used");
    let fd = cases.as_user(ALICE, move || {
        let fd = open(&path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        rmdir(&path).map(|_| fd)
    });
    let fd = fd.unwrap();
    cases.expect("making something in a removed folder", ALICE, libc::ENOENT, move || {
        // SAFETY: a C string.
        seen(unsafe { libc::openat(fd, c"new".as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600) })
    });
    cases.expect("closing it", ALICE, 0, move || close(fd));
}

fn renaming(cases: &mut Cases) {
    for user in [ROOT, ALICE] {
        for flags in [0, libc::RENAME_NOREPLACE] {
            for from in KINDS {
                for to in KINDS {
                    let folder = cases.folder();
                    let (source, target) = (folder.join("source"), folder.join("target"));
                    make(from, &source, user);
                    make(to, &target, user);
                    let errno = if from == "nothing" {
                        libc::ENOENT
                    } else if flags != 0 && to != "nothing" {
                        libc::EEXIST
                    } else {
                        match (is_folder(from), to) {
                            (true, "folder") | (_, "nothing") => 0,
                            (true, "full folder") => libc::ENOTEMPTY,
                            (true, _) => libc::ENOTDIR,
                            (false, "folder" | "full folder") => libc::EISDIR,
                            (false, _) => 0,
                        }
                    };
                    let what = format!("rename of {from} to {to} with flags {flags}");
                    let (a, b) = (source.clone(), target.clone());
                    cases.expect(&what, user, errno, move || rename(&a, &b, flags));
                    if errno == 0 {
                        cases.equal(
                            format_args!("{what}: what is left"),
                            stat(&source).err(),
                            Some(libc::ENOENT),
                        );
                    }
                    // Folders are many; nobody needs them any more.
                    std::fs::remove_dir_all(&folder).unwrap();
                }
            }
        }
    }
    let folder = cases.folder();
    put_folder(&folder.join("a"), ALICE, 0o755);
    put_folder(&folder.join("a/b"), ALICE, 0o755);
    put(&folder.join("file"), b"", ALICE, 0o644);
    let mut check = |what: &str, from: &str, to: &str, flags, errno| {
        let (from, to) = (folder.join(from), folder.join(to));
        cases.expect(format_args!("rename {what}"), ALICE, errno, move || rename(&from, &to, flags));
    };
    check("below itself", "a", "a/c", 0, libc::EINVAL);
    check("far below itself", "a", "a/b/c", 0, libc::EINVAL);
    check("over its own parent", "a/b", "a", 0, libc::ENOTEMPTY);
    check("to its own name", "a", "a", 0, 0);
    check("of .", "a/.", "c", 0, libc::EBUSY);
    check("of ..", "a/..", "c", 0, libc::EBUSY);
    check("to .", "file", "a/.", 0, libc::EBUSY);
    check("of a file with a slash behind", "file/", "c", 0, libc::ENOTDIR);
    check("of a file to a name with a slash", "file", "c/", 0, libc::ENOTDIR);
    check("with unknown flags", "file", "c", 1 << 20, libc::EINVAL);
    check(
        "with contradictory flags",
        "file",
        "a",
        libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE,
        libc::EINVAL,
    );
    check("of a folder with a slash behind", "a/", "c/", 0, 0);
    // Two names of one file: nothing happens.
    let (one, two) = (folder.join("file"), folder.join("two"));
    std::fs::hard_link(&one, &two).unwrap();
    let (a, b) = (one.clone(), two.clone());
    cases.expect("rename to another name of the same file", ALICE, 0, move || rename(&a, &b, 0));
    cases.holds("both names of one file are still there", one.exists() && two.exists());
}

fn exchanging(cases: &mut Cases) {
    let flags = libc::RENAME_EXCHANGE;
    for from in KINDS {
        for to in KINDS {
            let folder = cases.folder();
            let (source, target) = (folder.join("source"), folder.join("target"));
            make(from, &source, ALICE);
            make(to, &target, ALICE);
            let errno = if from == "nothing" || to == "nothing" { libc::ENOENT } else { 0 };
            let before = (stat(&source).map(|s| s.st_ino), stat(&target).map(|s| s.st_ino));
            let (a, b) = (source.clone(), target.clone());
            let what = format!("exchange of {from} and {to}");
            cases.expect(&what, ALICE, errno, move || rename(&a, &b, flags));
            let after = (stat(&target).map(|s| s.st_ino), stat(&source).map(|s| s.st_ino));
            if errno == 0 {
                cases.equal(format_args!("{what}: inodes"), after, before);
            }
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
    let folder = cases.folder();
    put_folder(&folder.join("a"), ALICE, 0o755);
    put_folder(&folder.join("a/b"), ALICE, 0o755);
    for (from, to) in [("a", "a/b"), ("a/b", "a")] {
        let (from, to) = (folder.join(from), folder.join(to));
        cases.expect("exchange with one below", ALICE, libc::EINVAL, move || rename(&from, &to, flags));
    }
    put(&folder.join("file"), b"", ALICE, 0o644);
    let (from, to) = (folder.join("file"), folder.join("gone"));
    let left = from.clone();
    cases.expect("rename that leaves a whiteout", ROOT, 0, move || rename(&from, &to, libc::RENAME_WHITEOUT));
    let left = stat(&left).unwrap();
    cases.equal("the whiteout", (left.st_mode & libc::S_IFMT, left.st_rdev), (libc::S_IFCHR, 0));
}

fn linking(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        for kind in KINDS {
            let (path, to) = (folder.join(kind), folder.join(format!("{kind}-link")));
            make(kind, &path, user);
            let errno = match kind {
                "nothing" => libc::ENOENT,
                kind if is_folder(kind) => libc::EPERM,
                _ => 0,
            };
            let again = to.clone();
            cases.expect(format_args!("link of {kind}"), user, errno, move || link(&path, &to));
            if errno == 0 {
                cases.equal(format_args!("links of {kind}"), stat(&again).unwrap().st_nlink, 2);
            }
        }
    }
}

fn opening(cases: &mut Cases) {
    let accesses = [("O_RDONLY", libc::O_RDONLY), ("O_WRONLY", libc::O_WRONLY), ("O_RDWR", libc::O_RDWR)];
    let others = [
        ("", 0),
        ("O_DIRECTORY", libc::O_DIRECTORY),
        ("O_NOFOLLOW", libc::O_NOFOLLOW),
        ("O_CREAT", libc::O_CREAT),
        ("O_APPEND", libc::O_APPEND),
    ];
    for user in USERS {
        let folder = cases.folder();
        for kind in KINDS {
            make(kind, &folder.join(kind), user);
        }
        put(&folder.join("target"), b"", user, 0o644);
        for kind in KINDS.into_iter().filter(|kind| *kind != "nothing") {
            for (access_name, access) in accesses {
                for (other_name, other) in others {
                    let writes = access != libc::O_RDONLY;
                    let errno = match kind {
                        _ if other == libc::O_NOFOLLOW && kind == "link" => libc::ELOOP,
                        _ if other == libc::O_DIRECTORY && !is_folder(kind) => libc::ENOTDIR,
                        kind if is_folder(kind) && (writes || other == libc::O_CREAT) => libc::EISDIR,
                        "fifo" if access == libc::O_WRONLY => libc::ENXIO,
                        "socket" => libc::ENXIO,
                        _ => 0,
                    };
                    let path = folder.join(kind);
                    let what = format!("open of {kind} {access_name} {other_name}");
                    let flags = access | other | libc::O_NONBLOCK;
                    cases.expect(what, user, errno, move || opens(&path, flags, 0o644));
                }
            }
        }
    }
}

fn special(cases: &mut Cases) {
    let folder = cases.folder();
    let at = |name: &str| folder.join(name);
    // Devices are made by root alone; fifos, sockets and files by everybody.
    for user in USERS {
        for (what, mode) in [("a character device", libc::S_IFCHR), ("a block device", libc::S_IFBLK)] {
            let path = at(&format!("{what} {}", user.name));
            let errno = if user.is_root() { 0 } else { libc::EPERM };
            cases.expect(format_args!("mknod of {what}"), user, errno, move || mknod(&path, mode | 0o600));
        }
        let path = at("strange");
        cases.expect("mknod of a folder", user, libc::EPERM, move || mknod(&path, libc::S_IFDIR | 0o600));
        let path = at("strange");
        cases.expect("mknod of nothing sensible", user, libc::EINVAL, move || mknod(&path, 0o030_000));
        let path = at("empty-target");
        cases.expect("symlink to nothing", user, libc::ENOENT, move || symlink("", &path));
        let path = at("long-target");
        let target = "t".repeat(4096);
        cases
            .expect("symlink to more than a path", user, libc::ENAMETOOLONG, move || symlink(&target, &path));
        for length in [1, 100, 4095] {
            let (path, target) = (at(&format!("{length} {}", user.name)), "t".repeat(length));
            let (again, wanted) = (path.clone(), target.clone());
            cases.expect(format_args!("symlink of {length} bytes"), user, 0, move || symlink(&target, &path));
            let size = stat(&again).unwrap().st_size as usize;
            let back = std::fs::read_link(&again).unwrap();
            cases.equal("its target", (back.as_os_str().len(), size), (wanted.len(), length));
        }
        for kind in ["file", "folder", "fifo"] {
            let path = at(&format!("{kind} {}", user.name));
            make(kind, &path, user);
            cases.expect(format_args!("readlink of {kind}"), user, libc::EINVAL, move || {
                let mut to = [0; 8];
                // SAFETY: a C string and a buffer with its length.
                seen(unsafe { libc::readlink(c(&path).as_ptr(), to.as_mut_ptr(), to.len()) } as i64)
            });
        }
    }
    // Numbers of links of folders are those of their subfolders.
    let parent = at("parent");
    std::fs::create_dir(&parent).unwrap();
    for count in 0..3u64 {
        cases.equal("links of a folder", stat(&parent).unwrap().st_nlink, 2 + count);
        std::fs::create_dir(parent.join(count.to_string())).unwrap();
    }
}

/// `O_TMPFILE`: files without a name.
fn unnamed(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        for (access, errno) in [(libc::O_RDWR, 0), (libc::O_WRONLY, 0), (libc::O_RDONLY, libc::EINVAL)] {
            let path = folder.clone();
            cases.expect(format_args!("O_TMPFILE with access {access}"), user, errno, move || {
                opens(&path, libc::O_TMPFILE | access, 0o640)
            });
        }
        let missing = folder.join("missing");
        cases.expect("O_TMPFILE in a missing folder", user, libc::ENOENT, move || {
            opens(&missing, libc::O_TMPFILE | libc::O_RDWR, 0o640)
        });
        put(&folder.join("file"), b"", user, 0o644);
        let file = folder.join("file");
        cases.expect("O_TMPFILE in a file", user, libc::ENOTDIR, move || {
            opens(&file, libc::O_TMPFILE | libc::O_RDWR, 0o640)
        });
        for (exclusive, errno) in [(0, 0), (libc::O_EXCL, libc::ENOENT)] {
            let (path, to) = (folder.clone(), folder.join(format!("named-{exclusive}")));
            let named = to.clone();
            cases.expect(format_args!("giving it a name, flags {exclusive}"), user, errno, move || {
                let fd = open(&path, libc::O_TMPFILE | libc::O_RDWR | exclusive, 0o640)?;
                let content = pwrite(fd, b"content", 0).and_then(|_| pread(fd, 100, 0));
                assert_eq!(content, Ok(b"content".to_vec()));
                let from = c(format!("/proc/thread-self/fd/{fd}"));
                // SAFETY: C strings.
                let linked = seen(unsafe {
                    libc::linkat(
                        libc::AT_FDCWD,
                        from.as_ptr(),
                        libc::AT_FDCWD,
                        c(&to).as_ptr(),
                        libc::AT_SYMLINK_FOLLOW,
                    )
                });
                close(fd)?;
                linked
            });
            if errno == 0 {
                let content = std::fs::read(&named).unwrap_or_default();
                let stat = stat(&named).unwrap();
                let seen = (content, stat.st_mode & 0o7777, stat.st_nlink, stat.st_uid);
                cases.equal("what was named", seen, (b"content".to_vec(), 0o640, 1, user.uid));
            }
        }
        put_folder(&folder.join("closed"), ROOT, 0o755);
        let closed = folder.join("closed");
        let errno = if user.is_root() { 0 } else { libc::EACCES };
        cases.expect("O_TMPFILE in a folder of others", user, errno, move || {
            opens(&closed, libc::O_TMPFILE | libc::O_RDWR, 0o640)
        });
    }
}
