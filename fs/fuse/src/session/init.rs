//! What kernel and server agree on when a mount begins. It holds for as long as the mount does: a successor serves
//! what its predecessor negotiated.

use thiserror::Error;

use crate::abi::flags::InitFlags;
use crate::abi::output::InitOut;
use crate::abi::{KERNEL_MINOR_VERSION, KERNEL_MINOR_VERSION_MIN, KERNEL_VERSION};
use crate::request::Init;
use crate::slots::layout::{PAGE_BYTES, PAYLOAD_BYTES_MAX};

/// Asked of every kernel that offers it.
const WANTED: [InitFlags; 22] = [
    InitFlags::ASYNC_READ,
    InitFlags::POSIX_LOCKS,
    InitFlags::FLOCK_LOCKS,
    InitFlags::ATOMIC_O_TRUNC,
    InitFlags::EXPORT_SUPPORT,
    InitFlags::BIG_WRITES,
    InitFlags::DO_READDIRPLUS,
    InitFlags::READDIRPLUS_AUTO,
    InitFlags::ASYNC_DIO,
    InitFlags::PARALLEL_DIROPS,
    InitFlags::ABORT_ERROR,
    InitFlags::MAX_PAGES,
    InitFlags::CACHE_SYMLINKS,
    InitFlags::NO_OPENDIR_SUPPORT,
    InitFlags::EXPLICIT_INVAL_DATA,
    InitFlags::SETXATTR_EXT,
    InitFlags::INIT_EXT,
    InitFlags::CREATE_SUPP_GROUP,
    InitFlags::HAS_EXPIRE_ONLY,
    InitFlags::DIRECT_IO_ALLOW_MMAP,
    InitFlags::HAS_RESEND,
    InitFlags::HANDLE_KILLPRIV_V2,
];

/// What the server wants where there is a choice.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The kernel collects writes and trusts its own size and times: only for a volume's one writer.
    pub writeback_cache: bool,
    /// The kernel checks POSIX ACLs. Implies that the server applies the umask (or the parent's default ACL).
    pub posix_acl: bool,
    /// The server applies the umask.
    pub dont_mask: bool,
    /// Idmapped mounts. Refused by the kernel (and the mount with it) without `default_permissions`.
    pub allow_idmap: bool,
    /// The server clears set-id bits when a request says so. Without it the kernel looks for file capabilities before
    /// every write.
    pub handle_killpriv: bool,
    /// A successor asks the kernel for what is missing in the request memory (Linux 6.9). Without it the memory alone
    /// has to do, as on older kernels.
    pub resend: bool,
    /// Locks come to the server. Without it the kernel keeps them itself, for this mount alone.
    pub locks: bool,
    /// Requests that nobody waits for (read-ahead, write-back, direct I/O of AIO) under way at a time.
    pub max_background: u16,
    /// Number of these from which the kernel considers the mount congested.
    pub congestion_threshold: u16,
    /// Bytes of one WRITE, at most 1 MiB.
    pub max_write: u32,
}

impl Default for InitOptions {
    fn default() -> InitOptions {
        InitOptions {
            writeback_cache: false,
            posix_acl: false,
            dont_mask: false,
            allow_idmap: true,
            handle_killpriv: true,
            locks: true,
            resend: true,
            max_background: 256,
            congestion_threshold: 192,
            max_write: PAYLOAD_BYTES_MAX as u32,
        }
    }
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// The protocol's minor version.
    pub minor: u32,
    /// What both sides do.
    pub flags: InitFlags,
    /// Bytes of one WRITE.
    pub max_write: u32,
    /// Pages of one request.
    pub max_pages: u16,
    /// Bytes that the kernel reads ahead.
    pub max_readahead: u32,
    /// Requests that nobody waits for, at a time.
    pub max_background: u16,
    /// See [`InitOptions::congestion_threshold`].
    pub congestion_threshold: u16,
}

impl Negotiated {
    /// Whether `flag` was agreed on.
    pub fn has(&self, flag: InitFlags) -> bool {
        self.flags.contains(flag)
    }

    /// As it is kept in the request memory.
    pub(crate) fn to_words(self) -> [u32; 10] {
        [
            KERNEL_VERSION,
            self.minor,
            self.flags.0 as u32,
            (self.flags.0 >> 32) as u32,
            self.max_write,
            u32::from(self.max_pages),
            self.max_readahead,
            u32::from(self.max_background),
            u32::from(self.congestion_threshold),
            0,
        ]
    }

    /// The opposite of [`to_words`](Self::to_words).
    pub(crate) fn from_words(words: [u32; 10]) -> Negotiated {
        Negotiated {
            minor: words[1],
            flags: InitFlags(u64::from(words[2]) | u64::from(words[3]) << 32),
            max_write: words[4],
            max_pages: words[5] as u16,
            max_readahead: words[6],
            max_background: words[7] as u16,
            congestion_threshold: words[8] as u16,
        }
    }

    /// The reply to INIT.
    pub(crate) fn reply(&self) -> InitOut {
        InitOut {
            major: KERNEL_VERSION,
            minor: self.minor,
            max_readahead: self.max_readahead,
            flags: self.flags.0 as u32,
            max_background: self.max_background,
            congestion_threshold: self.congestion_threshold,
            max_write: self.max_write,
            time_gran: 1,
            max_pages: self.max_pages,
            flags2: (self.flags.0 >> 32) as u32,
            ..InitOut::default()
        }
    }
}

