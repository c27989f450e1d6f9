//! Who a caller is, where the kernel doesn't say: one that maps ids for user namespaces tells the caller's uid
//! only with requests that make something. It has checked all permissions already; this is for the few rules
//! that it leaves to the filesystem.

use crate::vfs::Caller;

/// The uid with which requests come whose caller's uid isn't told.
const UID_NOT_TOLD: u32 = u32::MAX;
/// Bit of `CAP_FOWNER` in a capability set.
pub const CAP_FOWNER: u64 = 1 << 3;
/// Bit of `CAP_FSETID`.
pub const CAP_FSETID: u64 = 1 << 4;
/// Bit of `CAP_SYS_ADMIN`.
pub const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What is known of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its filesystem uid.
    pub uid: u32,
    /// Its effective capabilities.
    pub capabilities: u64,
}

impl Identity {
    /// Who the caller is; `None` if that can't be found out (it is in another pid namespace, or gone).
    pub fn of(caller: &Caller) -> Option<Self> {
        if caller.uid != UID_NOT_TOLD {
            let capabilities = if caller.uid == 0 { u64::MAX } else { 0 };
            return Some(Identity { uid: caller.uid, capabilities });
        }
        // The id is a thread's.
        Self::parse(&std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        Some(Identity {
            // Real, effective, saved, filesystem.
            uid: field("Uid:")?.split_ascii_whitespace().nth(3)?.parse().ok()?,
            capabilities: u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?,
        })
    }

    /// Whether it has the capability.
    pub fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_told_is_looked_up() {
        let told = Identity::of(&Caller { uid: 1000, ..Caller::default() });
        assert_eq!(told, Some(Identity { uid: 1000, capabilities: 0 }));
        assert!(Identity::of(&Caller::default()).is_some_and(|root| root.has(CAP_FOWNER)));
        let not_told = |pid| Caller { uid: UID_NOT_TOLD, pid, ..Caller::default() };
        assert_eq!(Identity::of(&not_told(0)), None, "nobody has this id");
        // SAFETY: no arguments, can't fail.
        let ours = unsafe { libc::geteuid() };
        assert_eq!(Identity::of(&not_told(std::process::id())).map(|found| found.uid), Some(ours));
    }

    #[test]
    fn the_filesystem_uid_and_the_effective_capabilities_count() {
        let status = "Name:\tx y\nUid:\t1\t2\t3\t4\nCapPrm:\tffff\nCapEff:\t0000000000200008\n";
        let found = Identity::parse(status).unwrap();
        assert_eq!(found.uid, 4);
        assert!(found.has(CAP_FOWNER) && found.has(CAP_SYS_ADMIN) && !found.has(1));
        assert_eq!(Identity::parse("Uid:\t1\t2\t3\n"), None);
    }
}
