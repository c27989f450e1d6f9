//! Our session and adapter under a real kernel. Needs root and `/dev/fuse`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_fuse::adapter::Adapter;
use atoll_fuse::bundle::Bundle;
use atoll_fuse::session::{End, InitOptions, Session};
use atoll_fuse::{InitFlags, Layout};
use bytes::Bytes;
use support::folder::{Folder, PATIENT_OFFSET};
use support::{Mounted, c_path, cvt};
use tokio::runtime::Runtime;

struct Rig {
    // The session is stopped before the mount is taken away.
    session: Session,
    folder: Arc<Folder>,
    backing: tempfile::TempDir,
    keeper: Bundle,
    mounted: Mounted,
    runtime: Runtime,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(InitOptions::default(), Duration::ZERO)
    }

    fn with(options: InitOptions, ttl: Duration) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let backing = tempfile::tempdir().expect("backing");
        let mounted = Mounted::volume();
        let mut folder = Folder::new(backing.path());
        folder.ttl = ttl;
        let folder = Arc::new(folder);
        let kept = mounted.device.as_fd().try_clone_to_owned().expect("dup");
        let device = atoll_fuse::device::Device::from_fd(kept);
        let bundle = Bundle::new(device, 2, Layout::default(), &mounted.options).expect("bundle");
        let keeper = bundle.try_clone().expect("clone");
        let adapter = Adapter::new(Arc::clone(&folder));
        let session = Session::start(bundle, options, adapter, runtime.handle()).expect("starts");
        runtime.block_on(session.ready()).expect("ready");
        Rig { session, folder, backing, keeper, mounted, runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted.path.join(name)
    }
}

#[test]
fn files_and_names() {
    let rig = Rig::new();
    let dir = rig.path("dir");
    fs::create_dir(&dir).expect("mkdir");
    let big: Vec<u8> = (0..3_500_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(dir.join("big"), &big).expect("write");
    assert!(fs::read(dir.join("big")).expect("read") == big);
    assert!(fs::read(rig.backing.path().join("dir/big")).expect("backing") == big);
    fs::write(dir.join("small"), b"x").expect("write");
    assert_eq!(fs::read(dir.join("small")).expect("read"), b"x");

    fs::rename(dir.join("big"), rig.path("renamed")).expect("rename");
    assert_eq!(fs::metadata(rig.path("renamed")).expect("stat").len(), big.len() as u64);
    assert_eq!(fs::metadata(dir.join("big")).expect_err("gone").raw_os_error(), Some(libc::ENOENT));
    fs::hard_link(rig.path("renamed"), rig.path("second")).expect("link");
    assert_eq!(fs::metadata(rig.path("second")).expect("stat").nlink(), 2);
    std::os::unix::fs::symlink("renamed", rig.path("symlink")).expect("symlink");
    assert_eq!(fs::read_link(rig.path("symlink")).expect("readlink"), PathBuf::from("renamed"));
    assert_eq!(fs::metadata(rig.path("symlink")).expect("stat").len(), big.len() as u64);
    fs::remove_file(rig.path("second")).expect("unlink");
    assert_eq!(fs::remove_dir(&dir).expect_err("not empty").raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_file(dir.join("small")).expect("unlink");
    fs::remove_dir(&dir).expect("rmdir");
}

#[test]
fn open_files() {
    let rig = Rig::new();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(rig.path("f"))
        .expect("create");
    file.write_all(b"hello world").expect("write");
    file.set_len(5).expect("truncate");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "hello");
    fs::remove_file(rig.path("f")).expect("unlink");
    file.write_all_at(b"H", 0).expect("an unlinked file can be written");
    let mut byte = [0; 2];
    file.read_exact_at(&mut byte, 0).expect("and read");
    assert_eq!(&byte, b"He");
    file.sync_all().expect("fsync");

    let mut unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(&rig.mounted.path)
        .expect("tmpfile");
    unnamed.write_all(b"nameless").expect("write");
    assert_eq!(unnamed.metadata().expect("stat").len(), 8);

    let direct = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(rig.path("direct"))
        .expect("create");
    let layout = std::alloc::Layout::from_size_align(4 << 20, 4096).expect("layout");
    // SAFETY: a valid layout, freed with it below; the bytes are initialised by alloc_zeroed.
    let aligned = unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(layout), layout.size()) };
    aligned.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 4096) as u8);
    direct.write_all_at(aligned, 0).expect("write past the cache, a megabyte at a time");
    assert!(fs::read(rig.backing.path().join("direct")).expect("backing") == *aligned);
    // SAFETY: from alloc_zeroed with this layout.
    unsafe { std::alloc::dealloc(aligned.as_mut_ptr(), layout) };
}

