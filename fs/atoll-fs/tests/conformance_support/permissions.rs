//! Permission bits: who may do what, for every combination of bits.

use super::harness::*;

pub fn run(cases: &mut Cases) {
    of_files(cases);
    of_folders(cases);
    sticky(cases);
    chmods(cases);
    umasks(cases);
}

/// Owner, group and others each have their own three bits; root needs none but an execute bit somewhere.
fn of_files(cases: &mut Cases) {
    let folder = cases.folder();
    // Whose the file is decides which bits count for alice.
    let owners = [
        ("owner", ALICE, 6),
        ("group", User { uid: 3000, gid: 2001, ..ROOT }, 3),
        ("others", User { uid: 3000, gid: 3000, ..ROOT }, 0),
    ];
    for (class, owner, shift) in owners {
        for bits in 0..8u32 {
            let path = folder.join(format!("{class}-{bits}"));
            put(&path, b"", owner, 0o644);
            // All bits of the other classes are the opposite: they must not count.
            let mode = (0o777 & !(7 << shift) & !(bits * 0o111)) | bits << shift;
            give(&path, owner, mode);
            for (bit, call, wanted) in
                [(4, "reading", libc::R_OK), (2, "writing", libc::W_OK), (1, "executing", libc::X_OK)]
            {
                let errno = if bits & bit != 0 { 0 } else { libc::EACCES };
                let checked = path.clone();
                cases.expect(format_args!("access for {call}, mode {mode:o}"), ALICE, errno, move || {
                    access(&checked, wanted)
                });
                let flags = match bit {
                    4 => libc::O_RDONLY,
                    2 => libc::O_WRONLY,
                    _ => continue,
                };
                let opened = path.clone();
                cases.expect(format_args!("open for {call}, mode {mode:o}"), ALICE, errno, move || {
                    opens(&opened, flags, 0)
                });
            }
            let errno = if bits & 2 != 0 { 0 } else { libc::EACCES };
            let cut = path.clone();
            cases.expect(format_args!("truncate, mode {mode:o}"), ALICE, errno, move || truncate(&cut, 10));
        }
    }
    for mode in [0o000, 0o100, 0o010, 0o001, 0o666] {
        let path = folder.join(format!("root-{mode:o}"));
        put(&path, b"", ALICE, mode);
        let executable = if mode & 0o111 != 0 { 0 } else { libc::EACCES };
        for (wanted, errno) in [(libc::R_OK, 0), (libc::W_OK, 0), (libc::X_OK, executable)] {
            let checked = path.clone();
            cases.expect(format_args!("access {wanted}, mode {mode:o}"), ROOT, errno, move || {
                access(&checked, wanted)
            });
        }
    }
    // The group counts by a supplementary group too, and bob isn't in one of alice's.
    for (group, user, errno) in
        [(2002, BOB, 0), (2002, ALICE, libc::EACCES), (1001, ALICE, 0), (1001, BOB, libc::EACCES)]
    {
        let path = folder.join(format!("group-{group}-{}", user.name));
        put(&path, b"", User { uid: 3000, gid: group, ..ROOT }, 0o040);
        cases
            .expect(format_args!("reading by group {group}"), user, errno, move || access(&path, libc::R_OK));
    }
}

fn of_folders(cases: &mut Cases) {
    let folder = cases.folder();
    let owners = [
        ("owner", ALICE, 6),
        ("group", User { uid: 3000, gid: 2001, ..ROOT }, 3),
        ("others", User { uid: 3000, gid: 3000, ..ROOT }, 0),
    ];
    for (class, owner, shift) in owners {
        for bits in 0..8u32 {
            let path = folder.join(format!("{class}-{bits}"));
            put_folder(&path, owner, 0o755);
            for name in ["file", "rename", "unlink"] {
                put(&path.join(name), b"", ALICE, 0o666);
            }
            put_folder(&path.join("folder"), ALICE, 0o755);
            let mode = (0o777 & !(7 << shift) & !(bits * 0o111)) | bits << shift;
            give(&path, owner, mode);
            let (lists, enters) = (bits & 4 != 0, bits & 1 != 0);
            let changes = enters && bits & 2 != 0;
            let errno = |allowed: bool| if allowed { 0 } else { libc::EACCES };
            let mut check = |what: &str, allowed: bool, call: Box<dyn FnOnce() -> Seen + Send>| {
                cases.expect(format_args!("{what}, folder with mode {mode:o}"), ALICE, errno(allowed), call);
            };
            let at = |name: &str| path.join(name);
            let listed = path.clone();
            check("listing", lists, Box::new(move || opens(&listed, libc::O_RDONLY | libc::O_DIRECTORY, 0)));
            let inner = at("file");
            check("stat inside", enters, Box::new(move || stat(&inner).map(|_| 0)));
            let inner = at("file");
            check("opening inside", enters, Box::new(move || opens(&inner, libc::O_RDWR, 0)));
            let inner = at("new");
            check(
                "creating inside",
                changes,
                Box::new(move || opens(&inner, libc::O_CREAT | libc::O_WRONLY, 0o600)),
            );
            let inner = at("new-folder");
            check("mkdir inside", changes, Box::new(move || mkdir(&inner, 0o700)));
            let inner = at("new-fifo");
            check("mkfifo inside", changes, Box::new(move || mknod(&inner, libc::S_IFIFO | 0o600)));
            let inner = at("new-link");
            check("symlink inside", changes, Box::new(move || symlink("x", &inner)));
            let (from, to) = (at("file"), at("hard"));
            check("link inside", changes, Box::new(move || link(&from, &to)));
            let (from, to) = (at("rename"), at("renamed"));
            check("rename inside", changes, Box::new(move || rename(&from, &to, 0)));
            let inner = at("unlink");
            check("unlink inside", changes, Box::new(move || unlink(&inner)));
            let inner = at("folder");
            check("rmdir inside", changes, Box::new(move || rmdir(&inner)));
        }
    }
}

