//! A disk that forgets: one file, served over FUSE.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Name of the only file.
pub const FILE: &str = "disk.img";
const FILE_INO: INodeNo = INodeNo(2);
/// A disk writes whole sectors of this size or nothing of them.
const SECTOR_BYTES: usize = 4096;
const TTL: Duration = Duration::from_secs(3600);

/// The state behind the filesystem.
pub struct Disk {
    bytes: u64,
    state: Mutex<State>,
}

struct State {
    /// What reads see.
    current: File,
    /// What a flush made certain.
    durable: File,
    /// Written since the last flush, in order.
    pending: Vec<(u64, Vec<u8>)>,
    power: bool,
}

impl Disk {
    /// An empty disk over two sparse files.
    pub fn new(bytes: u64) -> Arc<Disk> {
        let sparse = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(bytes).unwrap();
            file
        };
        let state = State { current: sparse(), durable: sparse(), pending: Vec::new(), power: true };
        Arc::new(Disk { bytes, state: Mutex::new(state) })
    }

    /// Cuts the power: each sector written since the last flush survives or not, as the seed has it.
    pub fn cut(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = self.state.lock();
        state.power = false;
        // Some cuts lose nearly all, some nearly nothing: both ends hide different mistakes.
        let survives = [0.02, 0.3, 0.7, 0.98][rng.random_range(0..4)];
        for (offset, data) in std::mem::take(&mut state.pending) {
            for (at, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                let offset = offset + (at * SECTOR_BYTES) as u64;
                if rng.random_bool(survives) {
                    state.durable.write_all_at(sector, offset).unwrap();
                } else {
                    let mut old = vec![0; sector.len()];
                    state.durable.read_exact_at(&mut old, offset).unwrap();
                    state.current.write_all_at(&old, offset).unwrap();
                }
            }
        }
        // A sector may have been written twice, kept once and dropped once: the truth is the durable file.
        let State { current, durable, .. } = &*state;
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < self.bytes {
            // Holes stay holes: only what was ever written is compared.
            // SAFETY: seeks in a file that is ours.
            let next = unsafe {
                libc::lseek(std::os::fd::AsRawFd::as_raw_fd(durable), offset as i64, libc::SEEK_DATA)
            };
            let Ok(next) = u64::try_from(next) else { break };
            offset = next / buffer.len() as u64 * buffer.len() as u64;
            let length = buffer.len().min((self.bytes - offset) as usize);
            durable.read_exact_at(&mut buffer[..length], offset).unwrap();
            current.write_all_at(&buffer[..length], offset).unwrap();
            offset += length as u64;
        }
    }

    /// Gives the power back.
    pub fn power_on(&self) {
        self.state.lock().power = true;
    }

    fn attributes(&self) -> FileAttr {
        FileAttr {
            ino: FILE_INO,
            size: self.bytes,
            blocks: self.bytes / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The filesystem.
pub struct DiskFs(pub Arc<Disk>);

impl Filesystem for DiskFs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == FILE {
            reply.entry(&TTL, &self.0.attributes(), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino == FILE_INO {
            reply.attr(&TTL, &self.0.attributes());
        } else {
            let root = FileAttr {
                ino: INodeNo::ROOT,
                kind: FileType::Directory,
                perm: 0o700,
                nlink: 2,
                ..self.0.attributes()
            };
            reply.attr(&TTL, &root);
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.state.lock();
        if !state.power {
            return reply.error(Errno::EIO);
        }
        let mut buffer = vec![0; u64::from(size).min(self.0.bytes.saturating_sub(offset)) as usize];
        match state.current.read_exact_at(&mut buffer, offset) {
            Ok(()) => reply.data(&buffer),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.state.lock();
        if !state.power || state.current.write_all_at(data, offset).is_err() {
            return reply.error(Errno::EIO);
        }
        state.pending.push((offset, data.to_vec()));
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.state.lock();
        if !state.power {
            return reply.error(Errno::EIO);
        }
        for (offset, data) in std::mem::take(&mut state.pending) {
            if state.durable.write_all_at(&data, offset).is_err() {
                return reply.error(Errno::EIO);
            }
        }
        reply.ok();
    }
}