#[test]
fn ranges() {
    let rig = Rig::new();
    let file = File::create_new(rig.path("f")).expect("create");
    file.write_all_at(&[7; 8192], 1 << 20).expect("write");
    let fd = file.as_raw_fd();
    // SAFETY: system calls on an open descriptor.
    unsafe {
        assert_eq!(cvt(libc::lseek(fd, 0, libc::SEEK_DATA)), Ok(1 << 20));
        assert_eq!(cvt(libc::lseek(fd, 1 << 20, libc::SEEK_HOLE)), Ok((1 << 20) + 8192));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(cvt(i64::from(libc::fallocate(fd, punch, 1 << 20, 4096))), Ok(0));
    }
    let target = File::create_new(rig.path("copy")).expect("create");
    let mut from: i64 = (1 << 20) + 4096;
    // SAFETY: open descriptors, and an offset that outlives the call.
    let copied = unsafe {
        libc::copy_file_range(fd, &raw mut from, target.as_raw_fd(), std::ptr::null_mut(), 4096, 0)
    };
    assert_eq!(cvt(copied as i64), Ok(4096));
    assert_eq!(fs::read(rig.path("copy")).expect("read"), [7; 4096]);
}

#[test]
fn a_large_directory_is_listed_whole() {
    let rig = Rig::with(InitOptions::default(), Duration::from_secs(60));
    for number in 0..700 {
        fs::write(rig.backing.path().join(format!("a-file-with-a-rather-long-name-{number:04}")), b"")
            .expect("write");
    }
    for _ in 0..2 {
        let mut names: Vec<String> = fs::read_dir(&rig.mounted.path)
            .expect("opendir")
            .map(|entry| {
                let entry = entry.expect("readdir");
                assert!(entry.metadata().expect("stat").is_file());
                entry.file_name().into_string().expect("text")
            })
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 700);
    }
    assert!(
        rig.folder.forgotten.load(Ordering::Relaxed) > 0,
        "lookups of entries that didn't fit are taken back"
    );
}

#[test]
fn attributes_and_statfs() {
    let rig = Rig::new();
    let path = rig.path("f");
    fs::write(&path, b"").expect("write");
    let (c, name) = (c_path(&path), c"user.colour");
    let mut value = [0u8; 16];
    // SAFETY: valid strings and buffers of the given lengths.
    unsafe {
        assert_eq!(
            cvt(i64::from(libc::setxattr(c.as_ptr(), name.as_ptr(), b"blue".as_ptr().cast(), 4, 0))),
            Ok(0)
        );
        assert_eq!(cvt(libc::getxattr(c.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) as i64), Ok(4));
        assert_eq!(
            cvt(libc::getxattr(c.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), 16) as i64),
            Ok(4)
        );
        assert_eq!(
            cvt(libc::getxattr(c.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), 2) as i64),
            Err(libc::ERANGE)
        );
        assert_eq!(cvt(libc::listxattr(c.as_ptr(), value.as_mut_ptr().cast(), 16) as i64), Ok(12));
        assert_eq!(cvt(i64::from(libc::removexattr(c.as_ptr(), name.as_ptr()))), Ok(0));
        assert_eq!(
            cvt(libc::getxattr(c.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) as i64),
            Err(libc::ENODATA)
        );
        let mut statfs: libc::statvfs = std::mem::zeroed();
        assert_eq!(cvt(i64::from(libc::statvfs(c.as_ptr(), &raw mut statfs))), Ok(0));
        assert_eq!((statfs.f_blocks, statfs.f_bfree, statfs.f_files, statfs.f_namemax), (1000, 400, 77, 255));
        let mut statx: libc::statx = std::mem::zeroed();
        let wanted = libc::STATX_BTIME | libc::STATX_BASIC_STATS;
        let done = libc::statx(libc::AT_FDCWD, c.as_ptr(), libc::AT_STATX_FORCE_SYNC, wanted, &raw mut statx);
        assert_eq!(cvt(i64::from(done)), Ok(0));
        assert_eq!((statx.stx_btime.tv_sec, statx.stx_btime.tv_nsec), (1, 2), "time of birth");
    }
}

