//! A file that is given up when the disk is full.
//!
//! Deleting, trimming and sealing may need a little space themselves (a filesystem's journal and tree nodes; every
//! overwrite where the filesystem below copies on write). On a disk that is full to the last block they'd fail,
//! and nothing could ever be freed. So some space is kept occupied until then.

use std::io;

use parking_lot::Mutex;

use crate::disk::{Disk, is_no_space};

/// The file.
const BALLAST_FILE: &str = "ballast";

/// The space that is kept.
#[derive(Debug)]
pub(super) struct Ballast {
    bytes: u64,
    held: Mutex<bool>,
}

impl Ballast {
    /// Finds out whether the ballast is there, and takes it if there is room. 0 bytes: no ballast.
    pub(super) fn new(disk: &dyn Disk, bytes: u64) -> io::Result<Self> {
        let length = match disk.open(BALLAST_FILE) {
            Ok(file) => file.allocated()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let this = Self { bytes, held: Mutex::new(bytes > 0 && length >= bytes) };
        if length > 0 && (length < bytes || length > bytes + bytes / 8) {
            // Another size was wanted at the last start.
            this.release(disk)?;
        }
        this.restore(disk)?;
        Ok(this)
    }

    /// No ballast.
    pub(super) fn none() -> Self {
        Self { bytes: 0, held: Mutex::new(false) }
    }

    /// Gives the space up. Whether there was any.
    pub(super) fn release(&self, disk: &dyn Disk) -> io::Result<bool> {
        let mut held = self.held.lock();
        match disk.unlink(BALLAST_FILE) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(std::mem::take(&mut held)),
            Err(error) => return Err(error),
        }
        *held = false;
        Ok(true)
    }

    /// Takes the space again, once there is twice as much: so that it isn't given up and taken in turn.
    pub(super) fn restore(&self, disk: &dyn Disk) -> io::Result<()> {
        let mut held = self.held.lock();
        if *held || self.bytes == 0 || disk.space()?.free_bytes < 2 * self.bytes {
            return Ok(());
        }
        let file = disk.create(BALLAST_FILE)?;
        match file.allocate(0, self.bytes) {
            Ok(()) => *held = true,
            Err(error) if is_no_space(&error) => disk.unlink(BALLAST_FILE)?,
            Err(error) => {
                disk.unlink(BALLAST_FILE)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Bytes held now.
    pub(super) fn held_bytes(&self) -> u64 {
        if *self.held.lock() { self.bytes } else { 0 }
    }
}
