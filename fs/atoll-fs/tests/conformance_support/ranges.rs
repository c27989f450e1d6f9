//! fallocate, `SEEK_DATA` and `SEEK_HOLE`, copy_file_range.

use std::path::Path;

use super::harness::*;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

pub fn run(cases: &mut Cases) {
    allocating(cases);
    allocation_errors(cases);
    seeking(cases);
    copying(cases);
    copy_errors(cases);
}

fn on<T>(path: &Path, work: impl FnOnce(i32) -> Result<T, i32>) -> Result<T, i32> {
    let fd = open(path, libc::O_RDWR | libc::O_CREAT, 0o644)?;
    let done = work(fd);
    close(fd)?;
    done
}

fn fallocate(fd: i32, mode: i32, offset: i64, length: i64) -> Seen {
    // SAFETY: a descriptor and plain numbers.
    seen(unsafe { libc::fallocate(fd, mode, offset, length) })
}

fn allocating(cases: &mut Cases) {
    let modes = [
        ("allocate", 0),
        ("keep size", KEEP),
        ("punch", PUNCH | KEEP),
        ("zero", ZERO),
        ("zero, keep size", ZERO | KEEP),
    ];
    let ranges = [
        (0, 4096),
        (100, 200),
        (4096, 8192),
        (4000, 5000),
        (9_000, 100),
        (15_000, 4096),
        (30_000, 10_000),
        ((1 << 20) - 100, 5000),
    ];
    let folder = cases.folder();
    for (name, mode) in modes {
        for (offset, length) in ranges {
            let path = folder.join("file");
            put(&path, &[7; 16_000], ALICE, 0o644);
            let file = path.clone();
            let what = format!("{name} of {length} at {offset}");
            cases.expect(&what, ALICE, 0, move || on(&file, |fd| fallocate(fd, mode, offset, length)));
            let mut wanted = vec![7u8; 16_000];
            let end = (offset + length) as usize;
            if mode & KEEP == 0 && end > wanted.len() {
                wanted.resize(end, 0);
            }
            if mode & (PUNCH | ZERO) != 0 {
                let stop = end.min(wanted.len());
                if (offset as usize) < stop {
                    wanted[offset as usize..stop].fill(0);
                }
            }
            cases.holds(format_args!("content after {what}"), std::fs::read(&path).unwrap() == wanted);
        }
    }
    let path = folder.join("space");
    put(&path, b"", ALICE, 0o644);
    let file = path.clone();
    cases.expect("allocating 3 MB", ALICE, 0, move || on(&file, |fd| fallocate(fd, KEEP, 0, 3_000_000)));
    let stat_of = stat(&path).unwrap();
    cases
        .holds("allocated bytes count as used", stat_of.st_size == 0 && stat_of.st_blocks * 512 >= 3_000_000);
    let file = path.clone();
    cases.expect("making it as long", ALICE, 0, move || truncate(&file, 3_000_000));
    let file = path.clone();
    cases.expect("punching them out", ALICE, 0, move || {
        on(&file, |fd| fallocate(fd, PUNCH | KEEP, 0, 1 << 40))
    });
    cases.holds("punched bytes don't", stat(&path).unwrap().st_blocks < 100);
}

fn allocation_errors(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        put(&path, b"content", user, 0o644);
        for (what, mode, offset, length, errno) in [
            ("nothing", 0, 0, 0, libc::EINVAL),
            ("less than nothing", 0, 0, -1, libc::EINVAL),
            ("from before the start", 0, -1, 10, libc::EINVAL),
            ("past the largest offset", 0, i64::MAX - 10, 100, libc::EFBIG),
            ("a punch that changes the size", PUNCH, 0, 10, libc::EOPNOTSUPP),
            ("punch and zero", PUNCH | ZERO | KEEP, 0, 10, libc::EOPNOTSUPP),
            ("an unknown mode", 1 << 12, 0, 10, libc::EOPNOTSUPP),
        ] {
            let file = path.clone();
            cases.expect(format_args!("fallocate of {what}"), user, errno, move || {
                on(&file, |fd| fallocate(fd, mode, offset, length))
            });
        }
        let at = folder.clone();
        cases.expect("fallocate of a folder", user, libc::EBADF, move || {
            let fd = open(&at, libc::O_RDONLY, 0)?;
            let done = fallocate(fd, 0, 0, 10);
            close(fd)?;
            done
        });
        let fifo = folder.join("fifo");
        mknod(&fifo, libc::S_IFIFO | 0o666).unwrap();
        give(&fifo, user, 0o666);
        cases.expect("fallocate of a fifo", user, libc::ESPIPE, move || {
            let fd = open(&fifo, libc::O_RDWR | libc::O_NONBLOCK, 0)?;
            let done = fallocate(fd, 0, 0, 10);
            close(fd)?;
            done
        });
        let file = path.clone();
        cases.expect("posix_fallocate", user, 0, move || {
            on(&file, |fd| {
                // SAFETY: a descriptor and plain numbers.
                match unsafe { libc::posix_fallocate(fd, 0, 100_000) } {
                    0 => Ok(0),
                    errno => Err(errno),
                }
            })
        });
        cases.equal("size after posix_fallocate", stat(&path).unwrap().st_size, 100_000);
    }
}