#[test]
fn flock_and_record_locks_are_two_things_and_a_signal_ends_a_wait() {
    let rig = Rig::new();
    let path = rig.path("f");
    let holder = File::create_new(&path).expect("create");
    let other = OpenOptions::new().write(true).open(&path).expect("open");
    let flock = |file: &File, how| {
        // SAFETY: an open descriptor.
        cvt(i64::from(unsafe { libc::flock(file.as_raw_fd(), how) }))
    };
    let record = |file: &File, command| {
        // SAFETY: a zeroed `flock` is the whole file; an open descriptor.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_WRLCK as i16;
        // SAFETY: as above.
        cvt(i64::from(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) })).map(|_| lock)
    };
    assert_eq!(flock(&holder, libc::LOCK_EX), Ok(0));
    assert!(record(&other, libc::F_OFD_SETLK).is_ok(), "flock is not in a record lock's way");
    assert_eq!(record(&holder, libc::F_OFD_SETLK).err(), Some(libc::EAGAIN));
    assert_eq!(record(&holder, libc::F_OFD_GETLK).expect("getlk").l_type, libc::F_WRLCK as i16);
    assert_eq!(flock(&other, libc::LOCK_EX | libc::LOCK_NB), Err(libc::EAGAIN));

    install_quiet_signal();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = scope.spawn(move || {
            // SAFETY: always succeeds.
            sender.send(unsafe { libc::pthread_self() }).expect("send");
            flock(&other, libc::LOCK_EX)
        });
        let thread = receiver.recv().expect("thread");
        while !waiter.is_finished() {
            // SAFETY: the thread isn't joined yet.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(waiter.join().expect("no panic"), Err(libc::EINTR));
    });
    drop(holder);
    let again = File::open(&path).expect("open");
    assert_eq!(flock(&again, libc::LOCK_EX), Ok(0), "closing released it");
}

