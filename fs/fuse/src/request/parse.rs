//! Message bytes to [`Operation`]. Whatever the bytes are, the answer is an operation or an error: a
//! malformed request is answered with an errno and the session goes on.

use thiserror::Error;

use atoll_client::vfs;
use atoll_core::attributes::{AttributeChanges, KillPriv, TimeChange, Timestamp};

use super::{Extensions, Forgets, Header, Init, LockRequest, Operation, SetAttributes, lock_kind};
use crate::abi::flags::{self, InitFlags};
use crate::abi::input::*;
use crate::abi::{Pod, opcode};

/// Why a message is not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The message ends before its arguments do.
    #[error("a request is too short")]
    Short,
    /// The header's length is not the message's.
    #[error("a request of {got} bytes claims to have {said}")]
    Length {
        /// What the header says, in bytes.
        said: u32,
        /// What arrived, in bytes.
        got: usize,
    },
    /// A name without an end, or an empty one.
    #[error("a request has an invalid name")]
    Name,
    /// An argument that has no meaning.
    #[error("a request has an invalid argument")]
    Argument,
    /// Extensions that overrun the message or one another.
    #[error("a request has invalid extensions")]
    Extension,
}

impl Malformed {
    /// The errno that answers such a request.
    pub fn errno(self) -> i32 {
        match self {
            Malformed::Short | Malformed::Length { .. } | Malformed::Extension => libc::EIO,
            Malformed::Name | Malformed::Argument => libc::EINVAL,
        }
    }
}

/// Reads the header alone.
///
/// # Errors
/// [`Malformed::Short`] when there is none, [`Malformed::Length`] when it doesn't match the message.
pub fn parse_header(message: &[u8]) -> Result<Header, Malformed> {
    let raw = InHeader::read_from(message).ok_or(Malformed::Short)?;
    if raw.len as usize != message.len() {
        return Err(Malformed::Length { said: raw.len, got: message.len() });
    }
    Ok(raw.into())
}

/// Parses a whole message. `negotiated` are INIT's flags (they decide the form of some requests).
///
/// # Errors
/// Any [`Malformed`]; the header may still be readable, so that it can be answered.
pub fn parse<'a>(message: &'a [u8], negotiated: InitFlags) -> Result<(Header, Operation<'a>), Malformed> {
    let header = parse_header(message)?;
    let raw = InHeader::read_from(message).ok_or(Malformed::Short)?;
    let extension_bytes = usize::from(raw.total_extlen) * 8;
    let arguments_end = message
        .len()
        .checked_sub(extension_bytes)
        .filter(|end| *end >= size_of::<InHeader>())
        .ok_or(Malformed::Extension)?;
    let arguments = Arguments(&message[size_of::<InHeader>()..arguments_end]);
    let operation = operation(&header, arguments, &message[arguments_end..], negotiated)?;
    Ok((header, operation))
}

/// What is left of a message's arguments.
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    fn take<T: Pod>(&mut self) -> Result<T, Malformed> {
        let value = T::read_from(self.0).ok_or(Malformed::Short)?;
        self.0 = &self.0[size_of::<T>()..];
        Ok(value)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }

    /// A string that ends with NUL; it may be empty.
    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Malformed::Name)?;
        let string = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(string)
    }

    /// A directory entry's or attribute's name: never empty.
    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        Some(self.string()?).filter(|name| !name.is_empty()).ok_or(Malformed::Name)
    }
}