/// Why a kernel can't be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the kernel speaks FUSE {major}.{minor}; at least {KERNEL_VERSION}.{KERNEL_MINOR_VERSION_MIN} is required"
)]
pub struct KernelTooOld {
    /// Its major version.
    pub major: u32,
    /// Its minor version.
    pub minor: u32,
}

/// What INIT is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The session begins.
    Agreed(Negotiated),
    /// The kernel is of a newer major version: it is told ours and sends INIT again.
    TellVersion,
}

/// Decides on the answer to INIT.
pub(crate) fn negotiate(kernel: &Init, options: &InitOptions) -> Result<Answer, KernelTooOld> {
    if kernel.major > KERNEL_VERSION {
        return Ok(Answer::TellVersion);
    }
    if kernel.major < KERNEL_VERSION || kernel.minor < KERNEL_MINOR_VERSION_MIN {
        return Err(KernelTooOld { major: kernel.major, minor: kernel.minor });
    }
    let mut wanted = WANTED.into_iter().fold(InitFlags::EMPTY, |all, flag| all | flag);
    let optional = [
        (options.writeback_cache, InitFlags::WRITEBACK_CACHE),
        (options.posix_acl, InitFlags::POSIX_ACL | InitFlags::DONT_MASK),
        (options.dont_mask, InitFlags::DONT_MASK),
        (options.allow_idmap, InitFlags::ALLOW_IDMAP),
    ];
    for (_, flag) in optional.into_iter().filter(|(chosen, _)| *chosen) {
        wanted |= flag;
    }
    let refusable = [
        (options.handle_killpriv, InitFlags::HANDLE_KILLPRIV_V2),
        (options.resend, InitFlags::HAS_RESEND),
        (options.locks, InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS),
    ];
    for (_, flag) in refusable.into_iter().filter(|(chosen, _)| !*chosen) {
        wanted = wanted & !flag;
    }
    let max_write = options.max_write.clamp(PAGE_BYTES as u32, PAYLOAD_BYTES_MAX as u32);
    Ok(Answer::Agreed(Negotiated {
        minor: kernel.minor.min(KERNEL_MINOR_VERSION),
        flags: kernel.flags & wanted,
        max_write,
        max_pages: (max_write as usize).div_ceil(PAGE_BYTES) as u16,
        // Only ever lowered here; how far the kernel really reads ahead is the backing device's setting.
        max_readahead: kernel.max_readahead,
        max_background: options.max_background.max(1),
        congestion_threshold: options.congestion_threshold.clamp(1, options.max_background.max(1)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(minor: u32) -> Init {
        Init { major: 7, minor, max_readahead: 131_072, flags: InitFlags(u64::MAX) }
    }

    fn agreed(kernel: &Init, options: &InitOptions) -> Negotiated {
        match negotiate(kernel, options) {
            Ok(Answer::Agreed(negotiated)) => negotiated,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_asked_that_the_kernel_does_not_offer() {
        let few = Init { flags: InitFlags::ASYNC_READ | InitFlags::AUTO_INVAL_DATA, ..kernel(31) };
        let negotiated = agreed(&few, &InitOptions::default());
        assert_eq!(negotiated.flags, InitFlags::ASYNC_READ);
        assert_eq!(negotiated.minor, 31);
    }

    #[test]
    fn dangerous_flags_are_never_asked_for_by_default() {
        let negotiated = agreed(&kernel(99), &InitOptions::default());
        assert_eq!(negotiated.minor, KERNEL_MINOR_VERSION);
        for never in [
            InitFlags::AUTO_INVAL_DATA,
            InitFlags::WRITEBACK_CACHE,
            InitFlags::POSIX_ACL,
            InitFlags::DONT_MASK,
            InitFlags::SECURITY_CTX,
            InitFlags::NO_EXPORT_SUPPORT,
            InitFlags::OVER_IO_URING,
            InitFlags::REQUEST_TIMEOUT,
            InitFlags::PASSTHROUGH,
        ] {
            assert!(!negotiated.has(never), "{never:?}");
        }
        assert!(negotiated.has(InitFlags::HAS_RESEND) && negotiated.has(InitFlags::EXPLICIT_INVAL_DATA));
        assert_eq!((negotiated.max_write, negotiated.max_pages), (1 << 20, 256));
    }

    #[test]
    fn acls_bring_the_umask_along() {
        let options = InitOptions { posix_acl: true, ..InitOptions::default() };
        let negotiated = agreed(&kernel(45), &options);
        assert!(negotiated.has(InitFlags::POSIX_ACL) && negotiated.has(InitFlags::DONT_MASK));
    }

    #[test]
    fn versions() {
        assert_eq!(
            negotiate(&kernel(30), &InitOptions::default()),
            Err(KernelTooOld { major: 7, minor: 30 })
        );
        let newer = Init { major: 8, ..kernel(0) };
        assert_eq!(negotiate(&newer, &InitOptions::default()), Ok(Answer::TellVersion));
    }

    #[test]
    fn what_was_agreed_survives_the_memory() {
        let negotiated = agreed(&kernel(45), &InitOptions::default());
        assert_eq!(Negotiated::from_words(negotiated.to_words()), negotiated);
    }
}
