//! Sockets of packets (`SOCK_SEQPACKET`): a message arrives whole or not at all, and can carry a bundle.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use atoll_fuse::bundle::{Bundle, BundleError, descriptors};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, connect,
    getsockopt, listen as listen_on, recvmsg, sendmsg, setsockopt, shutdown, socket, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a packet at most.
const PACKET_BYTES_MAX: usize = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// Longer than any process runs: what is waited for comes, or the other end goes.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

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
        listen_on(&descriptor, Backlog::new(BACKLOG)?)?;
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

    /// Sends bytes unless that would have to wait.
    ///
    /// # Errors
    /// `WouldBlock` if the other end reads nothing, or the system call's.
    pub fn send_bytes_at_once(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], &[], flags, None)?;
        Ok(())
    }

    /// Sends a message unless that would have to wait.
    ///
    /// # Errors
    /// As [`send_bytes_at_once`](Self::send_bytes_at_once).
    pub fn send_at_once<M: Serialize>(&self, message: &M) -> io::Result<()> {
        self.send_bytes_at_once(&serde_json::to_vec(message)?)
    }

    /// Sends bytes and descriptors.
    ///
    /// # Errors
    /// The system call's.
    pub fn send_descriptors(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        descriptors::send(&self.as_stream()?, bytes, descriptors)
    }

    /// Sends a message and descriptors.
    ///
    /// # Errors
    /// The system call's.
    pub fn send_with<M: Serialize>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_descriptors(&serde_json::to_vec(message)?, descriptors)
    }

    /// From now on a send fails when the other end has read nothing for so long.
    ///
    /// # Errors
    /// The system call's.
    pub fn set_send_timeout(&self, timeout: Duration) -> io::Result<()> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        Ok(setsockopt(&self.0, sockopt::SendTimeout, &TimeVal::new(seconds, 0))?)
    }

    /// Tells the other end that nothing more is sent, also if other processes have this socket open.
    pub fn end(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Write);
    }

    /// Ends the connection in both directions: who waits for a message sees its end.
    pub fn disconnect(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// Waits until no process has the other end open any more.
    ///
    /// # Errors
    /// `TimedOut`, or the system call's.
    pub fn hung_up(&self, deadline: Instant) -> io::Result<()> {
        wait_for(&[self.0.as_fd()], PollFlags::empty(), deadline).map(drop)
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

    /// Receives a message and the descriptors that come with it, however long that takes.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_with<M: DeserializeOwned>(&self) -> io::Result<(M, Vec<OwnedFd>)> {
        let (bytes, descriptors) = self.receive_descriptors(Instant::now() + FOREVER)?;
        Ok((parse(&bytes)?, descriptors))
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
        parse(&self.receive_bytes(deadline)?)
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

    /// Its descriptor, which another process may keep as well: the connection lasts as long as either has it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn as_stream(&self) -> io::Result<UnixStream> {
        Ok(UnixStream::from(self.0.try_clone()?))
    }
}

impl From<OwnedFd> for PacketSocket {
    /// A connected socket that another process had.
    fn from(descriptor: OwnedFd) -> PacketSocket {
        PacketSocket(descriptor)
    }
}

fn parse<M: DeserializeOwned>(bytes: &[u8]) -> io::Result<M> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // What doesn't parse isn't shown: a key may be in it.
    serde_json::from_slice(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a message has another version"))
}

/// Listens at a path, for this user alone; a socket that an earlier process left behind is removed, and nothing else.
///
/// # Errors
/// `AlreadyExists` if something else is there, or the system calls'.
pub fn listen(path: &Path) -> io::Result<PacketListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that isn't a socket"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = PacketListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Waits until one of the descriptors can be read; returns the first that can.
fn wait(descriptors: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<usize> {
    wait_for(descriptors, PollFlags::POLLIN, deadline)
}

/// Waits until one of the descriptors has one of the events, or has hung up.
fn wait_for(descriptors: &[BorrowedFd<'_>], events: PollFlags, deadline: Instant) -> io::Result<usize> {
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, events)).collect();
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

    #[test]
    fn a_socket_ends_when_the_last_process_has_closed_it() {
        let (ours, theirs) = PacketSocket::pair().unwrap();
        let theirs = PacketSocket::from(theirs);
        let kept = PacketSocket::from(ours.descriptor().try_clone_to_owned().unwrap());
        drop(ours);
        assert_eq!(kept.hung_up(Instant::now()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        // Whoever has it can tell the other end to end.
        kept.end();
        assert!(theirs.receive_bytes(soon()).unwrap().is_empty());
        theirs.send(&"still").unwrap();
        assert_eq!(kept.hung_up(Instant::now()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        kept.hung_up(soon()).unwrap();
        assert_eq!(kept.receive::<String>(soon()).unwrap(), "still");
    }

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
