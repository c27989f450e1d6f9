//! Room that is kept for the day the disk is full: a file that is given up so that deleting can go on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Free bytes (the ballast not counted) below which nothing may grow any more. What is on its way already, the
/// log, and RocksDB's tidying up need some room.
const LOW_BYTES: u64 = 48 << 20;
/// Free bytes below which the ballast is given up.
const CRITICAL_BYTES: u64 = 12 << 20;

/// How full the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room.
    Enough,
    /// What is left is for deleting.
    Low,
}

/// What to do about the ballast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Keep,
    GiveUp,
    TakeBack,
}

/// Pure: `free` bytes on the disk, `held`: the ballast exists, `ballast` its bytes.
fn step(free: u64, held: bool, ballast: u64) -> (Step, Room) {
    let room = if free < LOW_BYTES { Room::Low } else { Room::Enough };
    if held {
        return (if free < CRITICAL_BYTES { Step::GiveUp } else { Step::Keep }, room);
    }
    if ballast > 0 && free > ballast + 2 * LOW_BYTES {
        return (Step::TakeBack, room);
    }
    // While the ballast is missing, what it would take isn't room.
    (Step::Keep, if free < LOW_BYTES + ballast { Room::Low } else { Room::Enough })
}

/// The ballast file of a disk.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Ballast {
    /// A ballast of `bytes` (0: none) in `folder`; [`check`](Self::check) makes it.
    #[must_use]
    pub fn new(folder: &Path, bytes: u64) -> Ballast {
        let path = folder.join("ballast");
        let held = bytes > 0 && fs::metadata(&path).is_ok_and(|found| found.len() >= bytes);
        Ballast { path, bytes, held }
    }

    /// Looks at the disk, gives the ballast up or takes it back, and says how things are. May block.
    ///
    /// # Errors
    /// If the disk can't be asked.
    pub fn check(&mut self) -> io::Result<Room> {
        let free = free_bytes(self.path.parent().unwrap_or(Path::new("/")))?;
        let (step, room) = step(free, self.held, self.bytes);
        match step {
            Step::Keep => {}
            Step::GiveUp => {
                tracing::error!(
                    file = %self.path.display(),
                    free_bytes = free,
                    "the metadata disk is full: the ballast file is released so that files can still be \
                     deleted; enlarge the disk"
                );
                self.give_up()?;
            }
            Step::TakeBack => match self.take() {
                Ok(()) => self.held = true,
                Err(error) => {
                    tracing::debug!(%error, "not enough free space for the ballast file yet");
                    self.give_up()?;
                }
            },
        }
        Ok(room)
    }

    fn give_up(&mut self) -> io::Result<()> {
        self.held = false;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn take(&self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.path)?;
        allocate(&file, self.bytes)
    }
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `file` lives.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Bytes of the filesystem at `path` that an ordinary user may still write.
///
/// # Errors
/// If the system refuses.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: an all-zero statvfs is a valid value, to be filled in by the call.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with NUL and `found` is a valid place.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_nothing_grows_then_the_ballast_goes_and_it_comes_back_with_a_margin() {
        let ballast = 64 << 20;
        assert_eq!(step(LOW_BYTES, true, ballast), (Step::Keep, Room::Enough));
        assert_eq!(step(LOW_BYTES - 1, true, ballast), (Step::Keep, Room::Low));
        assert_eq!(step(CRITICAL_BYTES - 1, true, ballast), (Step::GiveUp, Room::Low));
        // What was given up is neither room nor enough to take it back.
        assert_eq!(step(ballast + CRITICAL_BYTES, false, ballast), (Step::Keep, Room::Low));
        assert_eq!(step(ballast + 2 * LOW_BYTES + 1, false, ballast), (Step::TakeBack, Room::Enough));
        assert_eq!(step(LOW_BYTES - 1, false, 0), (Step::Keep, Room::Low));
    }

    #[test]
    fn a_disk_with_room_gets_its_ballast_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::new(dir.path(), 1 << 20);
        assert_eq!(ballast.check().unwrap(), Room::Enough);
        assert_eq!(fs::metadata(dir.path().join("ballast")).unwrap().len(), 1 << 20);
        assert!(Ballast::new(dir.path(), 1 << 20).held);
        ballast.give_up().unwrap();
        ballast.give_up().unwrap();
        assert!(!ballast.held);
        assert!(!dir.path().join("ballast").exists());
    }
}
