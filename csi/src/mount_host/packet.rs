//! Sockets of packets (`SOCK_SEQPACKET`): a message arrives whole or not at all, and can carry a bundle.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_fuse::bundle::{Bundle, BundleError, descriptors};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt,
    listen, recvmsg, sendmsg, socket, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a packet at most.
const PACKET_BYTES_MAX: usize = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A connected socket.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// A listening one.
#[derive(Debug)]
pub struct PacketListener(OwnedFd);

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

impl PacketListener {
    /// Listens at a path, which must be free.
    ///
    /// # Errors
    /// The system calls'.
    pub fn bind(path: &Path) -> io::Result<PacketListener> {
        let descriptor = new_socket()?;
        bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&descriptor, Backlog::new(BACKLOG)?)?;
        Ok(PacketListener(descriptor))
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// The system call's.
    pub fn accept(&self) -> io::Result<PacketSocket> {
        let number = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows of it.
        Ok(PacketSocket(unsafe { OwnedFd::from_raw_fd(number) }))
    }
}

impl PacketSocket {
    /// Two ends of one connection.
    ///
    /// # Errors
    /// The system call's.
    pub fn pair() -> io::Result<(PacketSocket, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((PacketSocket(ours), theirs))
    }

    /// Connects.
    ///
    /// # Errors
    /// The system calls'.
    pub fn connect(path: &Path) -> io::Result<PacketSocket> {
        let descriptor = new_socket()?;
        connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(PacketSocket(descriptor))
    }

    /// The user id of the process at the other end, as it was when it connected or listened.
    ///
    /// # Errors
    /// The system call's.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(getsockopt(&self.0, sockopt::PeerCredentials)?.uid())
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The system call's.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let sent =
            sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], &[], MsgFlags::MSG_NOSIGNAL, None)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Sends bytes and a descriptor.
    ///
    /// # Errors
    /// The system call's.
    pub fn send_descriptor(&self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        descriptors::send(&self.as_stream()?, bytes, &[descriptor])
    }

    /// Receives bytes and the descriptors that come with them; empty at the connection's end.
    ///
    /// # Errors
    /// `TimedOut` if nothing comes until then, or the system call's.
    pub fn receive_descriptors(&self, deadline: Instant) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        wait(&[self.0.as_fd()], deadline)?;
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        match descriptors::receive(&self.as_stream()?, &mut bytes) {
            Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => Ok((Vec::new(), Vec::new())),
            received => {
                let (length, descriptors) = received?;
                bytes.truncate(length);
                Ok((bytes, descriptors))
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The system call's.
    pub fn send<M: Serialize>(&self, message: &M) -> io::Result<()> {
        self.send_bytes(&serde_json::to_vec(message)?)
    }

    /// Receives bytes; empty at the connection's end.
    ///
    /// # Errors
    /// `TimedOut` if nothing comes until then, or the system call's.
    pub fn receive_bytes(&self, deadline: Instant) -> io::Result<Vec<u8>> {
        wait(&[self.0.as_fd()], deadline)?;
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, None, MsgFlags::empty()) {
            // The end, of a peer that did not read all that it was sent.
            Err(Errno::ECONNRESET) => return Ok(Vec::new()),
            received => received?,
        };
        if received.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet is too long"));
        }
        let length = received.bytes;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Receives a message.
    ///
    /// # Errors
    /// `UnexpectedEof` at the connection's end; as [`receive_bytes`](Self::receive_bytes); `InvalidData` for another
    /// message.
    pub fn receive<M: DeserializeOwned>(&self, deadline: Instant) -> io::Result<M> {
        let bytes = self.receive_bytes(deadline)?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // What doesn't parse isn't shown: a key may be in it.
        serde_json::from_slice(&bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a message has another version"))
    }

    /// Sends a bundle.
    ///
    /// # Errors
    /// The system call's.
    pub fn send_bundle(&self, bundle: &Bundle) -> io::Result<()> {
        bundle.send(&self.as_stream()?)
    }

    /// Receives a bundle.
    ///
    /// # Errors
    /// `TimedOut`, or see [`BundleError`].
    pub fn receive_bundle(&self, deadline: Instant) -> Result<Bundle, BundleError> {
        wait(&[self.0.as_fd()], deadline)?;
        Bundle::receive(&self.as_stream()?)
    }

    /// Waits until this one or the other can be read (or has ended); says whether it is this one.
    ///
    /// # Errors
    /// `TimedOut`, or the system call's.
    pub fn readable_before(&self, other: &PacketSocket, deadline: Instant) -> io::Result<bool> {
        Ok(wait(&[self.0.as_fd(), other.0.as_fd()], deadline)? == 0)
    }

    fn as_stream(&self) -> io::Result<UnixStream> {
        Ok(UnixStream::from(self.0.try_clone()?))
    }
}

/// Waits until one of the descriptors can be read; returns the first that can.
fn wait(descriptors: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<usize> {
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent turning round.
        let left = left + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(0) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                let ready = polled.iter().position(|one| one.any().unwrap_or(true));
                return Ok(ready.unwrap_or(0));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn messages_arrive_whole_and_the_end_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = PacketListener::bind(&path).unwrap();
        let near = PacketSocket::connect(&path).unwrap();
        let far = listener.accept().unwrap();
        near.send(&"one").unwrap();
        near.send(&vec![1, 2]).unwrap();
        assert_eq!(far.receive::<String>(soon()).unwrap(), "one");
        assert_eq!(far.receive::<Vec<u8>>(soon()).unwrap(), [1, 2]);
        assert_eq!(far.peer_uid().unwrap(), nix::unistd::getuid().as_raw());
        let nothing = far.receive::<String>(Instant::now()).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::TimedOut);
        near.send(&7).unwrap();
        assert_eq!(far.receive::<String>(soon()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (other, _its_peer) = PacketSocket::pair().unwrap();
        drop(near);
        assert!(far.readable_before(&other, soon()).unwrap());
        assert_eq!(far.receive::<String>(soon()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
