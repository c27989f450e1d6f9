//! Owners and groups: who may change them, what a new file gets, and what that does to set-id bits.

use super::harness::*;

const SAME: u32 = u32::MAX;

pub fn run(cases: &mut Cases) {
    changing(cases);
    new_files(cases);
    set_id_bits(cases);
}

fn changing(cases: &mut Cases) {
    let folder = cases.folder();
    let ids: [(&str, u32); 4] = [("same", SAME), ("root", 0), ("alice", 1001), ("bob", 1002)];
    let groups: [(&str, u32); 5] =
        [("same", SAME), ("alice", 1001), ("bob", 1002), ("both", 2001), ("none", 3000)];
    let mut number = 0;
    for user in USERS {
        for (uid_name, uid) in ids {
            for (gid_name, gid) in groups {
                number += 1;
                let path = folder.join(number.to_string());
                put(&path, b"", ALICE, 0o644);
                // Root may do all; the owner may give the file to a group that it is in, and to nobody else.
                let owner_may = user == ALICE
                    && (uid == SAME || uid == 1001)
                    && (gid == SAME || gid == 1001 || user.is_in(gid));
                let changes_nothing = uid == SAME && gid == SAME;
                let errno = if user.is_root() || owner_may || changes_nothing { 0 } else { libc::EPERM };
                let changed = path.clone();
                let what = format!("chown of alice's file to {uid_name}:{gid_name}");
                cases.expect(&what, user, errno, move || chown(&changed, uid, gid));
                let stat = stat(&path).unwrap();
                let or = |id: u32, was: u32| if errno != 0 || id == SAME { was } else { id };
                cases.equal(
                    format_args!("{what}: owner"),
                    (stat.st_uid, stat.st_gid),
                    (or(uid, 1001), or(gid, 1001)),
                );
            }
        }
    }
    // A link's own owner, not its target's.
    std::os::unix::fs::symlink("1", folder.join("link")).unwrap();
    let link = folder.join("link");
    cases.expect("lchown of a link", ROOT, 0, {
        let link = link.clone();
        move || chown(&link, 1002, 2002)
    });
    cases.equal("owner of the link", stat(&link).map(|s| (s.st_uid, s.st_gid)), Ok((1002, 2002)));
}

/// A new file belongs to its maker, and to the maker's group or, in a set-gid folder, to the folder's.
fn new_files(cases: &mut Cases) {
    for user in USERS {
        for (mode, group) in [(0o777, 3000), (0o2777, 3000), (0o2777, 2001), (0o2777, 2002)] {
            let folder = cases.folder();
            let at = folder.join("at");
            put_folder(&at, User { gid: group, ..ROOT }, mode);
            let made = at.clone();
            let done = cases.as_user(user, move || {
                opens(&made.join("file"), libc::O_CREAT | libc::O_WRONLY, 0o666)
                    .and_then(|_| mkdir(&made.join("folder"), 0o777))
                    .and_then(|_| mknod(&made.join("fifo"), libc::S_IFIFO | 0o666))
                    .and_then(|_| symlink("x", &made.join("link")))
                    .and_then(|_| opens(&made.join("set-gid"), libc::O_CREAT | libc::O_WRONLY, 0o2777))
            });
            let what = format!("mode {mode:o}, group {group}");
            cases.equal(format_args!("making things, {what}"), done, Ok(0));
            let passes_on = mode & 0o2000 != 0;
            let wanted = if passes_on { group } else { user.gid };
            for name in ["file", "folder", "fifo", "link"] {
                let stat = stat(&at.join(name)).unwrap();
                cases.equal(
                    format_args!("owner of {name}, {what}"),
                    (stat.st_uid, stat.st_gid),
                    (user.uid, wanted),
                );
            }
            cases.equal(
                format_args!("a folder inherits set-gid, {what}"),
                mode_of(&at.join("folder")) & 0o2000 != 0,
                passes_on,
            );
            // Who isn't in the group that the file gets can't make it set-gid.
            let keeps = !passes_on || user.is_root() || user.is_in(group);
            cases.equal(
                format_args!("a new file is set-gid, {what}"),
                mode_of(&at.join("set-gid")),
                if keeps { 0o2755 } else { 0o755 },
            );
        }
    }
}

/// Writing, truncating and giving away clear set-id bits, unless root does it to content.
fn set_id_bits(cases: &mut Cases) {
    type Change = fn(&std::path::Path) -> Seen;
    let changes: [(&str, Change, bool); 8] = [
        ("write", |path| on(path, |fd| write(fd, b"x")), true),
        ("pwrite at the end", |path| on(path, |fd| pwrite(fd, b"x", 10)), true),
        ("truncate", |path| truncate(path, 3), true),
        // SAFETY: a descriptor that is open.
        ("ftruncate", |path| on(path, |fd| seen(unsafe { libc::ftruncate(fd, 2) })), true),
        ("open O_TRUNC", |path| opens(path, libc::O_WRONLY | libc::O_TRUNC, 0), true),
        // SAFETY: as above.
        ("fallocate", |path| on(path, |fd| seen(unsafe { libc::fallocate(fd, 0, 0, 100) })), true),
        ("reading", |path| on(path, |fd| pread(fd, 10, 0).map(|_| 0)), false),
        (
            "utimensat",
            |path| {
                // SAFETY: a C string; no times.
                seen(unsafe { libc::utimensat(libc::AT_FDCWD, c(path).as_ptr(), std::ptr::null(), 0) })
            },
            false,
        ),
    ];
    for user in USERS {
        let folder = cases.folder();
        for (what, change, clears) in changes {
            for (mode, cleared) in [(0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777), (0o777, 0o777)] {
                let path = folder.join(format!("{what}-{mode:o}"));
                put(&path, b"0123456789", ALICE, 0o777);
                give(&path, ALICE, mode);
                let changed = path.clone();
                cases.expect(format_args!("{what} of a file with mode {mode:o}"), user, 0, move || {
                    change(&changed)
                });
                let wanted = if clears && !user.is_root() { cleared } else { mode };
                cases.equal(
                    format_args!("mode {mode:o} after {what} by {}", user.name),
                    mode_of(&path),
                    wanted,
                );
            }
        }
    }
    let folder = cases.folder();
    for (mode, kept) in
        [(0o6755, 0o755), (0o4755, 0o755), (0o2755, 0o755), (0o2745, 0o2745), (0o1755, 0o1755)]
    {
        let path = folder.join(format!("{mode:o}"));
        put(&path, b"", ALICE, 0o755);
        give(&path, ALICE, mode);
        let changed = path.clone();
        cases.expect(format_args!("chgrp of a file with mode {mode:o}"), ROOT, 0, move || {
            chown(&changed, SAME, 2001)
        });
        cases.equal(format_args!("mode {mode:o} after chgrp"), mode_of(&path), kept);
        let path = folder.join(format!("folder-{mode:o}"));
        put_folder(&path, ALICE, mode);
        let changed = path.clone();
        cases.expect(format_args!("chgrp of a folder with mode {mode:o}"), ROOT, 0, move || {
            chown(&changed, SAME, 2001)
        });
        cases.equal(format_args!("mode {mode:o} of a folder after chgrp"), mode_of(&path), mode);
    }
}

/// Opens, does something, closes.
fn on(path: &std::path::Path, work: fn(i32) -> Seen) -> Seen {
    let fd = open(path, libc::O_RDWR, 0)?;
    let done = work(fd);
    close(fd)?;
    done
}
