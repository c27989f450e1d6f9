//! Extended attributes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use atoll_core::acl::{ACCESS_NAME, DEFAULT_NAME};
use atoll_core::attributes::{Attributes, CAPABILITY_NAME, KillPriv};
use atoll_core::commands::{XattrMode, ops};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::limits::XATTR_NAME_BYTES_MAX;
use atoll_proto::queries;
use bytes::Bytes;
use parking_lot::Mutex;

use super::Client;
use super::identity::{CAP_SYS_ADMIN, Identity, is_changing_owner};
use crate::metadata::{ClientError, Metadata};
use crate::rights::Right;
use crate::vfs::{Caller, Errno, Result};

/// For how long the kernel's next question is taken to belong to attributes that it was told of.
const ACL_MEMORY: Duration = Duration::from_millis(50);
/// Inodes that are remembered.
const ACL_MEMORY_MAX: usize = 4096;

/// Whether inodes have access control lists, as the attributes said that the kernel was told of last. Before each
/// check of permissions the kernel asks for attributes and then for the list; the second question is answered from
/// here if there is none. Attributes and list are as of the same moment then, which is as good as it gets.
#[derive(Default)]
pub struct AclMemory(Mutex<HashMap<InodeId, (bool, Instant)>>);

impl AclMemory {
    /// The kernel is told these attributes.
    pub fn told(&self, attributes: &Attributes) {
        let mut known = self.0.lock();
        if known.len() >= ACL_MEMORY_MAX {
            known.clear();
        }
        known.insert(attributes.ino, (attributes.acl, Instant::now()));
    }

    /// It was told just now that there is none.
    fn has_none(&self, ino: InodeId) -> bool {
        self.0.lock().get(&ino).is_some_and(|(acl, told)| !acl && told.elapsed() < ACL_MEMORY)
    }

    /// There may be one from now on.
    fn forget(&self, ino: InodeId) {
        self.0.lock().remove(&ino);
    }
}

/// Namespaces that are kept. Who may use which is the kernel's business.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", SECURITY];
const SECURITY: &[u8] = b"security.";

fn check(name: &[u8]) -> Result<()> {
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno(libc::ERANGE));
    }
    if is_acl(name) {
        return Ok(());
    }
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some([]) => Err(FsError::InvalidArgument.into()),
        Some(_) => Ok(()),
        None => Err(FsError::Unsupported.into()),
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == ACCESS_NAME || name == DEFAULT_NAME
}

/// Whether the caller may see `trusted.` names. Who can't be found sees them: it is the values that are protected,
/// by the kernel.
fn sees_trusted(caller: &Caller) -> bool {
    Identity::of(caller).is_none_or(|identity| identity.has(CAP_SYS_ADMIN))
}

/// The names without one of them.
fn without(names: &[u8], name: &[u8]) -> Bytes {
    let others =
        names.split_inclusive(|byte| *byte == 0).filter(|shown| shown.strip_suffix(b"\0") != Some(name));
    others.collect::<Vec<_>>().concat().into()
}

/// The names without those that only the administrator sees.
fn visible(names: Bytes, is_privileged: impl FnOnce() -> bool) -> Bytes {
    let is_trusted = |name: &[u8]| name.starts_with(b"trusted.");
    if !names.split(|byte| *byte == 0).any(is_trusted) || is_privileged() {
        return names;
    }
    let mut shown = Vec::with_capacity(names.len());
    for name in names.split_inclusive(|byte| *byte == 0).filter(|name| !is_trusted(name)) {
        shown.extend_from_slice(name);
    }
    shown.into()
}

impl<M: Metadata> Client<M> {
    pub(super) async fn do_setxattr(
        &self,
        ino: InodeId,
        name: Bytes,
        value: Bytes,
        flags: u32,
        kill_sgid: bool,
    ) -> Result<()> {
        check(&name)?;
        if is_acl(&name) {
            return self.set_acl(ino, &name, Some(value), kill_sgid).await;
        }
        let mode = match flags as i32 {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(FsError::InvalidArgument.into()),
        };
        self.settle_for(ino, &name).await?;
        self.changed(&*self.metadata.mutate(ops::SetXattr { ino, name, value, mode }).await?);
        Ok(())
    }