fn operation<'a>(
    header: &Header,
    mut args: Arguments<'a>,
    extension_bytes: &'a [u8],
    negotiated: InitFlags,
) -> Result<Operation<'a>, Malformed> {
    Ok(match header.opcode {
        opcode::LOOKUP => Operation::Lookup { name: args.name()? },
        opcode::FORGET => Operation::Forget { lookups: args.take::<ForgetIn>()?.nlookup },
        opcode::BATCH_FORGET => {
            let count = args.take::<BatchForgetIn>()?.count as usize;
            let bytes = count.checked_mul(size_of::<ForgetOne>()).ok_or(Malformed::Short)?;
            Operation::BatchForget(Forgets(args.bytes(bytes)?))
        }
        opcode::GETATTR => {
            let raw: GetattrIn = args.take()?;
            Operation::Getattr { handle: (raw.getattr_flags & flags::GETATTR_FH != 0).then_some(raw.fh) }
        }
        opcode::STATX => {
            let raw: StatxIn = args.take()?;
            Operation::Statx {
                handle: (raw.getattr_flags & flags::GETATTR_FH != 0).then_some(raw.fh),
                flags: raw.sx_flags,
                mask: raw.sx_mask,
            }
        }
        opcode::SETATTR => Operation::Setattr(set_attributes(&args.take()?)),
        opcode::READLINK => Operation::Readlink,
        opcode::SYMLINK => {
            let (name, target) = (args.name()?, args.name()?);
            Operation::Symlink { name, target, extensions: extensions(extension_bytes)? }
        }
        opcode::MKNOD => {
            let MknodIn { mode, rdev, umask, .. } = args.take()?;
            let extensions = extensions(extension_bytes)?;
            Operation::Mknod { name: args.name()?, mode, rdev, umask, extensions }
        }
        opcode::MKDIR => {
            let MkdirIn { mode, umask } = args.take()?;
            Operation::Mkdir { name: args.name()?, mode, umask, extensions: extensions(extension_bytes)? }
        }
        opcode::UNLINK => Operation::Unlink { name: args.name()? },
        opcode::RMDIR => Operation::Rmdir { name: args.name()? },
        opcode::RENAME => {
            let new_parent = args.take::<RenameIn>()?.newdir;
            Operation::Rename { name: args.name()?, new_parent, new_name: args.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let Rename2In { newdir, flags, .. } = args.take()?;
            Operation::Rename { name: args.name()?, new_parent: newdir, new_name: args.name()?, flags }
        }
        opcode::LINK => {
            let target = args.take::<LinkIn>()?.oldnodeid;
            Operation::Link { target, new_name: args.name()? }
        }
        opcode::OPEN => {
            let raw: OpenIn = args.take()?;
            let kill_suid_sgid = raw.open_flags & flags::OPEN_KILL_SUIDGID != 0;
            Operation::Open { flags: raw.flags, kill_suid_sgid }
        }
        opcode::OPENDIR => Operation::Opendir { flags: args.take::<OpenIn>()?.flags },
        opcode::READ => {
            let raw: ReadIn = args.take()?;
            Operation::Read {
                handle: raw.fh,
                offset: raw.offset,
                size: raw.size,
                flags: raw.flags,
                lock_owner: (raw.read_flags & flags::READ_LOCKOWNER != 0).then_some(raw.lock_owner),
            }
        }
        opcode::READDIR => {
            let raw: ReadIn = args.take()?;
            Operation::Readdir { handle: raw.fh, offset: raw.offset, size: raw.size }
        }
        opcode::READDIRPLUS => {
            let raw: ReadIn = args.take()?;
            Operation::Readdirplus { handle: raw.fh, offset: raw.offset, size: raw.size }
        }
        opcode::WRITE => {
            let raw: WriteIn = args.take()?;
            Operation::Write {
                handle: raw.fh,
                offset: raw.offset,
                data: args.bytes(raw.size as usize)?,
                flags: raw.flags,
                from_cache: raw.write_flags & flags::WRITE_CACHE != 0,
                kill_suid_sgid: raw.write_flags & flags::WRITE_KILL_SUIDGID != 0,
                lock_owner: (raw.write_flags & flags::WRITE_LOCKOWNER != 0).then_some(raw.lock_owner),
            }
        }
        opcode::STATFS => Operation::Statfs,
        opcode::RELEASE => {
            let raw: ReleaseIn = args.take()?;
            Operation::Release {
                handle: raw.fh,
                flags: raw.flags,
                flush: raw.release_flags & flags::RELEASE_FLUSH != 0,
                flock_unlock: raw.release_flags & flags::RELEASE_FLOCK_UNLOCK != 0,
                lock_owner: raw.lock_owner,
            }
        }
        opcode::RELEASEDIR => {
            let raw: ReleaseIn = args.take()?;
            Operation::Releasedir { handle: raw.fh, flags: raw.flags }
        }
        opcode::FSYNC => {
            let raw: FsyncIn = args.take()?;
            Operation::Fsync { handle: raw.fh, datasync: raw.fsync_flags & flags::FSYNC_DATASYNC != 0 }
        }
        opcode::FSYNCDIR => {
            let raw: FsyncIn = args.take()?;
            Operation::Fsyncdir { handle: raw.fh, datasync: raw.fsync_flags & flags::FSYNC_DATASYNC != 0 }
        }
        opcode::SETXATTR => {
            let (size, set_flags, more) = if negotiated.contains(InitFlags::SETXATTR_EXT) {
                let raw: SetxattrIn = args.take()?;
                (raw.size, raw.flags, raw.setxattr_flags)
            } else {
                let raw: SetxattrInShort = args.take()?;
                (raw.size, raw.flags, 0)
            };
            Operation::Setxattr {
                name: args.name()?,
                value: args.bytes(size as usize)?,
                flags: set_flags,
                acl_kill_sgid: more & flags::SETXATTR_ACL_KILL_SGID != 0,
            }
        }
        opcode::GETXATTR => {
            let size = args.take::<GetxattrIn>()?.size;
            Operation::Getxattr { name: args.name()?, size }
        }
        opcode::LISTXATTR => Operation::Listxattr { size: args.take::<GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Operation::Removexattr { name: args.name()? },
        opcode::FLUSH => {
            let raw: FlushIn = args.take()?;
            Operation::Flush { handle: raw.fh, lock_owner: raw.lock_owner }
        }
        opcode::INIT => Operation::Init(init(args)?),
        opcode::GETLK => Operation::Getlk(lock(&args.take()?)?),
        opcode::SETLK => Operation::Setlk { request: lock(&args.take()?)?, wait: false },
        opcode::SETLKW => Operation::Setlk { request: lock(&args.take()?)?, wait: true },
        opcode::ACCESS => Operation::Access { mask: args.take::<AccessIn>()?.mask },
        opcode::CREATE => {
            let raw: CreateIn = args.take()?;
            Operation::Create {
                name: args.name()?,
                flags: raw.flags,
                mode: raw.mode,
                umask: raw.umask,
                kill_suid_sgid: raw.open_flags & flags::OPEN_KILL_SUIDGID != 0,
                extensions: extensions(extension_bytes)?,
            }
        }
        opcode::TMPFILE => {
            // A name follows ("/"), which says nothing.
            let CreateIn { flags, mode, umask, .. } = args.take()?;
            Operation::Tmpfile { flags, mode, umask, extensions: extensions(extension_bytes)? }
        }
        opcode::INTERRUPT => Operation::Interrupt { unique: args.take::<InterruptIn>()?.unique },
        opcode::BMAP => {
            let raw: BmapIn = args.take()?;
            Operation::Bmap { block: raw.block, block_bytes: raw.blocksize }
        }
        opcode::DESTROY => Operation::Destroy,
        opcode::IOCTL => {
            let raw: IoctlIn = args.take()?;
            Operation::Ioctl {
                handle: raw.fh,
                flags: raw.flags,
                command: raw.cmd,
                argument: raw.arg,
                data: args.bytes(raw.in_size as usize)?,
                out_size: raw.out_size,
            }
        }
        opcode::POLL => {
            let raw: PollIn = args.take()?;
            Operation::Poll { handle: raw.fh, kernel_handle: raw.kh, flags: raw.flags, events: raw.events }
        }
        opcode::FALLOCATE => {
            let raw: FallocateIn = args.take()?;
            Operation::Fallocate { handle: raw.fh, offset: raw.offset, length: raw.length, mode: raw.mode }
        }
        opcode::LSEEK => {
            let raw: LseekIn = args.take()?;
            Operation::Lseek { handle: raw.fh, offset: raw.offset, whence: raw.whence }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let raw: CopyFileRangeIn = args.take()?;
            Operation::CopyFileRange {
                handle: raw.fh_in,
                offset: raw.off_in,
                to_inode: raw.nodeid_out,
                to_handle: raw.fh_out,
                to_offset: raw.off_out,
                length: raw.len,
                flags: raw.flags,
                wide: header.opcode == opcode::COPY_FILE_RANGE_64,
            }
        }
        opcode::SYNCFS => Operation::Syncfs,
        _ => Operation::Unknown,
    })
}

fn init(mut args: Arguments<'_>) -> Result<Init, Malformed> {
    let short: InitInShort = Arguments(args.0).take()?;
    let mut init_flags = InitFlags(u64::from(short.flags));
    if init_flags.contains(InitFlags::INIT_EXT) {
        init_flags |= InitFlags(u64::from(args.take::<InitIn>()?.flags2) << 32);
    }
    Ok(Init { major: short.major, minor: short.minor, max_readahead: short.max_readahead, flags: init_flags })
}

fn set_attributes(raw: &SetattrIn) -> SetAttributes {
    use flags::setattr as bit;
    let has = |mask: u32| raw.valid & mask != 0;
    let time = |set: u32, now: u32, seconds: i64, nanos: u32| match (has(set), has(now)) {
        (_, true) => Some(TimeChange::Now),
        (true, false) => Some(TimeChange::To(Timestamp { seconds, nanos })),
        (false, false) => None,
    };
    SetAttributes {
        changes: AttributeChanges {
            mode: has(bit::MODE).then_some(raw.mode),
            uid: has(bit::UID).then_some(raw.uid),
            gid: has(bit::GID).then_some(raw.gid),
            size: has(bit::SIZE).then_some(raw.size),
            atime: time(bit::ATIME, bit::ATIME_NOW, raw.atime, raw.atimensec),
            mtime: time(bit::MTIME, bit::MTIME_NOW, raw.mtime, raw.mtimensec),
            kill_priv: if has(bit::KILL_SUIDGID) { KillPriv::SETID } else { KillPriv::NONE },
        },
        handle: has(bit::FH).then_some(raw.fh),
        lock_owner: has(bit::LOCKOWNER).then_some(raw.lock_owner),
    }
}

fn lock(raw: &LkIn) -> Result<LockRequest, Malformed> {
    let kind = lock_kind(raw.lk.kind).ok_or(Malformed::Argument)?;
    Ok(LockRequest {
        handle: raw.fh,
        owner: raw.owner,
        lock: vfs::FileLock { kind, start: raw.lk.start, end: raw.lk.end, pid: raw.lk.pid },
        flock: raw.lk_flags & flags::LK_FLOCK != 0,
    })
}

/// Each extension begins with its length (a multiple of 8) and its kind; unknown kinds are passed over.
fn extensions(mut bytes: &[u8]) -> Result<Extensions<'_>, Malformed> {
    let mut found = Extensions::default();
    while !bytes.is_empty() {
        let header = ExtHeader::read_from(bytes).ok_or(Malformed::Extension)?;
        let size = header.size as usize;
        if size < size_of::<ExtHeader>() || size > bytes.len() {
            return Err(Malformed::Extension);
        }
        let mut body = Arguments(&bytes[size_of::<ExtHeader>()..size]);
        match header.kind {
            1..=flags::SECURITY_LABELS_MAX => found.security_label = Some(security_label(&mut body)?),
            flags::EXT_GROUPS => {
                let count: u32 = body.take().map_err(|_| Malformed::Extension)?;
                if count > 0 {
                    found.supplementary_group = Some(body.take().map_err(|_| Malformed::Extension)?);
                }
            }
            _ => {}
        }
        // The kernel's lengths are multiples of 8 already; rounding up keeps a stranger's from looping.
        bytes = bytes.get(size.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(found)
}

fn security_label<'a>(body: &mut Arguments<'a>) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let size = body.take::<SecctxIn>().map_err(|_| Malformed::Extension)?.size as usize;
    let name = body.name().map_err(|_| Malformed::Extension)?;
    let label = body.bytes(size).map_err(|_| Malformed::Extension)?;
    Ok((name, label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, parts: &[&[u8]], extensions: &[u8]) -> Vec<u8> {
        let body: Vec<u8> = parts.concat();
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len() + extensions.len()) as u32,
            opcode,
            unique: 42,
            nodeid: 7,
            uid: 1000,
            gid: 100,
            pid: 9,
            total_extlen: (extensions.len() / 8) as u16,
            padding: 0,
        };
        [header.as_bytes(), &body, extensions].concat()
    }

    #[test]
    fn a_lookup() {
        let bytes = message(opcode::LOOKUP, &[b"hello\0"], &[]);
        let (header, operation) = parse(&bytes, InitFlags::EMPTY).expect("parses");
        assert_eq!((header.unique, header.nodeid, header.uid), (42, 7, 1000));
        assert!(matches!(operation, Operation::Lookup { name: b"hello" }));
    }

    #[test]
    fn names_must_end_and_must_not_be_empty() {
        for bad in [&b"hello"[..], b"\0", b""] {
            let bytes = message(opcode::LOOKUP, &[bad], &[]);
            assert_eq!(parse(&bytes, InitFlags::EMPTY).err(), Some(Malformed::Name), "{bad:?}");
        }
    }

    #[test]
    fn a_write_borrows_its_data_and_no_more() {
        let write = WriteIn {
            fh: 3,
            offset: 4096,
            size: 5,
            write_flags: flags::WRITE_CACHE | flags::WRITE_LOCKOWNER,
            lock_owner: 11,
            flags: 1,
            padding: 0,
        };
        let bytes = message(opcode::WRITE, &[write.as_bytes(), b"datum"], &[]);
        let (_, operation) = parse(&bytes, InitFlags::EMPTY).expect("parses");
        let Operation::Write { data, from_cache, kill_suid_sgid, lock_owner, .. } = operation else {
            panic!("not a write: {operation:?}");
        };
        assert_eq!((data, from_cache, kill_suid_sgid, lock_owner), (&b"datum"[..], true, false, Some(11)));

        let bytes = message(opcode::WRITE, &[write.as_bytes(), b"dat"], &[]);
        assert_eq!(parse(&bytes, InitFlags::EMPTY).err(), Some(Malformed::Short));
    }

    #[test]
    fn setxattr_has_two_forms() {
        let long = SetxattrIn { size: 2, flags: 1, setxattr_flags: 1, padding: 0 };
        let bytes = message(opcode::SETXATTR, &[long.as_bytes(), b"user.a\0", b"xy"], &[]);
        let (_, operation) = parse(&bytes, InitFlags::SETXATTR_EXT).expect("parses");
        assert!(matches!(
            operation,
            Operation::Setxattr { name: b"user.a", value: b"xy", flags: 1, acl_kill_sgid: true }
        ));
        let short = SetxattrInShort { size: 2, flags: 2 };
        let bytes = message(opcode::SETXATTR, &[short.as_bytes(), b"user.a\0", b"xy"], &[]);
        let (_, operation) = parse(&bytes, InitFlags::EMPTY).expect("parses");
        assert!(matches!(
            operation,
            Operation::Setxattr { value: b"xy", flags: 2, acl_kill_sgid: false, .. }
        ));
    }

    #[test]
    fn flock_is_told_from_record_locks() {
        let raw = LkIn {
            fh: 1,
            owner: 2,
            lk: FileLock { start: 0, end: 9, kind: libc::F_WRLCK as u32, pid: 3 },
            lk_flags: flags::LK_FLOCK,
            padding: 0,
        };
        let bytes = message(opcode::SETLKW, &[raw.as_bytes()], &[]);
        let (_, operation) = parse(&bytes, InitFlags::EMPTY).expect("parses");
        let Operation::Setlk { request, wait: true } = operation else { panic!("{operation:?}") };
        assert!(request.flock && request.lock.kind == vfs::LockKind::Write);

        let bad = LkIn { lk: FileLock { kind: 99, ..raw.lk }, ..raw };
        let bytes = message(opcode::SETLK, &[bad.as_bytes()], &[]);
        assert_eq!(parse(&bytes, InitFlags::EMPTY).err(), Some(Malformed::Argument));
    }

    #[test]
    fn extensions_come_after_the_name() {
        let groups =
            [&16u32.to_ne_bytes()[..], &32u32.to_ne_bytes(), &1u32.to_ne_bytes(), &77u32.to_ne_bytes()];
        // One label: header (24 + 8 bytes), its size, "selinux\0", "ctx" and padding.
        let label = [
            &32u32.to_ne_bytes()[..],
            &1u32.to_ne_bytes(),
            &3u32.to_ne_bytes(),
            &0u32.to_ne_bytes(),
            b"selinux\0",
            b"ctx\0\0\0\0\0",
        ];
        let mkdir = MkdirIn { mode: 0o755, umask: 0o22 };
        let bytes = message(
            opcode::MKDIR,
            &[mkdir.as_bytes(), b"dir\0"],
            &[label.concat(), groups.concat()].concat(),
        );
        let (_, operation) = parse(&bytes, InitFlags::EMPTY).expect("parses");
        let Operation::Mkdir { name: b"dir", mode: 0o755, extensions, .. } = operation else {
            panic!("{operation:?}")
        };
        assert_eq!(extensions.supplementary_group, Some(77));
        assert_eq!(extensions.security_label, Some((&b"selinux"[..], &b"ctx"[..])));
    }

    #[test]
    fn no_message_makes_the_parser_panic() {
        // Every opcode, cut at every length, with garbage that looks like large counts.
        for opcode in 0..60 {
            let full = message(opcode, &[&[0xff; 200]], &[0xff; 16]);
            for len in 0..full.len() {
                let mut cut = full[..len].to_vec();
                if len >= 4 {
                    cut[..4].copy_from_slice(&(len as u32).to_ne_bytes());
                }
                let _ = parse(&cut, InitFlags(u64::MAX));
                let _ = parse(&cut, InitFlags::EMPTY);
            }
        }
    }

    #[test]
    fn a_batch_of_forgets() {
        let batch = BatchForgetIn { count: 2, dummy: 0 };
        let one = ForgetOne { nodeid: 5, nlookup: 1 };
        let two = ForgetOne { nodeid: 6, nlookup: 3 };
        let bytes = message(opcode::BATCH_FORGET, &[batch.as_bytes(), one.as_bytes(), two.as_bytes()], &[]);
        let (_, operation) = parse(&bytes, InitFlags::EMPTY).expect("parses");
        let Operation::BatchForget(list) = operation else { panic!("{operation:?}") };
        let list: Vec<_> = list.iter().map(|forget| (forget.nodeid, forget.lookups)).collect();
        assert_eq!(list, [(5, 1), (6, 3)]);
    }
}
