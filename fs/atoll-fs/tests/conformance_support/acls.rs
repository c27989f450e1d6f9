//! POSIX access control lists: what they allow, what chmod does to them, what is inherited.

use std::path::Path;

use super::harness::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const NO_ID: u32 = u32::MAX;

/// Tag, permissions, id.
type Entry = (u16, u16, u32);
const USER_OBJ: u16 = 1;
const NAMED_USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const NAMED_GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

pub fn run(cases: &mut Cases) {
    allowing(cases);
    modes(cases);
    inheriting(cases);
    errors(cases);
}

fn encoded(entries: &[Entry]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, allowed, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&allowed.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

// SAFETY of the calls: C strings, and buffers with their lengths.

fn set_raw(path: &Path, name: &str, value: &[u8]) -> Seen {
    seen(unsafe { libc::setxattr(c(path).as_ptr(), c(name).as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

fn set(path: &Path, name: &str, entries: &[Entry]) -> Seen {
    set_raw(path, name, &encoded(entries))
}

fn get(path: &Path, name: &str) -> Result<Vec<Entry>, i32> {
    let mut value = vec![0u8; 4096];
    let length = seen(unsafe {
        libc::getxattr(c(path).as_ptr(), c(name).as_ptr(), value.as_mut_ptr().cast(), value.len())
    } as i64)?;
    Ok(value[4..length as usize]
        .chunks_exact(8)
        .map(|entry| {
            let number = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            (number(0), number(2), u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]))
        })
        .collect())
}

fn list(user: u16, named: &[Entry], group: u16, mask: Option<u16>, other: u16) -> Vec<Entry> {
    let mut entries = vec![(USER_OBJ, user, NO_ID)];
    entries.extend(named.iter().filter(|entry| entry.0 == NAMED_USER));
    entries.push((GROUP_OBJ, group, NO_ID));
    entries.extend(named.iter().filter(|entry| entry.0 == NAMED_GROUP));
    entries.extend(mask.map(|mask| (MASK, mask, NO_ID)));
    entries.push((OTHER, other, NO_ID));
    entries
}

/// Who may do what: the owner's entry, a named user's, the groups', others', with the mask in between.
fn allowing(cases: &mut Cases) {
    let folder = cases.folder();
    let stranger = User { uid: 3000, gid: 3000, ..ROOT };
    for allowed in 0..8u16 {
        for mask in [7u16, 4, 2, 0] {
            for (what, named, bob_counts) in [
                ("bob", vec![(NAMED_USER, allowed, 1002)], allowed & mask),
                ("bob's group", vec![(NAMED_GROUP, allowed, 2002)], allowed & mask),
                ("alice", vec![(NAMED_USER, allowed, 1001)], 1),
            ] {
                let path = folder.join(format!("{allowed}-{mask}-{what}"));
                put(&path, b"", stranger, 0o600);
                // Without group bits the kernel passes the list over: bob is one of the others then.
                let other = u16::from(what == "alice");
                set(&path, ACCESS, &list(6, &named, 0, Some(mask), other)).unwrap();
                for (bit, wanted) in [(4, libc::R_OK), (2, libc::W_OK), (1, libc::X_OK)] {
                    let errno = if bob_counts & bit != 0 { 0 } else { libc::EACCES };
                    let checked = path.clone();
                    cases.expect(
                        format_args!("access {wanted} with {allowed} for {what}, mask {mask}"),
                        BOB,
                        errno,
                        move || access(&checked, wanted),
                    );
                }
            }
        }
    }
    // Two groups that both count: any of them that allows it is enough.
    let path = folder.join("two groups");
    put(&path, b"", stranger, 0o600);
    set(&path, ACCESS, &list(6, &[(NAMED_GROUP, 4, 2001), (NAMED_GROUP, 2, 2002)], 0, Some(7), 7)).unwrap();
    for (wanted, errno) in [
        (libc::R_OK, 0),
        (libc::W_OK, 0),
        (libc::X_OK, libc::EACCES),
        (libc::R_OK | libc::W_OK, libc::EACCES),
    ] {
        let checked = path.clone();
        cases.expect(format_args!("access {wanted} by two groups"), BOB, errno, move || {
            access(&checked, wanted)
        });
    }
}

/// The permission bits and the list say the same.
fn modes(cases: &mut Cases) {
    let folder = cases.folder();
    let named = [(NAMED_USER, 7, 1002)];
    for user in [ROOT, ALICE] {
        let path = folder.join(user.name);
        put(&path, b"", user, 0o640);
        let file = path.clone();
        cases.expect("setting a list", user, 0, move || set(&file, ACCESS, &list(6, &named, 4, Some(5), 1)));
        cases.equal("the mode follows", mode_of(&path), 0o651);
        for (mode, wanted) in [
            (0o700, list(7, &named, 4, Some(0), 0)),
            (0o667, list(6, &named, 4, Some(6), 7)),
            (0o4771, list(7, &named, 4, Some(7), 1)),
        ] {
            let file = path.clone();
            cases.expect(format_args!("chmod to {mode:o}"), user, 0, move || chmod(&file, mode));
            cases.equal(format_args!("the list after chmod to {mode:o}"), get(&path, ACCESS), Ok(wanted));
            cases.equal("the mode", mode_of(&path), mode);
        }
        let file = path.clone();
        cases.expect("a list that says no more than a mode", user, 0, move || {
            set(&file, ACCESS, &list(6, &[], 4, None, 0))
        });
        cases.equal("is a mode", (mode_of(&path) & 0o777, get(&path, ACCESS)), (0o640, Err(libc::ENODATA)));
        let file = path.clone();
        cases.expect("removing what isn't there", user, 0, move || {
            seen(unsafe { libc::removexattr(c(&file).as_ptr(), c(ACCESS).as_ptr()) })
        });
        let file = path.clone();
        let removed = cases.as_user(user, move || {
            set(&file, ACCESS, &list(6, &[(NAMED_USER, 7, 1002)], 4, Some(7), 0))?;
            seen(unsafe { libc::removexattr(c(&file).as_ptr(), c(ACCESS).as_ptr()) })
        });
        cases.equal("removing a list", (removed, get(&path, ACCESS)), (Ok(0), Err(libc::ENODATA)));
    }
    // Set-gid goes when somebody who isn't in the file's group sets a list.
    for (group, kept) in [(1001, true), (2002, false)] {
        let path = folder.join(format!("set-gid-{group}"));
        put(&path, b"", User { gid: group, ..ALICE }, 0o644);
        give(&path, User { gid: group, ..ALICE }, 0o2755);
        let file = path.clone();
        cases.expect("a list on a set-gid file", ALICE, 0, move || {
            set(&file, ACCESS, &list(7, &[(NAMED_USER, 7, 1002)], 5, Some(5), 5))
        });
        cases.equal(format_args!("set-gid of group {group} is kept"), mode_of(&path) & 0o2000 != 0, kept);
    }
}

/// What is made in a folder gets its default list, bounded by the mode; the umask doesn't count then.
fn inheriting(cases: &mut Cases) {
    for user in USERS {
        for (mask, umask) in [(7, 0o077), (5, 0o022), (0, 0)] {
            let folder = cases.folder();
            let at = folder.join("at");
            put_folder(&at, ROOT, 0o777);
            let named = [(NAMED_USER, 7, 1002), (NAMED_GROUP, 5, 2002)];
            let default = list(7, &named, 7, Some(mask), 5);
            set(&at, DEFAULT, &default).unwrap();
            let made = at.clone();
            let done = cases.as_user(user, move || {
                // SAFETY: a plain number.
                unsafe { libc::umask(umask) };
                let done = opens(&made.join("file"), libc::O_CREAT | libc::O_WRONLY, 0o664)
                    .and_then(|_| mkdir(&made.join("folder"), 0o755))
                    .and_then(|_| mknod(&made.join("fifo"), libc::S_IFIFO | 0o600))
                    .and_then(|_| symlink("x", &made.join("link")));
                // SAFETY: as above.
                unsafe { libc::umask(0o022) };
                done
            });
            cases.equal("making things in a folder with a default list", done, Ok(0));
            for (name, mode) in [("file", 0o664u16), ("folder", 0o755), ("fifo", 0o600)] {
                let (user_bits, group_bits, other_bits) =
                    (mode >> 6 & 7 & 7, mode >> 3 & 7 & mask, mode & 7 & 5);
                let wanted = list(user_bits, &named, 7, Some(group_bits), other_bits);
                cases.equal(
                    format_args!("the list of a {name}, mask {mask}"),
                    get(&at.join(name), ACCESS),
                    Ok(wanted),
                );
                let bits = u32::from(user_bits << 6 | group_bits << 3 | other_bits);
                cases.equal(format_args!("the mode of a {name}, mask {mask}"), mode_of(&at.join(name)), bits);
            }
            cases.equal("a folder passes it on", get(&at.join("folder"), DEFAULT), Ok(default));
            cases.equal("a file doesn't", get(&at.join("file"), DEFAULT), Err(libc::ENODATA));
        }
        // A default list that says no more than a mode leaves files without a list, and still takes the umask's place.
        let folder = cases.folder();
        let at = folder.join("at");
        put_folder(&at, ROOT, 0o777);
        set(&at, DEFAULT, &list(7, &[], 7, None, 4)).unwrap();
        let made = at.join("file");
        cases.expect("creating", user, 0, move || opens(&made, libc::O_CREAT | libc::O_WRONLY, 0o666));
        cases.equal(
            "mode and list",
            (mode_of(&at.join("file")), get(&at.join("file"), ACCESS)),
            (0o664, Err(libc::ENODATA)),
        );
    }
}

fn errors(cases: &mut Cases) {
    let folder = cases.folder();
    let named = [(NAMED_USER, 7, 1002)];
    put(&folder.join("file"), b"", ALICE, 0o666);
    put_folder(&folder.join("folder"), ALICE, 0o777);
    for name in ["file", "folder"] {
        for user in USERS {
            let errno = if user == BOB { libc::EPERM } else { 0 };
            let path = folder.join(name);
            cases.expect(format_args!("setting the list of alice's {name}"), user, errno, move || {
                set(&path, ACCESS, &list(7, &named, 7, Some(7), 7))
            });
        }
    }
    let path = folder.join("file");
    cases.expect("a default list of a file", ALICE, libc::EACCES, move || {
        set(&path, DEFAULT, &list(7, &named, 7, Some(7), 7))
    });
    let complete = list(7, &named, 7, Some(7), 7);
    let without = |tag: u16| complete.iter().copied().filter(|entry| entry.0 != tag).collect::<Vec<_>>();
    let mut twice = complete.clone();
    twice.insert(1, (NAMED_USER, 7, 1002));
    for (what, entries) in [
        ("without the owner", without(USER_OBJ)),
        ("without the group", without(GROUP_OBJ)),
        ("without others", without(OTHER)),
        ("without a mask", without(MASK)),
        (
            "with a user twice and out of order",
            vec![complete[1], complete[0], complete[2], complete[3], complete[4]],
        ),
        ("with too much allowed", list(15, &named, 7, Some(7), 7)),
        ("with an unknown tag", [complete.clone(), vec![(0x40, 7, NO_ID)]].concat()),
    ] {
        let path = folder.join("file");
        cases
            .expect(format_args!("a list {what}"), ALICE, libc::EINVAL, move || set(&path, ACCESS, &entries));
    }
    for (what, value, errno) in [
        (
            "of another version",
            [&9u32.to_le_bytes()[..], &encoded(&complete)[4..]].concat(),
            libc::EOPNOTSUPP,
        ),
        ("that ends early", encoded(&complete)[..7].to_vec(), libc::EINVAL),
        ("of two bytes", vec![2, 0], libc::EINVAL),
    ] {
        let path = folder.join("file");
        cases.expect(format_args!("a list {what}"), ALICE, errno, move || set_raw(&path, ACCESS, &value));
    }
}
