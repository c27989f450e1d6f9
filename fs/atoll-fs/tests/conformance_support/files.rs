//! Content: reading and writing, appending, truncating, synchronous and direct I/O, mappings.

use std::path::Path;

use super::harness::*;

pub fn run(cases: &mut Cases) {
    reading_and_writing(cases);
    wrong_descriptors(cases);
    appending(cases);
    truncating(cases);
    sizes(cases);
    direct(cases);
    vectored(cases);
    mappings(cases);
    unlinked(cases);
}

/// Opens for reading and writing, does something, closes.
fn on<T>(path: &Path, flags: i32, work: impl FnOnce(i32) -> Result<T, i32>) -> Result<T, i32> {
    let fd = open(path, libc::O_RDWR | libc::O_CREAT | flags, 0o644)?;
    let done = work(fd);
    close(fd)?;
    done
}

fn reading_and_writing(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        for (offset, length) in [
            (0i64, 1usize),
            (1, 4095),
            (4096, 4096),
            (10_000, 1),
            (65_535, 2),
            (1 << 20, 70_000),
            ((1 << 20) - 5, 10),
        ] {
            let file = path.clone();
            let data: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_add(offset as u8)).collect();
            let wanted = data.clone();
            cases.expect(format_args!("pwrite of {length} at {offset}"), user, 0, move || {
                on(&file, 0, |fd| pwrite(fd, &data, offset))
            });
            let file = path.clone();
            let back = cases.as_user(user, move || on(&file, 0, |fd| pread(fd, length, offset)));
            cases.equal(format_args!("pread of {length} at {offset}"), back, Ok(wanted));
        }
        let file = path.clone();
        let hole = cases.as_user(user, move || on(&file, 0, |fd| pread(fd, 1000, 300_000)));
        cases.equal("a hole reads as zeroes", hole, Ok(vec![0; 1000]));
        let file = path.clone();
        let end = cases.as_user(user, move || on(&file, 0, |fd| pread(fd, 1000, 1 << 30)));
        cases.equal("nothing is read past the end", end, Ok(Vec::new()));
        let file = path.clone();
        let partly = cases.as_user(user, move || on(&file, 0, |fd| pread(fd, 1000, (1 << 20) + 70_000 - 10)));
        cases.equal("less is read at the end", partly.map(|data| data.len()), Ok(10));
        for offset in [-1, i64::MIN] {
            let file = path.clone();
            cases.expect(format_args!("pwrite at {offset}"), user, libc::EINVAL, move || {
                on(&file, 0, |fd| pwrite(fd, b"x", offset))
            });
            let file = path.clone();
            cases.expect(format_args!("pread at {offset}"), user, libc::EINVAL, move || {
                on(&file, 0, |fd| pread(fd, 1, offset).map(|_| 0))
            });
        }
        let file = path.clone();
        cases.expect("writing nothing", user, 0, move || on(&file, 0, |fd| pwrite(fd, b"", 0)));
        let file = path.clone();
        cases.expect("writing from a bad pointer", user, libc::EFAULT, move || {
            // SAFETY: the kernel finds that nothing is there.
            on(
                &file,
                0,
                |fd| seen(unsafe { libc::pwrite(fd, std::ptr::without_provenance(1), 10, 0) } as i64),
            )
        });
    }
}

