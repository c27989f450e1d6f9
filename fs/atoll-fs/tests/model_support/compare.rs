//! Comparing two trees.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::calls::{join, shown};

/// All paths below a root, relative to it; the root itself is the empty one.
pub fn paths(root: &Path) -> Vec<Vec<u8>> {
    let mut found = vec![Vec::new()];
    let mut at = 0;
    while at < found.len() {
        let path = found[at].clone();
        at += 1;
        let full = join(root, &path);
        if !std::fs::symlink_metadata(&full).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        let mut names: Vec<Vec<u8>> = std::fs::read_dir(&full)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
            .collect();
        names.sort();
        for name in names {
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(name);
            found.push(below);
        }
    }
    found
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    attributes: String,
    content: Option<u64>,
    target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Times of a file.
pub struct Times {
    mtime: (i64, i64),
    ctime: (i64, i64),
}

fn look(root: &Path, path: &[u8]) -> (Seen, Times) {
    let full = join(root, path);
    let c = CString::new(full.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a C string, and stat is written by the call.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::lstat(c.as_ptr(), &raw mut stat), 0, "lstat {}", full.display());
        stat
    };
    let content = (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then(|| {
        use std::hash::Hasher;
        let content = std::fs::read(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()));
        assert_eq!(content.len() as i64, stat.st_size, "{}: fewer bytes than its size", full.display());
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&content);
        hasher.finish()
    });
    let target = std::fs::read_link(&full).ok().map(|target| target.as_os_str().as_bytes().to_vec());
    let mut names = vec![0u8; 70_000];
    let mut xattrs = BTreeMap::new();
    // SAFETY: buffers with their lengths.
    let n = unsafe { libc::llistxattr(c.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    for name in names[..n.max(0) as usize].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0u8; 70_000];
        // SAFETY: as above.
        let n =
            unsafe { libc::lgetxattr(c.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        xattrs.insert(name.to_vec(), value[..n.max(0) as usize].to_vec());
    }
    let attributes = String::from_utf8(shown(&stat)).unwrap();
    let times =
        Times { mtime: (stat.st_mtime, stat.st_mtime_nsec), ctime: (stat.st_ctime, stat.st_ctime_nsec) };
    (Seen { attributes, content, target, xattrs }, times)
}

/// Panics unless everything that can be seen of both trees is equal, and their times have the same order.
pub fn trees(ours: &Path, reference: &Path, history: &[String]) {
    let times = content(ours, reference, history);
    order(times, history);
}

/// Panics unless everything that can be seen of both trees but times is equal; returns the times.
pub fn content(ours: &Path, reference: &Path, history: &[String]) -> Vec<(String, Times, Times)> {
    let recent = || history[history.len().saturating_sub(12)..].join("\n");
    let (mine, theirs) = (paths(ours), paths(reference));
    assert!(mine == theirs, "the sets of names differ: {mine:?}\n{theirs:?}\n{}", recent());
    let mut times = Vec::new();
    for path in &theirs {
        let (my, my_times) = look(ours, path);
        let (their, their_times) = look(reference, path);
        let shown = String::from_utf8_lossy(path);
        assert!(my == their, "{shown} differs:\n{my:?}\n{their:?}\nlast operations:\n{}", recent());
        times.push((shown.into_owned(), my_times, their_times));
    }
    times
}

/// Panics unless the times of both trees have the same order.
fn order(times: Vec<(String, Times, Times)>, history: &[String]) {
    let recent = || history[history.len().saturating_sub(12)..].join("\n");
    // The local folder's clock ticks in milliseconds: only what it tells apart has an order.
    for what in ["mtime", "ctime"] {
        let pick = |times: &Times| if what == "mtime" { times.mtime } else { times.ctime };
        let mut order: Vec<_> = times.iter().map(|(path, my, their)| (pick(their), pick(my), path)).collect();
        order.sort_unstable();
        let mut latest = ((i64::MIN, 0), "nothing");
        let mut group: Vec<((i64, i64), &str)> = Vec::new();
        let mut at = order.first().map_or((0, 0), |(their, ..)| *their);
        for (their, my, path) in order {
            if their != at {
                latest = group.drain(..).fold(latest, |a, b| a.max(b));
                at = their;
            }
            assert!(
                my >= latest.0,
                "{what}: the local folder says that {path} changed ({their:?}) after {}, the mount says {my:?} and {:?}\n{}",
                latest.1,
                latest.0,
                recent()
            );
            group.push((my, path));
        }
    }
}