    async fn set_acl(&self, ino: InodeId, name: &[u8], value: Option<Bytes>, kill_sgid: bool) -> Result<()> {
        // A commit of what was written before would clear bits again.
        self.settle(ino).await?;
        let op = ops::SetAcl { ino, default: name == DEFAULT_NAME, value, kill_sgid };
        self.acls.forget(ino);
        let changed = self.metadata.mutate(op).await?;
        self.acls.forget(ino);
        self.changed(&changed);
        Ok(())
    }

    pub(super) async fn do_getxattr(&self, ino: InodeId, name: Bytes) -> Result<Bytes> {
        check(&name)?;
        if name == ACCESS_NAME && self.acls.has_none(ino) {
            return Err(FsError::NoAttribute.into());
        }
        if name == CAPABILITY_NAME && self.is_about_to_lose_capability(ino) {
            return Err(FsError::NoAttribute.into());
        }
        // Asked before the first write to each file, too.
        if name.starts_with(SECURITY) && self.right(ino) != Right::None && self.described.is_bare(ino) {
            return Err(FsError::NoAttribute.into());
        }
        Ok(self.metadata.ask(queries::GetXattr { ino, name }).await?)
    }

    pub(super) async fn do_listxattr(&self, caller: &Caller, ino: InodeId) -> Result<Bytes> {
        let loses_capability = self.is_about_to_lose_capability(ino);
        let mut names = self.metadata.ask(queries::ListXattr { ino }).await?;
        if loses_capability {
            names = without(&names, CAPABILITY_NAME);
        }
        Ok(visible(names, || sees_trusted(caller)))
    }

    pub(super) async fn do_removexattr(&self, caller: &Caller, ino: InodeId, name: Bytes) -> Result<()> {
        check(&name)?;
        if is_acl(&name) {
            // As elsewhere, it is no error that there was none.
            return match self.set_acl(ino, &name, None, false).await {
                Err(error) if error == FsError::NoAttribute.into() => Ok(()),
                done => done,
            };
        }
        if name == CAPABILITY_NAME && is_changing_owner(caller.pid).await {
            // The kernel removes it before it asks for the change, and leaves it to that to be refused.
            self.chown_to_nobody(caller, ino).await?;
        }
        self.settle_for(ino, &name).await?;
        self.changed(&*self.metadata.mutate(ops::RemoveXattr { ino, name }).await?);
        Ok(())
    }

    /// What is buffered takes capabilities away when it is committed: that must not be those that are set after it was
    /// written.
    async fn settle_for(&self, ino: InodeId, name: &[u8]) -> std::result::Result<(), ClientError> {
        match name == CAPABILITY_NAME {
            true => self.settle(ino).await,
            false => Ok(()),
        }
    }

    /// Whether what is buffered takes capabilities away. To be asked before the service is: what is committed meanwhile
    /// has taken them away by then.
    fn is_about_to_lose_capability(&self, ino: InodeId) -> bool {
        self.data.kill_priv(ino).contains(KillPriv::CAPABILITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_that_mean_something_here_are_kept() {
        let acl = "system.posix_acl_access";
        for name in ["user.x", "trusted.overlay.opaque", "security.capability", acl] {
            assert_eq!(check(name.as_bytes()), Ok(()), "{name}");
        }
        for name in ["system.posix_acl_others", "system.", "user", "os2.x", ""] {
            assert_eq!(check(name.as_bytes()), Err(Errno(libc::EOPNOTSUPP)), "{name}");
        }
        assert_eq!(check(b"user."), Err(Errno(libc::EINVAL)));
        let long = format!("user.{}", "x".repeat(251));
        assert_eq!(check(long.as_bytes()), Err(Errno(libc::ERANGE)));
    }

    #[test]
    fn a_name_that_is_about_to_go_is_not_listed() {
        let names = b"user.a\0security.capability\0security.capability2\0";
        assert_eq!(without(names, CAPABILITY_NAME), &b"user.a\0security.capability2\0"[..]);
    }

    #[test]
    fn trusted_names_are_for_the_administrator() {
        let names = Bytes::from_static(b"user.a\0trusted.b\0user.trusted.c\0");
        assert_eq!(visible(names.clone(), || true), names);
        assert_eq!(visible(names, || false), Bytes::from_static(b"user.a\0user.trusted.c\0"));
        let others = Bytes::from_static(b"user.trusted.c\0");
        assert_eq!(visible(others.clone(), || panic!("nobody has to be looked at")), others);
    }
}
