//! A kernel played by a test, over socket pairs that keep messages apart as the device does. It can say what no real
//! kernel says: garbage, requests cut short, an INTERRUPT that overtakes its request.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::abi::input::{InHeader, InitIn, InterruptIn, WriteIn};
use crate::abi::output::{InitOut, OutHeader};
use crate::abi::{KERNEL_MINOR_VERSION, KERNEL_VERSION, Pod, opcode};
use crate::bundle::Bundle;
use crate::slots::{Layout, RequestMemory};
use crate::{InitFlags, device};

/// How long a reply may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The largest message of the mock: a socket's buffer.
const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// The kernel's side of a session.
pub struct MockKernel {
    devices: Vec<OwnedFd>,
    next_unique: AtomicU64,
}

/// What the server wrote: a reply, or a notification (`unique` 0, its code in `error`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The request's number.
    pub unique: u64,
    /// 0, or a negated errno.
    pub error: i32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl MockKernel {
    /// A kernel with so many device descriptors, and the bundle to serve it with.
    ///
    /// # Errors
    /// No sockets or no memory.
    pub fn new(devices: usize, layout: Layout) -> io::Result<(MockKernel, Bundle)> {
        let mut kernel_side = Vec::new();
        let mut server_side = Vec::new();
        for _ in 0..devices {
            let (here, there) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
            let patience = TimeVal::seconds(TIMEOUT.as_secs() as i64);
            setsockopt(&here, sockopt::ReceiveTimeout, &patience)?;
            setsockopt(&here, sockopt::SndBuf, &(2 * MESSAGE_BYTES_MAX))?;
            kernel_side.push(here);
            server_side.push(there);
        }
        let memory = device::duplicate(RequestMemory::create(layout)?.file())?;
        let bundle = Bundle::from_parts(server_side, memory, true);
        Ok((MockKernel { devices: kernel_side, next_unique: AtomicU64::new(2) }, bundle))
    }

    /// Sends any bytes as one message.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_raw(&self, device: usize, message: &[u8]) -> io::Result<()> {
        send(self.devices[device].as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Sends a request under a number of its own, which is returned.
    ///
    /// # Errors
    /// The socket's.
    pub fn request(&self, device: usize, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> io::Result<u64> {
        let unique = self.next_unique.fetch_add(2, Ordering::Relaxed);
        self.request_as(device, unique, opcode, nodeid, parts)?;
        Ok(unique)
    }

    /// Sends a request under a given number.
    ///
    /// # Errors
    /// The socket's.
    pub fn request_as(
        &self,
        device: usize,
        unique: u64,
        opcode: u32,
        nodeid: u64,
        parts: &[&[u8]],
    ) -> io::Result<()> {
        let body = parts.concat();
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header =
            InHeader { len, opcode, unique, nodeid, uid: 1000, gid: 1000, pid: 1, ..InHeader::default() };
        self.send_raw(device, &[header.as_bytes(), &body].concat())
    }

    /// Sends INIT with these flags and returns the flags of the answer.
    ///
    /// # Errors
    /// The socket's; `InvalidData` if it is refused.
    pub fn init(&self, flags: InitFlags) -> io::Result<InitFlags> {
        let init = InitIn {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            max_readahead: 131_072,
            flags: flags.0 as u32,
            flags2: (flags.0 >> 32) as u32,
            unused: [0; 11],
        };
        let unique = self.request(0, opcode::INIT, 0, &[init.as_bytes()])?;
        let reply = self.receive(0)?;
        let out = InitOut::read_from(&reply.body).filter(|_| reply.unique == unique && reply.error == 0);
        let out = out.ok_or(io::ErrorKind::InvalidData)?;
        Ok(InitFlags(u64::from(out.flags) | u64::from(out.flags2) << 32))
    }

    /// Sends a WRITE.
    ///
    /// # Errors
    /// The socket's.
    pub fn write(&self, device: usize, nodeid: u64, offset: u64, data: &[u8]) -> io::Result<u64> {
        let write = WriteIn { offset, size: data.len() as u32, ..WriteIn::default() };
        self.request(device, opcode::WRITE, nodeid, &[write.as_bytes(), data])
    }

    /// Interrupts a request.
    ///
    /// # Errors
    /// The socket's.
    pub fn interrupt(&self, device: usize, unique: u64) -> io::Result<()> {
        let interrupt = InterruptIn { unique };
        self.request_as(device, unique | 1, opcode::INTERRUPT, 0, &[interrupt.as_bytes()])
    }

    /// Receives the next reply or notification.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when none comes for 20 seconds; `InvalidData` if it is none.
    pub fn receive(&self, device: usize) -> io::Result<Reply> {
        let mut message = vec![0; MESSAGE_BYTES_MAX];
        let bytes = recv(self.devices[device].as_raw_fd(), &mut message, MsgFlags::empty())?;
        message.truncate(bytes);
        let header = OutHeader::read_from(&message).ok_or(io::ErrorKind::InvalidData)?;
        if header.len as usize != bytes {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let body = message.split_off(size_of::<OutHeader>());
        Ok(Reply { unique: header.unique, error: header.error, body })
    }
}
