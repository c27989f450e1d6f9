//! Versions: which of two is the later one, and whether servers of both understand each other. Pure.

use std::cmp::Ordering;

/// A version as `MAJOR.MINOR.PATCH`, with what may follow it (`-rc.1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    major: u64,
    minor: u64,
    patch: u64,
    /// A build before the release itself; releases have none.
    pre: Option<String>,
}

impl Version {
    /// Reads it; `None` if it is none of this form, and so has no order.
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.split('+').next()?;
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre.to_owned())),
            None => (text, None),
        };
        let mut parts = numbers.split('.').map(|part| part.parse::<u64>().ok());
        let version = Version { major: parts.next()??, minor: parts.next()??, patch: parts.next()??, pre };
        parts.next().is_none().then_some(version)
    }

    fn order(&self, other: &Version) -> Ordering {
        let numbers = |version: &Version| (version.major, version.minor, version.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| match (&self.pre, &other.pre) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(one), Some(other)) => one.cmp(other),
        })
    }
}

/// Which of two is the later one; `None`: nobody can tell.
pub fn compare(one: &str, other: &str) -> Option<Ordering> {
    if one == other {
        return Some(Ordering::Equal);
    }
    Some(Version::parse(one)?.order(&Version::parse(other)?))
}

/// The first is known to be later than the second.
pub fn is_later(one: &str, other: &str) -> bool {
    compare(one, other) == Some(Ordering::Greater)
}

/// Of an earlier release than `floor`: patches of one release read the same disks.
pub fn is_of_earlier_release(version: &str, floor: &str) -> bool {
    match (Version::parse(version), Version::parse(floor)) {
        (Some(version), Some(floor)) => (version.major, version.minor) < (floor.major, floor.minor),
        _ => false,
    }
}

/// There is a release between the two: each understands one release more and one less.
pub fn skips_a_release(one: &str, other: &str) -> bool {
    match (Version::parse(one), Version::parse(other)) {
        (Some(one), Some(other)) if one.major == other.major => one.minor.abs_diff(other.minor) > 1,
        (Some(one), Some(other)) => one.major.abs_diff(other.major) > 1,
        _ => false,
    }
}

/// The oldest of several; those that have no order come last.
pub fn oldest<'a>(versions: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    versions.into_iter().reduce(|oldest, found| match (Version::parse(oldest), Version::parse(found)) {
        (Some(one), Some(other)) if other.order(&one) == Ordering::Less => found,
        (None, Some(_)) => found,
        _ => oldest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(is_later("0.10.0", "0.9.9") && is_later("1.0.0", "0.99.0") && is_later("0.1.1", "0.1.0"));
        assert!(is_later("0.2.0", "0.2.0-rc.1") && !is_later("0.2.0-rc.1", "0.2.0"));
        assert!(
            !is_later("0.1.0", "0.1.0") && !is_later("nightly", "0.1.0") && !is_later("0.1.0", "nightly")
        );
        assert_eq!(compare("nightly", "nightly"), Some(Ordering::Equal));
        for wrong in ["", "1", "1.2", "1.2.3.4", "v1.2.3", "1.x.3"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
        assert_eq!(oldest(["0.2.0", "nightly", "0.1.5", "0.1.10"]), Some("0.1.5"));
        assert_eq!(oldest(["nightly", "0.2.0"]), Some("0.2.0"));
        assert_eq!(oldest([]), None);
    }

    #[test]
    fn a_release_understands_the_ones_beside_it() {
        assert!(!skips_a_release("0.1.0", "0.2.7") && !skips_a_release("0.2.0", "0.1.0"));
        assert!(skips_a_release("0.1.0", "0.3.0") && skips_a_release("0.3.0", "0.1.9"));
        assert!(!skips_a_release("0.9.0", "1.0.0") && skips_a_release("1.0.0", "3.0.0"));
        assert!(is_of_earlier_release("0.1.9", "0.2.0") && !is_of_earlier_release("0.2.0", "0.2.5"));
        assert!(!is_of_earlier_release("nightly", "0.2.5"));
    }
}
