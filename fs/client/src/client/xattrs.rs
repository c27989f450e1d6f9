//! Extended attributes.

use atoll_core::commands::{Op, XattrMode};
use atoll_core::error::FsError;
use atoll_core::ids::InodeId;
use atoll_core::limits::XATTR_NAME_BYTES_MAX;
use atoll_proto::metadata::{Answer, Query};
use bytes::Bytes;

use super::identity::{CAP_SYS_ADMIN, Identity};
use super::{Client, inode_of, unexpected};
use crate::metadata::Metadata;
use crate::vfs::{Caller, Errno, Result};

/// Namespaces that are kept. Who may use which is the kernel's business. (`system.` would be access control
/// lists, which nobody here would enforce.)
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

fn check(name: &[u8]) -> Result<()> {
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno(libc::ERANGE));
    }
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some([]) => Err(FsError::InvalidArgument.into()),
        Some(_) => Ok(()),
        None => Err(FsError::Unsupported.into()),
    }
}

/// Whether the caller may see `trusted.` names. Who can't be found sees them: it is the values that are protected,
/// by the kernel.
fn sees_trusted(caller: &Caller) -> bool {
    Identity::of(caller).is_none_or(|identity| identity.has(CAP_SYS_ADMIN))
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
    pub(super) async fn set_xattr(&self, ino: InodeId, name: Bytes, value: Bytes, flags: u32) -> Result<()> {
        check(&name)?;
        let mode = match flags as i32 {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(FsError::InvalidArgument.into()),
        };
        let outcome = self.metadata.mutate(Op::SetXattr { ino, name, value, mode }).await?;
        self.changed(&inode_of(outcome)?);
        Ok(())
    }

    pub(super) async fn xattr(&self, ino: InodeId, name: Bytes) -> Result<Bytes> {
        check(&name)?;
        match self.metadata.ask(Query::GetXattr { ino, name }).await? {
            Answer::Bytes(value) => Ok(value),
            _ => Err(unexpected().into()),
        }
    }

    pub(super) async fn xattr_names(&self, caller: &Caller, ino: InodeId) -> Result<Bytes> {
        match self.metadata.ask(Query::ListXattr { ino }).await? {
            Answer::Bytes(names) => Ok(visible(names, || sees_trusted(caller))),
            _ => Err(unexpected().into()),
        }
    }

    pub(super) async fn remove_xattr(&self, ino: InodeId, name: Bytes) -> Result<()> {
        check(&name)?;
        let outcome = self.metadata.mutate(Op::RemoveXattr { ino, name }).await?;
        self.changed(&inode_of(outcome)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_that_mean_something_here_are_kept() {
        for name in ["user.x", "trusted.overlay.opaque", "security.capability"] {
            assert_eq!(check(name.as_bytes()), Ok(()), "{name}");
        }
        for name in ["system.posix_acl_access", "system.posix_acl_default", "user", "os2.x", ""] {
            assert_eq!(check(name.as_bytes()), Err(Errno(libc::EOPNOTSUPP)), "{name}");
        }
        assert_eq!(check(b"user."), Err(Errno(libc::EINVAL)));
        let long = format!("user.{}", "x".repeat(251));
        assert_eq!(check(long.as_bytes()), Err(Errno(libc::ERANGE)));
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
