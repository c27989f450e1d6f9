//! Everything that a successor of a serving process needs, as one thing that can be kept by a third process and sent
//! from one to another.

pub mod descriptors;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use thiserror::Error;

use crate::device::{Device, MountOptions, duplicate};
use crate::session::READERS_MAX;
use crate::slots::{AdoptError, Layout, RequestMemory};

/// First bytes of a bundle's message.
const MAGIC: [u8; 4] = *b"ABDL";
/// Version of a bundle's message.
const VERSION: u8 = 1;
/// Bytes of a bundle's message: magic, version, flags, number of descriptors, one byte free.
const MESSAGE_BYTES: usize = 8;
/// The mount checks permissions in the kernel.
const FLAG_DEFAULT_PERMISSIONS: u8 = 1 << 0;
// The device, its clones, the memory.
const _: () = assert!(READERS_MAX < descriptors::DESCRIPTORS_MAX);

/// Why a bundle can't be received.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The socket's error.
    #[error("bundle: {0}")]
    Io(#[from] io::Error),
    /// The message isn't a bundle, or one of another version.
    #[error("unknown bundle version")]
    Foreign,
}

/// Descriptors of a mount, and of the memory that its requests are read into.
#[derive(Debug)]
pub struct Bundle {
    /// The device, then its clones.
    devices: Vec<OwnedFd>,
    memory: OwnedFd,
    default_permissions: bool,
}

impl Bundle {
    /// Makes the bundle of a device that was just mounted with `options`: `readers` descriptors (the device's among
    /// them) and an empty request memory.
    ///
    /// # Errors
    /// The device isn't mounted, or descriptors or memory are not to be had.
    pub fn new(device: Device, readers: usize, layout: Layout, options: &MountOptions) -> io::Result<Bundle> {
        let readers = readers.clamp(1, READERS_MAX);
        let clones: io::Result<Vec<OwnedFd>> = (1..readers).map(|_| device.try_clone()).collect();
        let memory = duplicate(RequestMemory::create(layout)?.file())?;
        let mut devices = vec![device.into_fd()];
        devices.extend(clones?);
        Ok(Bundle { devices, memory, default_permissions: options.default_permissions })
    }

    /// Puts a bundle together from its parts: the device and its clones in the order in which they were made.
    pub fn from_parts(devices: Vec<OwnedFd>, memory: OwnedFd, default_permissions: bool) -> Bundle {
        assert!(!devices.is_empty(), "the bundle has no device");
        Bundle { devices, memory, default_permissions }
    }

    /// The device and its clones, in order.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.devices.iter().map(AsFd::as_fd)
    }

    /// The descriptor of the request memory.
    pub fn memory_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Maps the request memory.
    ///
    /// # Errors
    /// See [`AdoptError`].
    pub fn memory(&self) -> Result<RequestMemory, AdoptError> {
        RequestMemory::adopt(duplicate(self.memory.as_fd())?)
    }

    /// Whether the kernel checks permissions on this mount.
    pub fn default_permissions(&self) -> bool {
        self.default_permissions
    }

    /// Another bundle of the same descriptions, for a process to keep.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn try_clone(&self) -> io::Result<Bundle> {
        Ok(Bundle {
            devices: self.devices().map(duplicate).collect::<io::Result<_>>()?,
            memory: duplicate(self.memory.as_fd())?,
            default_permissions: self.default_permissions,
        })
    }

    pub(crate) fn into_devices(self) -> Vec<OwnedFd> {
        self.devices
    }

    /// Sends it over a socket; it stays valid here.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&self, socket: &UnixStream) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = self.devices().chain([self.memory_fd()]).collect();
        let mut message = [0; MESSAGE_BYTES];
        message[..4].copy_from_slice(&MAGIC);
        message[4] = VERSION;
        message[5] = if self.default_permissions { FLAG_DEFAULT_PERMISSIONS } else { 0 };
        message[6] = descriptors.len() as u8;
        descriptors::send(socket, &message, &descriptors)
    }

    /// Receives one.
    ///
    /// # Errors
    /// See [`BundleError`]. Descriptors of a message that isn't a bundle are closed.
    pub fn receive(socket: &UnixStream) -> Result<Bundle, BundleError> {
        let mut message = [0; MESSAGE_BYTES];
        let (bytes, mut descriptors) = descriptors::receive(socket, &mut message)?;
        let understood = bytes == MESSAGE_BYTES
            && message[..4] == MAGIC
            && message[4] == VERSION
            && usize::from(message[6]) == descriptors.len();
        match descriptors.pop() {
            Some(memory) if understood && !descriptors.is_empty() => Ok(Bundle {
                devices: descriptors,
                memory,
                default_permissions: message[5] & FLAG_DEFAULT_PERMISSIONS != 0,
            }),
            _ => Err(BundleError::Foreign),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_bundle_travels_over_a_socket() {
        let (here, there) = UnixStream::pair().expect("pair");
        let memory = RequestMemory::create(Layout { slots: 5, buffers: 2 }).expect("memory");
        let devices = vec![duplicate(here.as_fd()).expect("dup"), duplicate(there.as_fd()).expect("dup")];
        let bundle = Bundle::from_parts(devices, duplicate(memory.file()).expect("dup"), true);
        bundle.send(&here).expect("sends");
        let received = Bundle::receive(&there).expect("receives");
        assert_eq!(received.devices().len(), 2);
        assert!(received.default_permissions());
        assert_eq!(received.memory().expect("adopts").layout(), Layout { slots: 5, buffers: 2 });
    }

    #[test]
    fn anything_else_is_refused() {
        let (mut here, there) = UnixStream::pair().expect("pair");
        here.write_all(b"ABDL\x01\x00\x02\x00").expect("writes");
        assert!(matches!(Bundle::receive(&there), Err(BundleError::Foreign)), "no descriptors came along");
        here.write_all(b"HTTP/1.1").expect("writes");
        assert!(matches!(Bundle::receive(&there), Err(BundleError::Foreign)));
    }
}
