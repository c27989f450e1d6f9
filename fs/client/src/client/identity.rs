//! Who a caller is, where the kernel doesn't say: one that maps ids for user namespaces tells the caller's uid
//! only with requests that make something. It has checked all permissions already; this is for the few rules
//! that it leaves to the filesystem.

use std::time::Duration;

use atoll_core::attributes::{Attributes, KillPriv, S_ISGID, S_IXGRP};

use crate::vfs::Caller;

/// The uid with which requests come whose caller's uid isn't told.
const UID_NOT_TOLD: u32 = u32::MAX;
/// Bit of `CAP_FOWNER` in a capability set.
pub const CAP_FOWNER: u64 = 1 << 3;
/// Bit of `CAP_FSETID`.
pub const CAP_FSETID: u64 = 1 << 4;
/// Bit of `CAP_SYS_ADMIN`.
pub const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The pause before another look at a caller that hasn't fallen asleep yet.
const AWAKE_PAUSE: Duration = Duration::from_micros(200);
/// Looks at such a caller.
const LOOKS_MAX: u32 = 20;

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

/// The system call that a thread waits in, as /proc shows it: its number and its arguments. Empty if that can't be found
/// out. The thread may still be on its way to sleep when its request is here already, and then it shows nothing.
pub async fn system_call(thread: u32) -> String {
    for _ in 0..LOOKS_MAX {
        match std::fs::read_to_string(format!("/proc/{thread}/syscall")) {
            Ok(line) if line.starts_with("running") => tokio::time::sleep(AWAKE_PAUSE).await,
            Ok(line) => return line,
            Err(_) => break,
        }
    }
    String::new()
}

/// Whether a thread is in chown(2) or one of its kind; `false` if that can't be found out.
pub async fn is_changing_owner(thread: u32) -> bool {
    #[cfg(target_arch = "x86_64")]
    const CALLS: [libc::c_long; 4] =
        [libc::SYS_chown, libc::SYS_fchown, libc::SYS_lchown, libc::SYS_fchownat];
    #[cfg(not(target_arch = "x86_64"))]
    const CALLS: [libc::c_long; 2] = [libc::SYS_fchown, libc::SYS_fchownat];
    let line = system_call(thread).await;
    let number = line.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
    number.is_some_and(|number: libc::c_long| CALLS.contains(&number))
}

/// What a file loses when the caller changes its content. `loses_setid`: the kernel says, or it is known, that the caller
/// has no `CAP_FSETID`.
pub fn killed_by_content(caller: &Caller, loses_setid: bool, attributes: Option<&Attributes>) -> KillPriv {
    match loses_setid {
        true => KillPriv::CAPABILITY | KillPriv::SETID | killed_by_group(caller, attributes),
        false => KillPriv::CAPABILITY,
    }
}

/// Set-group-id on a file that its group may not execute stays only for the group's members.
pub fn killed_by_group(caller: &Caller, attributes: Option<&Attributes>) -> KillPriv {
    let outside = attributes
        .is_some_and(|file| file.mode & (S_ISGID | S_IXGRP) == S_ISGID && !is_in_group(caller, file.gid));
    if outside { KillPriv::SGID } else { KillPriv::NONE }
}

/// Whether the caller is in the group; `false` if that can't be found out.
fn is_in_group(caller: &Caller, gid: u32) -> bool {
    let told = caller.uid != UID_NOT_TOLD && caller.gid == gid;
    told || std::fs::read_to_string(format!("/proc/{}/status", caller.pid))
        .is_ok_and(|status| has_group(&status, gid))
}

fn has_group(status: &str, gid: u32) -> bool {
    let ids = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_ascii_whitespace().map(str::parse::<u32>)
    };
    // Real, effective, saved, filesystem.
    ids("Gid:").nth(3) == Some(Ok(gid)) || ids("Groups:").any(|group| group == Ok(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filesystem_gid_and_the_further_groups_count() {
        let status = "Name:\tGid: 9\nGid:\t1\t2\t3\t4\nGroups:\t7 70 \nNStgid:\t8\n";
        let found: Vec<u32> = (0..=80).filter(|gid| has_group(status, *gid)).collect();
        assert_eq!(found, [4, 7, 70]);
        assert!(!has_group("Groups:\t\n", 0));
    }

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