fn seeking(cases: &mut Cases) {
    let folder = cases.folder();
    let path = folder.join("file");
    put(&path, b"", ALICE, 0o644);
    let file = path.clone();
    let made = cases.as_user(ALICE, move || {
        on(&file, |fd| {
            pwrite(fd, &[1; 8192], 0)?;
            pwrite(fd, &[2; 100], 1 << 20)?;
            pwrite(fd, &[3; 4096], 1 << 40)?;
            // SAFETY: a descriptor.
            seen(unsafe { libc::ftruncate(fd, (1 << 40) + (1 << 30)) })
        })
    });
    cases.equal("a file with holes", made, Ok(0));
    let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
    let far = 1i64 << 40;
    let end = far + (1 << 30);
    for (what, whence, from, wanted) in [
        ("data at the start", data, 0, Ok(0)),
        ("data inside data", data, 5000, Ok(5000)),
        ("data behind a hole", data, 8192, Ok(1 << 20)),
        ("data far behind", data, (1 << 20) + 4096, Ok(far)),
        ("no data any more", data, far + 4096, Err(libc::ENXIO)),
        ("data at the end", data, end, Err(libc::ENXIO)),
        ("a hole behind data", hole, 0, Ok(8192)),
        ("a hole inside a hole", hole, 10_000, Ok(10_000)),
        ("a hole behind little data", hole, 1 << 20, Ok((1 << 20) + 4096)),
        ("the last hole", hole, far, Ok(far + 4096)),
        ("a hole at the end", hole, end, Err(libc::ENXIO)),
        ("a hole past the end", hole, end + 1, Err(libc::ENXIO)),
        ("data before the start", data, -1, Err(libc::ENXIO)),
        ("a hole before the start", hole, -1, Err(libc::ENXIO)),
    ] {
        let file = path.clone();
        // SAFETY: a descriptor and plain numbers.
        let found =
            cases.as_user(ALICE, move || on(&file, |fd| seen(unsafe { libc::lseek(fd, from, whence) })));
        cases.equal(format_args!("seeking {what}"), found, wanted);
    }
    let path = folder.join("full");
    put(&path, &[1; 10_000], ALICE, 0o644);
    let file = path.clone();
    // SAFETY: as above.
    let found =
        cases.as_user(ALICE, move || on(&file, |fd| seen(unsafe { libc::lseek(fd, 0, libc::SEEK_HOLE) })));
    cases.equal("a full file has a hole at its end", found, Ok(10_000));
    let file = path.clone();
    let found = cases.as_user(ALICE, move || {
        on(&file, |fd| {
            fallocate(fd, 0, 0, 50_000)?;
            // SAFETY: as above.
            seen(unsafe { libc::lseek(fd, 20_000, libc::SEEK_DATA) })
        })
    });
    cases.equal("what is allocated and never written is no data", found, Err(libc::ENXIO));
    put(&folder.join("empty"), b"", ALICE, 0o644);
    for whence in [data, hole] {
        let file = folder.join("empty");
        // SAFETY: as above.
        cases.expect("seeking in an empty file", ALICE, libc::ENXIO, move || {
            on(&file, |fd| seen(unsafe { libc::lseek(fd, 0, whence) }))
        });
    }
}

/// All of a range, in as many calls as it takes.
fn copy_all(from: i32, mut at: i64, to: i32, mut target: i64, mut left: usize) -> Result<usize, i32> {
    let mut copied = 0;
    while left > 0 {
        // SAFETY: descriptors, and offsets that the call changes.
        let done =
            seen(unsafe { libc::copy_file_range(from, &raw mut at, to, &raw mut target, left, 0) } as i64)?
                as usize;
        if done == 0 {
            break;
        }
        copied += done;
        left -= done;
    }
    Ok(copied)
}