fn wrong_descriptors(cases: &mut Cases) {
    let folder = cases.folder();
    put(&folder.join("file"), b"content", ALICE, 0o666);
    let path = folder.join("file");
    let with = |flags: i32, work: fn(i32) -> Seen| {
        let path = path.clone();
        move || {
            let fd = open(&path, flags, 0)?;
            let done = work(fd);
            close(fd)?;
            done
        }
    };
    // SAFETY of the calls: descriptors, and buffers with their lengths.
    for (what, flags, work, errno) in [
        ("write to one for reading", libc::O_RDONLY, (|fd| write(fd, b"x")) as fn(i32) -> Seen, libc::EBADF),
        ("read from one for writing", libc::O_WRONLY, |fd| pread(fd, 1, 0).map(|_| 0), libc::EBADF),
        (
            "ftruncate of one for reading",
            libc::O_RDONLY,
            |fd| seen(unsafe { libc::ftruncate(fd, 0) }),
            libc::EINVAL,
        ),
        (
            "fallocate of one for reading",
            libc::O_RDONLY,
            |fd| seen(unsafe { libc::fallocate(fd, 0, 0, 1) }),
            libc::EBADF,
        ),
        ("write to a path", libc::O_PATH, |fd| write(fd, b"x"), libc::EBADF),
        ("read from a path", libc::O_PATH, |fd| pread(fd, 1, 0).map(|_| 0), libc::EBADF),
        ("fchmod of a path", libc::O_PATH, |fd| seen(unsafe { libc::fchmod(fd, 0o600) }), libc::EBADF),
        ("fsync", libc::O_RDONLY, |fd| seen(unsafe { libc::fsync(fd) }), 0),
        ("fdatasync", libc::O_RDONLY, |fd| seen(unsafe { libc::fdatasync(fd) }), 0),
        (
            "getdents of a file",
            libc::O_RDONLY,
            |fd| {
                seen(unsafe {
                    let mut to = [0u8; 512];
                    libc::syscall(libc::SYS_getdents64, fd, to.as_mut_ptr(), 512)
                })
            },
            libc::ENOTDIR,
        ),
        (
            "an unknown ioctl",
            libc::O_RDONLY,
            |fd| seen(unsafe { libc::ioctl(fd, 0x5401, std::ptr::null::<u8>()) }),
            libc::ENOTTY,
        ),
        (
            "lseek with an unknown whence",
            libc::O_RDONLY,
            |fd| seen(unsafe { libc::lseek(fd, 0, 99) }),
            libc::EINVAL,
        ),
        (
            "lseek before the start",
            libc::O_RDONLY,
            |fd| seen(unsafe { libc::lseek(fd, -1, libc::SEEK_SET) }),
            libc::EINVAL,
        ),
        ("lseek to the end", libc::O_RDONLY, |fd| seen(unsafe { libc::lseek(fd, 0, libc::SEEK_END) }), 0),
    ] {
        cases.expect(what, ALICE, errno, with(flags, work));
    }
    for (what, work) in [
        ("read", (|fd| pread(fd, 1, 0).map(|_| 0)) as fn(i32) -> Seen),
        ("write", |fd| write(fd, b"x")),
        ("fsync", |fd| seen(unsafe { libc::fsync(fd) })),
        ("ftruncate", |fd| seen(unsafe { libc::ftruncate(fd, 0) })),
        ("fstat", |fd| {
            seen(unsafe {
                let mut stat = std::mem::zeroed();
                libc::fstat(fd, &raw mut stat)
            })
        }),
        ("close", close),
    ] {
        cases
            .expect(format_args!("{what} of a closed descriptor"), ALICE, libc::EBADF, move || work(999_999));
    }
    let folder_path = folder.clone();
    cases.expect("read of a folder", ALICE, libc::EISDIR, move || {
        let fd = open(&folder_path, libc::O_RDONLY, 0)?;
        let mut to = [0u8; 8];
        // SAFETY: a buffer with its length.
        let done = seen(unsafe { libc::read(fd, to.as_mut_ptr().cast(), 8) } as i64);
        close(fd)?;
        done
    });
    let folder_path = folder.clone();
    cases.expect("fsync of a folder", ALICE, 0, move || {
        let fd = open(&folder_path, libc::O_RDONLY, 0)?;
        // SAFETY: an open descriptor.
        let done = seen(unsafe { libc::fsync(fd) });
        close(fd)?;
        done
    });
}

fn appending(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        let file = path.clone();
        let content = cases.as_user(user, move || {
            on(&file, 0, |plain| {
                on(&file, libc::O_APPEND, |appending| {
                    write(plain, b"one")?;
                    write(appending, b"two")?;
                    write(plain, b"THREE")?;
                    write(appending, b"four")?;
                    // SAFETY: descriptors.
                    let at = seen(unsafe { libc::lseek(appending, 0, libc::SEEK_CUR) })?;
                    Ok((at, pread(plain, 100, 0)?))
                })
            })
        });
        cases.equal("two handles, one that appends", content, Ok((12, b"oneTHREEfour".to_vec())));
        let file = path.clone();
        let content = cases.as_user(user, move || {
            on(&file, 0, |fd| {
                // SAFETY: descriptors and plain numbers.
                seen(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_APPEND) })?;
                write(fd, b"+")?;
                seen(unsafe { libc::fcntl(fd, libc::F_SETFL, 0) })?;
                pwrite(fd, b"O", 0)?;
                pread(fd, 100, 0)
            })
        });
        cases.equal("O_APPEND that comes and goes", content, Ok(b"OneTHREEfour+".to_vec()));
        let file = path.clone();
        let content = cases.as_user(user, move || {
            on(&file, libc::O_APPEND | libc::O_TRUNC, |fd| {
                for part in 0..200u8 {
                    write(fd, &[part; 777])?;
                }
                pread(fd, 200_000, 0)
            })
        });
        let wanted: Vec<u8> = (0..200u8).flat_map(|part| [part; 777]).collect();
        cases.equal("many appends", content, Ok(wanted));
    }
}