/// In a sticky folder one may remove and rename what is one's own, or all if the folder is.
fn sticky(cases: &mut Cases) {
    for folder_owner in USERS {
        for owner in USERS {
            for user in USERS {
                let folder = cases.folder();
                let path = folder.join("sticky");
                put_folder(&path, folder_owner, 0o1777);
                let allowed = user.is_root() || user == folder_owner || user == owner;
                let errno = if allowed { 0 } else { libc::EPERM };
                let what = |call: &str| {
                    format!("{call} of {}'s in {}'s sticky folder", owner.name, folder_owner.name)
                };
                for name in ["unlink", "rename", "over"] {
                    put(&path.join(name), b"", owner, 0o666);
                }
                put_folder(&path.join("rmdir"), owner, 0o777);
                put(&path.join("own"), b"", user, 0o666);
                let inner = path.join("unlink");
                cases.expect(what("unlink"), user, errno, move || unlink(&inner));
                let inner = path.join("rmdir");
                cases.expect(what("rmdir"), user, errno, move || rmdir(&inner));
                let (from, to) = (path.join("rename"), path.join("renamed"));
                cases.expect(what("rename"), user, errno, move || rename(&from, &to, 0));
                let (from, to) = (path.join("own"), path.join("over"));
                cases.expect(what("rename over one"), user, errno, move || rename(&from, &to, 0));
            }
        }
    }
}

/// The owner changes the mode, and root.
fn chmods(cases: &mut Cases) {
    let folder = cases.folder();
    for owner in USERS {
        for user in USERS {
            let path = folder.join(format!("{}-{}", owner.name, user.name));
            put(&path, b"", owner, 0o644);
            let errno = if user.is_root() || user == owner { 0 } else { libc::EPERM };
            let changed = path.clone();
            cases.expect(format_args!("chmod of {}'s file", owner.name), user, errno, move || {
                chmod(&changed, 0o751)
            });
            let wanted = if errno == 0 { 0o751 } else { 0o644 };
            cases.equal("the mode afterwards", mode_of(&path), wanted);
        }
    }
    for mode in [0o7777, 0o6711, 0o4755, 0o2755, 0o1777, 0o000, 0o070, 0o007] {
        for user in [ROOT, ALICE] {
            let path = folder.join(format!("{mode:o}-{}", user.name));
            put(&path, b"", user, 0o644);
            let changed = path.clone();
            cases.expect(format_args!("chmod to {mode:o}"), user, 0, move || chmod(&changed, mode));
            cases.equal(format_args!("after chmod to {mode:o}"), mode_of(&path), mode);
        }
    }
    // Set-gid goes when the owner isn't in the file's group.
    for (group, kept) in [(1001, true), (2001, true), (2002, false), (0, false)] {
        let path = folder.join(format!("set-gid-{group}"));
        put(&path, b"", User { gid: group, ..ALICE }, 0o644);
        let changed = path.clone();
        cases.expect(format_args!("set-gid for group {group}"), ALICE, 0, move || chmod(&changed, 0o2755));
        cases.equal(format_args!("set-gid for group {group} is kept"), mode_of(&path) & 0o2000 != 0, kept);
    }
}

fn umasks(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        for umask in [0o000, 0o022, 0o027, 0o077, 0o777, 0o111] {
            let at = folder.join(format!("{umask:o}"));
            std::fs::create_dir(&at).unwrap();
            give(&at, ROOT, 0o777);
            let made = at.clone();
            let all = cases.as_user(user, move || {
                // SAFETY: a plain number.
                unsafe { libc::umask(umask) };
                let done = opens(&made.join("file"), libc::O_CREAT | libc::O_WRONLY, 0o666)
                    .and_then(|_| mkdir(&made.join("folder"), 0o777))
                    .and_then(|_| mknod(&made.join("fifo"), libc::S_IFIFO | 0o666))
                    .and_then(|_| symlink("x", &made.join("link")));
                // SAFETY: as above.
                unsafe { libc::umask(0o022) };
                done
            });
            cases.equal(format_args!("making things with umask {umask:o}"), all, Ok(0));
            for (name, mode) in [
                ("file", 0o666 & !umask),
                ("folder", 0o777 & !umask),
                ("fifo", 0o666 & !umask),
                ("link", 0o777),
            ] {
                cases.equal(
                    format_args!("mode of {name} with umask {umask:o}"),
                    mode_of(&at.join(name)),
                    mode,
                );
            }
        }
    }
}
