//! Volume capabilities: what a volume is to be used for, parsed from the request.

use crate::csi::VolumeCapability;
use crate::csi::volume_capability::access_mode::Mode;
use crate::csi::volume_capability::{AccessType, MountVolume};
use crate::error::CsiError;
use crate::mount_flags::MountFlags;

/// Who may use a volume at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// One place on one node (RWOP, and RWO as callers without the newer modes say it).
    SingleWriter,
    /// One node, which only reads.
    SingleReader,
    /// Any number of places on one node (RWO).
    SingleNode,
    /// Any number of nodes (ROX, RWX, and one writer among them).
    MultiNode,
}

/// What a volume is to be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Who may use it.
    pub access: Access,
    /// How it is mounted.
    pub flags: MountFlags,
    mode: Mode,
}

impl Capability {
    /// Parses one.
    ///
    /// # Errors
    /// [`CsiError::Missing`] and [`CsiError::Invalid`]: blocks, other filesystems, unknown modes and flags.
    pub fn parse(capability: Option<&VolumeCapability>) -> Result<Capability, CsiError> {
        let capability = capability.ok_or(CsiError::Missing("volume_capability"))?;
        let mount = match &capability.access_type {
            Some(AccessType::Mount(mount)) => mount,
            Some(AccessType::Block(_)) => {
                return Err(CsiError::Invalid(
                    "block volumes are not supported: use volumeMode Filesystem".to_owned(),
                ));
            }
            None => return Err(CsiError::Missing("volume_capability.access_type")),
        };
        let MountVolume { fs_type, mount_flags, volume_mount_group } = mount;
        if !fs_type.is_empty() && fs_type != "atoll" {
            return Err(CsiError::Invalid(format!(
                "filesystem type '{fs_type}' can't be chosen: leave csi.storage.k8s.io/fstype out"
            )));
        }
        if !volume_mount_group.is_empty() {
            return Err(CsiError::Invalid("volume_mount_group is not supported: use fsGroup".to_owned()));
        }
        let mode = capability.access_mode.ok_or(CsiError::Missing("volume_capability.access_mode"))?.mode;
        let mode = Mode::try_from(mode)
            .map_err(|_| CsiError::Invalid(format!("access mode {mode} is not known to this version")))?;
        let mut flags = MountFlags::parse(mount_flags)?;
        flags.read_only |= matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly);
        Ok(Capability { access: access(mode)?, flags, mode })
    }

    /// Parses the capabilities of a volume that is to be made.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and if it is missing.
    pub fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Capability>, CsiError> {
        if capabilities.is_empty() {
            return Err(CsiError::Missing("volume_capabilities"));
        }
        capabilities.iter().map(|capability| Capability::parse(Some(capability))).collect()
    }

    /// The access mode's name in the specification.
    #[must_use]
    pub fn mode_name(&self) -> &'static str {
        self.mode.as_str_name()
    }
}

/// Whether a volume for these uses belongs to one node at a time.
#[must_use]
pub fn exclusive(capabilities: &[Capability]) -> bool {
    capabilities.iter().all(|capability| capability.access != Access::MultiNode)
}

fn access(mode: Mode) -> Result<Access, CsiError> {
    match mode {
        Mode::Unknown => Err(CsiError::Missing("volume_capability.access_mode.mode")),
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter => Ok(Access::SingleWriter),
        Mode::SingleNodeReaderOnly => Ok(Access::SingleReader),
        Mode::SingleNodeMultiWriter => Ok(Access::SingleNode),
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
            Ok(Access::MultiNode)
        }
    }
}

#[cfg(test)]
pub mod testing {
    //! Requests for tests.

    use super::*;
    use crate::csi::volume_capability::AccessMode;

    /// A capability as callers send it.
    pub fn capability(mode: Mode, flags: &[&str]) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
                ..MountVolume::default()
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::capability;
    use super::*;
    use crate::csi::volume_capability::BlockVolume;

    #[test]
    fn every_access_mode_is_taken_and_one_node_s_modes_make_an_exclusive_volume() {
        for (mode, access) in [
            (Mode::SingleNodeWriter, Access::SingleWriter),
            (Mode::SingleNodeSingleWriter, Access::SingleWriter),
            (Mode::SingleNodeReaderOnly, Access::SingleReader),
            (Mode::SingleNodeMultiWriter, Access::SingleNode),
            (Mode::MultiNodeReaderOnly, Access::MultiNode),
            (Mode::MultiNodeSingleWriter, Access::MultiNode),
            (Mode::MultiNodeMultiWriter, Access::MultiNode),
        ] {
            let parsed = Capability::parse(Some(&capability(mode, &[]))).unwrap();
            assert_eq!(parsed.access, access, "{mode:?}");
            let reads = matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly);
            assert_eq!(parsed.flags.read_only, reads, "{mode:?}");
            assert_eq!(exclusive(&[parsed]), access != Access::MultiNode);
        }
        let both = [Mode::SingleNodeWriter, Mode::MultiNodeMultiWriter].map(|mode| capability(mode, &[]));
        assert!(!exclusive(&Capability::parse_all(&both).unwrap()));
    }

    #[test]
    fn what_is_not_offered_is_refused_with_a_word_that_helps() {
        let mut block = capability(Mode::SingleNodeWriter, &[]);
        block.access_type = Some(AccessType::Block(BlockVolume {}));
        let mut ext4 = capability(Mode::SingleNodeWriter, &[]);
        ext4.access_type =
            Some(AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..Default::default() }));
        let mut group = capability(Mode::SingleNodeWriter, &[]);
        group.access_type =
            Some(AccessType::Mount(MountVolume { volume_mount_group: "7".into(), ..Default::default() }));
        for (wrong, word) in [
            (&block, "volumeMode"),
            (&ext4, "ext4"),
            (&group, "fsGroup"),
            (&capability(Mode::SingleNodeWriter, &["sync"]), "sync"),
        ] {
            let error = Capability::parse(Some(wrong)).unwrap_err();
            assert!(matches!(&error, CsiError::Invalid(text) if text.contains(word)), "{error}");
        }
        let missing = [
            None,
            Some(VolumeCapability { access_type: None, ..capability(Mode::SingleNodeWriter, &[]) }),
            Some(VolumeCapability { access_mode: None, ..capability(Mode::SingleNodeWriter, &[]) }),
            Some(capability(Mode::Unknown, &[])),
        ];
        for missing in missing {
            assert!(matches!(Capability::parse(missing.as_ref()), Err(CsiError::Missing(_))), "{missing:?}");
        }
        assert!(matches!(Capability::parse_all(&[]), Err(CsiError::Missing("volume_capabilities"))));
    }
}