fn copying(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let source: Vec<u8> = (0..2_500_000u32).map(|at| (at / 13) as u8).collect();
        put(&folder.join("source"), &source, user, 0o644);
        for (from, to, length) in [
            (0, 0, 2_500_000),
            (0, 100, 1_000),
            (7, 4096, 4096),
            (4096, 7, 1_100_000),
            (2_499_000, 0, 5_000),
            (3_000_000, 0, 10),
            (1_048_000, 2_000_000, 2_000),
        ] {
            let (a, b) = (folder.join("source"), folder.join(format!("{from}-{to}")));
            put(&b, &[9; 3000], user, 0o644);
            let target = b.clone();
            let what = format!("copying {length} from {from} to {to}");
            let copied =
                cases.as_user(user, move || on(&a, |a| on(&b, |b| copy_all(a, from, b, to, length))));
            let available =
                &source[(from as usize).min(source.len())..(from as usize + length).min(source.len())];
            cases.equal(&what, copied, Ok(available.len()));
            let mut wanted = vec![9u8; 3000];
            if !available.is_empty() {
                let end = to as usize + available.len();
                wanted.resize(wanted.len().max(end), 0);
                wanted[to as usize..end].copy_from_slice(available);
            }
            cases.holds(format_args!("content after {what}"), std::fs::read(&target).unwrap() == wanted);
        }
        cases.holds("the source is as it was", std::fs::read(folder.join("source")).unwrap() == source);
        // What is written to one afterwards isn't seen in the other.
        let (a, b) = (folder.join("source"), folder.join("0-0"));
        let changed = cases.as_user(user, move || {
            on(&a, |a| {
                pwrite(a, b"changed", 500)?;
                on(&b, |b| {
                    pwrite(b, b"too", 1_500_000)?;
                    Ok((pread(b, 7, 500)?, pread(a, 3, 1_500_000)?))
                })
            })
        });
        let wanted = (source[500..507].to_vec(), source[1_500_000..1_500_003].to_vec());
        cases.equal("copies are apart", changed, Ok(wanted));
        // Within one file, and with the descriptors' own offsets.
        let file = folder.join("within");
        put(&file, b"0123456789", user, 0o644);
        let within = cases.as_user(user, move || {
            on(&file, |fd| {
                copy_all(fd, 0, fd, 20, 10)?;
                pread(fd, 100, 0)
            })
        });
        cases.equal(
            "copying within a file",
            within,
            Ok([&b"0123456789"[..], &[0; 10], b"0123456789"].concat()),
        );
        let (a, b) = (folder.join("within"), folder.join("offsets"));
        let offsets = cases.as_user(user, move || {
            on(&a, |a| {
                on(&b, |b| {
                    // SAFETY: descriptors whose own offsets are used.
                    unsafe {
                        seen(libc::lseek(a, 2, libc::SEEK_SET))?;
                        seen(libc::copy_file_range(a, std::ptr::null_mut(), b, std::ptr::null_mut(), 5, 0)
                            as i64)?;
                        Ok((
                            seen(libc::lseek(a, 0, libc::SEEK_CUR))?,
                            seen(libc::lseek(b, 0, libc::SEEK_CUR))?,
                            pread(b, 10, 0)?,
                        ))
                    }
                })
            })
        });
        cases.equal("offsets move", offsets, Ok((7, 5, b"23456".to_vec())));
    }
}

fn copy_errors(cases: &mut Cases) {
    let folder = cases.folder();
    put(&folder.join("a"), b"0123456789", ALICE, 0o644);
    put(&folder.join("b"), b"", ALICE, 0o644);
    let with = |flags_from: i32, flags_to: i32, length: usize, flags: u32| {
        let (a, b) = (folder.join("a"), folder.join("b"));
        move || {
            let (from, to) = (open(&a, flags_from, 0)?, open(&b, flags_to, 0)?);
            // SAFETY: descriptors whose own offsets are used.
            let done = seen(unsafe {
                libc::copy_file_range(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags)
            } as i64);
            close(from)?;
            close(to)?;
            done
        }
    };
    let (r, w, rw) = (libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR);
    cases.expect("copying", ALICE, 0, with(r, w, 10, 0));
    cases.expect("copying nothing", ALICE, 0, with(r, w, 0, 0));
    cases.expect("copying from one for writing", ALICE, libc::EBADF, with(w, rw, 10, 0));
    cases.expect("copying to one for reading", ALICE, libc::EBADF, with(r, r, 10, 0));
    cases.expect("copying to one that appends", ALICE, libc::EBADF, with(r, w | libc::O_APPEND, 10, 0));
    cases.expect("copying with unknown flags", ALICE, libc::EINVAL, with(r, w, 10, 7));
    for (what, from, to, length) in
        [("onto itself", 0, 0, 10), ("over its end", 0, 5, 10), ("over its start", 3, 0, 10)]
    {
        let a = folder.join("a");
        cases.expect(format_args!("copying {what}"), ALICE, libc::EINVAL, move || {
            on(&a, |fd| copy_all(fd, from, fd, to, length).map(|_| 0))
        });
    }
    for (what, from_folder, errno) in
        [("from a folder", true, libc::EISDIR), ("to a folder", false, libc::EISDIR)]
    {
        let (a, at) = (folder.join("a"), folder.clone());
        cases.expect(format_args!("copying {what}"), ALICE, errno, move || {
            let other = open(&at, libc::O_RDONLY, 0)?;
            let done = on(&a, |fd| {
                let (from, to) = if from_folder { (other, fd) } else { (fd, other) };
                copy_all(from, 0, to, 0, 10).map(|_| 0)
            });
            close(other)?;
            done
        });
    }
}