fn truncating(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        put(&path, &[7; 10_000], user, 0o644);
        for size in [10_000, 5_000, 4_097, 4_096, 1, 0, 3, 20_000, 1 << 40, 100] {
            let file = path.clone();
            cases.expect(format_args!("truncate to {size}"), user, 0, move || truncate(&file, size));
            cases.equal(format_args!("size after truncate to {size}"), stat(&path).unwrap().st_size, size);
        }
        cases.equal("what was cut off reads as zeroes", std::fs::read(&path).unwrap(), vec![0; 100]);
        for (what, size, errno) in
            [("before the start", -1, libc::EINVAL), ("at the smallest number", i64::MIN, libc::EINVAL)]
        {
            let file = path.clone();
            cases.expect(format_args!("truncate {what}"), user, errno, move || truncate(&file, size));
            let file = path.clone();
            cases.expect(format_args!("ftruncate {what}"), user, errno, move || {
                // SAFETY: an open descriptor.
                on(&file, 0, |fd| seen(unsafe { libc::ftruncate(fd, size) }))
            });
        }
        // What is cut off is freed later: many cuts in a row must not run into that.
        let file = path.clone();
        cases.expect("allocate and cut off, 20 times", user, 0, move || {
            on(&file, libc::O_RDWR, |fd| {
                for _ in 0..20 {
                    seen(unsafe { libc::fallocate(fd, 0, 0, 100 << 20) })?;
                    seen(unsafe { libc::ftruncate(fd, 0) })?;
                }
                Ok(0)
            })
        });
        let at = folder.clone();
        cases.expect("truncate of a folder", user, libc::EISDIR, move || truncate(&at, 0));
        let fifo = folder.join("fifo");
        mknod(&fifo, libc::S_IFIFO | 0o666).unwrap();
        cases.expect("truncate of a fifo", ROOT, libc::EINVAL, move || truncate(&fifo, 0));
    }
}

/// As much as a file may have where the local filesystem allows it: 16 TiB less a page.
fn sizes(cases: &mut Cases) {
    let folder = cases.folder();
    let path = folder.join("file");
    for offset in [1i64 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 43) + 12_345] {
        let file = path.clone();
        let back = cases.as_user(ALICE, move || {
            on(&file, 0, |fd| {
                pwrite(fd, b"far away", offset)?;
                pread(fd, 100, offset)
            })
        });
        cases.equal(format_args!("content at {offset}"), back, Ok(b"far away".to_vec()));
        cases.equal(
            format_args!("size of a file with content at {offset}"),
            stat(&path).unwrap().st_size,
            offset + 8,
        );
    }
    cases.holds("a sparse file takes little space", stat(&path).unwrap().st_blocks < 1000);
    let file = path.clone();
    cases.expect("a process's own limit", ALICE, libc::EFBIG, move || {
        // SAFETY: the largest offset and a length that goes past it.
        on(&file, 0, |fd| seen(unsafe { libc::fallocate(fd, 0, i64::MAX - 1, 4096) }))
    });
}

/// `O_DIRECT`, beside ordinary reads and writes.
fn direct(cases: &mut Cases) {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        let file = path.clone();
        let back = cases.as_user(user, move || {
            let page = Box::new(Page([9; 4096]));
            on(&file, libc::O_DIRECT, |fd| pwrite(fd, &page.0, 4096))?;
            on(&file, 0, |fd| pwrite(fd, b"buffered", 100))?;
            on(&file, libc::O_DIRECT, |fd| {
                let mut page = Box::new(Page([0; 4096]));
                // SAFETY: an aligned buffer with its length.
                seen(unsafe { libc::pread(fd, page.0.as_mut_ptr().cast(), 4096, 0) } as i64)?;
                Ok(page.0[100..108].to_vec())
            })
        });
        cases.equal("direct reads see buffered writes", back, Ok(b"buffered".to_vec()));
        let file = path.clone();
        let back = cases.as_user(user, move || on(&file, 0, |fd| pread(fd, 4096, 4096)));
        cases.equal("buffered reads see direct writes", back, Ok(vec![9; 4096]));
        for flag in [libc::O_SYNC, libc::O_DSYNC] {
            let file = path.clone();
            cases.expect("a synchronous write", user, 0, move || {
                on(&file, flag, |fd| pwrite(fd, b"synchronous", 0))
            });
        }
    }
}

