//! What a client may do with an inode without asking: the one place that says so.
//!
//! A volume for one machine (`bootstrap --exclusive`) belongs to one session: while that is valid nobody else can change
//! anything, so everything is this client's to keep. On a volume that others mount, too, nothing is.

use std::time::Duration;

use atoll_core::ids::InodeId;
use atoll_core::records::VolumeConfig;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Others may change it at any moment.
    None,
    /// Nobody else can change it for so long.
    Exclusive(Duration),
}

/// The right to an inode; `valid_for`: so long the session is valid for sure.
#[must_use]
pub fn of(config: &VolumeConfig, valid_for: Duration, _ino: InodeId) -> Right {
    match config.exclusive && !valid_for.is_zero() {
        true => Right::Exclusive(valid_for),
        false => Right::None,
    }
}

impl Right {
    /// For how long something may be kept.
    #[must_use]
    pub fn keep_for(self) -> Duration {
        match self {
            Right::None => Duration::ZERO,
            Right::Exclusive(valid_for) => valid_for,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_else_can_change_is_kept_and_only_for_so_long() {
        let (shared, exclusive) =
            (VolumeConfig::default(), VolumeConfig { exclusive: true, ..VolumeConfig::default() });
        let second = Duration::from_secs(1);
        assert_eq!(of(&shared, second, InodeId(2)).keep_for(), Duration::ZERO);
        assert_eq!(of(&exclusive, second, InodeId(2)), Right::Exclusive(second));
        assert_eq!(of(&exclusive, second, InodeId(2)).keep_for(), second);
        assert_eq!(of(&exclusive, Duration::ZERO, InodeId(2)), Right::None);
    }
}