/// More writers of a megabyte than may keep a buffer wait; everything else goes on, and a signal ends a wait.
#[test]
fn writes_that_wait_hold_nobody_else_up() {
    const WRITERS: usize = 160;
    let rig = Rig::new();
    install_quiet_signal();
    let data = |writer: usize| -> Vec<u8> { (0..1 << 20).map(|i: usize| (i / 7 + writer) as u8).collect() };
    let finished = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        for writer in 0..WRITERS {
            let (path, finished) = (rig.path(&format!("f{writer}")), &finished);
            let (sender, data) = (sender.clone(), data(writer));
            scope.spawn(move || {
                let file = File::create_new(path).expect("create");
                if writer == 0 {
                    // SAFETY: always succeeds.
                    sender.send(unsafe { libc::pthread_self() }).expect("send");
                    let error = file.write_at(&data, PATIENT_OFFSET).expect_err("a signal comes");
                    assert_eq!(error.raw_os_error(), Some(libc::EINTR));
                    finished.fetch_add(1, Ordering::Relaxed);
                }
                file.write_all_at(&data, PATIENT_OFFSET).expect("write");
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }
        let first = receiver.recv().expect("thread");
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let wait_for = |what: &str, done: &dyn Fn() -> bool| {
            while !done() {
                assert!(std::time::Instant::now() < deadline, "{what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait_for("all are read", &|| rig.session.requests_under_way() as usize >= WRITERS);
        assert!(fs::metadata(&rig.mounted.path).expect("stat").is_dir());
        let path = c_path(&rig.mounted.path);
        // SAFETY: a zeroed `statvfs` and a valid string.
        let mut statfs: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        assert_eq!(cvt(i64::from(unsafe { libc::statvfs(path.as_ptr(), &raw mut statfs) })), Ok(0));
        fs::write(rig.path("small"), b"small").expect("a small file");
        wait_for("a signal ends a wait", &|| {
            // SAFETY: the thread isn't joined yet.
            unsafe { libc::pthread_kill(first, libc::SIGUSR1) };
            finished.load(Ordering::Relaxed) > 0
        });
        File::create_new(rig.backing.path().join("go")).expect("go");
    });
    assert_eq!(finished.into_inner(), WRITERS + 1);
    for writer in 0..WRITERS {
        let mut written = vec![0; 1 << 20];
        let file = File::open(rig.backing.path().join(format!("f{writer}"))).expect("opens");
        file.read_exact_at(&mut written, PATIENT_OFFSET).expect("reads");
        assert!(written == data(writer), "writer {writer}");
    }
}

/// `SIGUSR1` does nothing but end system calls from now on.
fn install_quiet_signal() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a handler that does nothing, without SA_RESTART.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

#[test]
fn the_kernel_forgets_what_it_is_told_to() {
    let rig = Rig::with(InitOptions::default(), Duration::from_secs(3600));
    let path = rig.path("f");
    fs::write(&path, b"old").expect("write");
    let kept = File::open(&path).expect("open");
    let mut text = [0; 3];
    kept.read_exact_at(&mut text, 0).expect("read");
    let ino = kept.metadata().expect("stat").ino();
    fs::write(rig.backing.path().join("f"), b"new").expect("behind its back");
    kept.read_exact_at(&mut text, 0).expect("read");
    assert_eq!(&text, b"old", "served from the kernel's pages");
    let notifier = rig.session.notifier().clone();
    rig.runtime.block_on(notifier.inval_inode(ino, 0, 0)).expect("invalidates");
    kept.read_exact_at(&mut text, 0).expect("read");
    assert_eq!(&text, b"new");

    fs::rename(rig.backing.path().join("f"), rig.backing.path().join("g")).expect("behind its back");
    assert!(fs::metadata(&path).is_ok(), "the name is still kept");
    rig.runtime.block_on(notifier.expire_entry(1, Bytes::from_static(b"f"))).expect("expires");
    assert_eq!(fs::metadata(&path).expect_err("looked up again").raw_os_error(), Some(libc::ENOENT));
    let unknown = rig.runtime.block_on(notifier.inval_entry(1, Bytes::from_static(b"unknown")));
    unknown.expect("what it doesn't know needs no forgetting");
}

#[test]
fn writes_by_others_clear_set_id_bits() {
    let rig = Rig::new();
    assert!(rig.runtime.block_on(rig.session.ready()).expect("ready").has(InitFlags::HANDLE_KILLPRIV_V2));
    let path = rig.path("f");
    fs::write(&path, b"x").expect("write");
    assert_eq!(rig.folder.kill_priv.load(Ordering::Relaxed), 0, "root may keep them");
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    let writer = std::thread::spawn(move || {
        // The bare system call changes this thread alone.
        // SAFETY: no preconditions.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000) }, 0);
        file.write_all_at(b"y", 0)
    });
    writer.join().expect("no panic").expect("write");
    assert_eq!(rig.folder.kill_priv.load(Ordering::Relaxed), 1);
}

#[test]
fn an_abort_ends_the_session() {
    let rig = Rig::new();
    atoll_fuse::device::abort(rig.mounted.connection).expect("aborts");
    assert_eq!(rig.runtime.block_on(rig.session.ended()), End::Aborted);
    assert_eq!(fs::metadata(&rig.mounted.path).expect_err("dead").raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn a_successor_in_the_same_process_goes_on() {
    let mut rig = Rig::new();
    fs::write(rig.path("f"), b"before").expect("write");
    let open = File::open(rig.path("f")).expect("open");
    assert_eq!(rig.runtime.block_on(rig.session.drain(Duration::from_secs(20))), 0);
    // Nobody serves now; what is asked meanwhile waits for the successor.
    let path = rig.path("f");
    let waiting = std::thread::spawn(move || fs::metadata(path).map(|metadata| metadata.len()));
    let keeper = rig.keeper.try_clone().expect("clone");
    let adapter = Adapter::new(Arc::clone(&rig.folder));
    rig.session = Session::resume(keeper, adapter, rig.runtime.handle()).expect("resumes");
    assert_eq!(waiting.join().expect("no panic").expect("stat"), 6);
    let mut text = String::new();
    (&open).read_to_string(&mut text).expect("a file that was open stays so");
    assert_eq!(text, "before");
}