/// preadv2 and pwritev2 with their flags.
fn vectored(cases: &mut Cases) {
    fn pwritev2(fd: i32, data: &[u8], offset: i64, flags: i32) -> Seen {
        let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: one part with its length.
        seen(unsafe { libc::pwritev2(fd, &raw const part, 1, offset, flags) } as i64)
    }
    let folder = cases.folder();
    let path = folder.join("file");
    for (name, flags) in [
        ("none", 0),
        ("RWF_DSYNC", libc::RWF_DSYNC),
        ("RWF_SYNC", libc::RWF_SYNC),
        ("RWF_HIPRI", libc::RWF_HIPRI),
    ] {
        let file = path.clone();
        cases.expect(format_args!("pwritev2 with {name}"), ALICE, 0, move || {
            on(&file, 0, |fd| pwritev2(fd, b"0123456789", 0, flags))
        });
    }
    let file = path.clone();
    let content = cases.as_user(ALICE, move || {
        on(&file, 0, |fd| {
            pwritev2(fd, b"end", 0, libc::RWF_APPEND)?;
            pread(fd, 100, 0)
        })
    });
    cases.equal("RWF_APPEND goes to the end", content, Ok(b"0123456789end".to_vec()));
    let file = path.clone();
    cases.expect("pwritev2 with an unknown flag", ALICE, libc::EOPNOTSUPP, move || {
        on(&file, 0, |fd| pwritev2(fd, b"x", 0, 1 << 30))
    });
}

fn mappings(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        put(&path, &[1; 10_000], user, 0o644);
        for (what, flags, wanted) in [("shared", libc::MAP_SHARED, 2u8), ("private", libc::MAP_PRIVATE, 1)] {
            let file = path.clone();
            let back = cases.as_user(user, move || {
                on(&file, 0, |fd| {
                    // SAFETY: a new mapping of 8192 bytes, which is used within its length and then removed.
                    unsafe {
                        let map = libc::mmap(
                            std::ptr::null_mut(),
                            8192,
                            libc::PROT_READ | libc::PROT_WRITE,
                            flags,
                            fd,
                            0,
                        );
                        assert_ne!(map, libc::MAP_FAILED);
                        let bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), 8192);
                        pwrite(fd, &[3], 7000)?;
                        let seen_there = bytes[7000];
                        bytes[5000] = 2;
                        seen(libc::msync(map, 8192, libc::MS_SYNC))?;
                        let back = pread(fd, 1, 5000)?[0];
                        libc::munmap(map, 8192);
                        Ok((seen_there, back))
                    }
                })
            });
            cases.equal(format_args!("a {what} mapping beside reads and writes"), back, Ok((3, wanted)));
            pwrite_root(&path, 5000);
        }
    }
    let folder = cases.folder();
    put(&folder.join("file"), b"x", ALICE, 0o444);
    for (what, protection, flags, errno) in [
        ("a shared one for writing", libc::PROT_WRITE, libc::MAP_SHARED, libc::EACCES),
        ("a private one for writing", libc::PROT_WRITE, libc::MAP_PRIVATE, 0),
        ("a shared one for reading", libc::PROT_READ, libc::MAP_SHARED, 0),
    ] {
        let path = folder.join("file");
        cases.expect(
            format_args!("mapping a file that is open for reading: {what}"),
            ALICE,
            errno,
            move || {
                let fd = open(&path, libc::O_RDONLY, 0)?;
                // SAFETY: a new mapping, removed again.
                let done = unsafe {
                    let map = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0);
                    let done = if map == libc::MAP_FAILED { seen(-1) } else { Ok(0) };
                    if done.is_ok() {
                        libc::munmap(map, 4096);
                    }
                    done
                };
                close(fd)?;
                done
            },
        );
    }
}

fn pwrite_root(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&[1], at).unwrap();
}

/// A file without a name is as good as one with, for whoever has it open.
fn unlinked(cases: &mut Cases) {
    for user in USERS {
        let folder = cases.folder();
        let path = folder.join("file");
        let file = path.clone();
        let found = cases.as_user(user, move || {
            on(&file, 0, |fd| {
                pwrite(fd, b"before", 0)?;
                unlink(&file)?;
                pwrite(fd, b"after", 6)?;
                // SAFETY: an open descriptor, and a buffer that the call fills.
                let stat = unsafe {
                    seen(libc::fchmod(fd, 0o600))?;
                    seen(libc::ftruncate(fd, 9))?;
                    let mut stat: libc::stat = std::mem::zeroed();
                    seen(libc::fstat(fd, &raw mut stat))?;
                    stat
                };
                Ok((pread(fd, 100, 0)?, stat.st_nlink, stat.st_mode & 0o7777, stat.st_size))
            })
        });
        cases.equal("an unlinked file in use", found, Ok((b"beforeaft".to_vec(), 0, 0o600, 9)));
        cases.holds("its name is gone", !path.exists());
        let again = path.clone();
        cases.expect("a new file of that name", user, 0, move || {
            opens(&again, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600)
        });
    }
}
