//! Volume handles as requests carry them, and the names of the clusters that are made for volumes.

use std::hash::Hasher;

use atoll_crds::names::{self, VolumeHandle};
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::error::CsiError;

/// Bytes of a text field at most, by the specification.
pub const FIELD_BYTES_MAX: usize = 128;
/// First letter of the names that are a hash: no PV that external-provisioner names is called so.
const HASHED_PREFIX: &str = "v-";

/// The volume that a request names.
///
/// # Errors
/// [`CsiError::Missing`] if it names none; [`CsiError::NotFound`] if the name isn't one that we give.
pub fn parse(text: &str) -> Result<VolumeHandle, CsiError> {
    if text.is_empty() {
        return Err(CsiError::Missing("volume_id"));
    }
    text.parse().map_err(|error| CsiError::NotFound(format!("{error}")))
}

/// A volume's name as it was asked for: any text without control characters.
///
/// # Errors
/// If it is none.
pub fn volume_name(text: &str) -> Result<&str, CsiError> {
    if text.is_empty() {
        return Err(CsiError::Missing("name"));
    }
    if text.len() > FIELD_BYTES_MAX {
        return Err(CsiError::Invalid(format!("the name has more than {FIELD_BYTES_MAX} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(CsiError::Invalid("the name has a control character".to_owned()));
    }
    Ok(text)
}

/// The cluster's name for a volume's: the same where it can be one (external-provisioner's `pvc-<uid>` is), or else a hash
/// of it. Who finds a cluster of that name compares the volume's name that it was made for.
#[must_use]
pub fn cluster_name(volume: &str) -> String {
    if names::is_cluster_name(volume) && !volume.starts_with(HASHED_PREFIX) {
        return volume.to_owned();
    }
    format!("{HASHED_PREFIX}{:032x}", hash([volume]))
}

/// A hash of texts in order, the same in every version of this program.
pub fn hash<'a>(texts: impl IntoIterator<Item = &'a str>) -> u128 {
    let mut hasher = SipHasher24::new_with_keys(0x6174_6f6c_6c63_7369, 1);
    for text in texts {
        hasher.write_u64(text.len() as u64);
        hasher.write(text.as_bytes());
    }
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_may_be_asked_for_becomes_one_that_a_cluster_may_have() {
        let provisioners = format!("pvc-{}", "a".repeat(36));
        assert_eq!(cluster_name(&provisioners), provisioners);
        for odd in [
            "sanity",
            "CreateVolume-ABCDEF",
            "a name with blanks/and slashes",
            "🐚",
            &"x".repeat(128),
            "1a",
            "a.b",
            "v-",
            "v-0123",
        ] {
            let name = cluster_name(volume_name(odd).unwrap());
            assert!(names::is_cluster_name(&name), "{odd}: {name}");
            assert_eq!(name, cluster_name(odd));
        }
        assert_ne!(cluster_name("A"), cluster_name("B"));
        // A volume can't be called like the hash of another one.
        assert_ne!(cluster_name(&cluster_name("A")), cluster_name("A"));
    }

    #[test]
    fn names_that_the_specification_forbids_are_refused() {
        for (name, missing) in [("", true), ("a\nb", false), ("\u{7f}", false), (&*"x".repeat(129), false)] {
            let error = volume_name(name).unwrap_err();
            assert_eq!(matches!(error, CsiError::Missing(_)), missing, "{error}");
        }
    }

    #[test]
    fn an_id_that_is_not_ours_is_unknown_and_not_invalid() {
        assert!(matches!(parse(""), Err(CsiError::Missing("volume_id"))));
        for foreign in ["fake-vol-id-1", "v1/a/b/c", "reallyfakevolumeid"] {
            assert!(matches!(parse(foreign), Err(CsiError::NotFound(_))), "{foreign}");
        }
        assert_eq!(parse("v1/atoll-volumes/pvc-1").unwrap().name(), "pvc-1");
    }

    #[test]
    fn the_hash_is_fixed() {
        assert_eq!(format!("{:032x}", hash(["sanity"])).len(), 32);
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
        // It is in objects that outlive this version.
        assert_eq!(cluster_name("Sanity"), format!("v-{:032x}", hash(["Sanity"])));
    }
}
