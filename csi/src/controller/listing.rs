//! Volumes as the specification shows them, and lists of them, page by page. Pure.

use atoll_crds::names::VolumeHandle;
use atoll_crds::v1alpha1::FileSystemCluster;

use crate::csi::Volume;
use crate::error::{CsiError, Pending};

/// What a token begins with; the name of the last volume that was listed follows.
const TOKEN_PREFIX: &str = "after:";

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    entries_max: usize,
    after: Option<String>,
}

/// A page of a list, and the token of the next page; empty at the end of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The entries.
    pub entries: Vec<T>,
    /// What to ask for next.
    pub next_token: String,
}

impl PageRequest {
    /// Parses the fields of a request.
    ///
    /// # Errors
    /// [`CsiError::Invalid`] for a negative number. For a token that none of our lists ended with, [`Pending::Restart`]: it tells
    /// the caller to begin again.
    pub fn parse(max_entries: i32, starting_token: &str) -> Result<PageRequest, CsiError> {
        let entries_max = usize::try_from(max_entries)
            .map_err(|_| CsiError::Invalid(format!("max_entries {max_entries} is negative")))?;
        let after = match starting_token {
            "" => None,
            token => {
                Some(token.strip_prefix(TOKEN_PREFIX).filter(|name| !name.is_empty()).ok_or_else(|| {
                    Pending::Restart(format!(
                        "starting_token '{token}' is not one of this driver: list from the beginning"
                    ))
                })?)
            }
        };
        Ok(PageRequest {
            entries_max: if entries_max == 0 { usize::MAX } else { entries_max },
            after: after.map(str::to_owned),
        })
    }

    /// This part of all entries, which have names. Volumes that come and go meanwhile move no other one into a page or out of it.
    #[must_use]
    pub fn of<T>(&self, entries: impl IntoIterator<Item = (String, T)>) -> Page<T> {
        let mut rest: Vec<(String, T)> = entries
            .into_iter()
            .filter(|(name, _)| self.after.as_ref().is_none_or(|after| name > after))
            .collect();
        rest.sort_by(|(a, _), (b, _)| a.cmp(b));
        let next_token = match rest.len() > self.entries_max {
            true => format!("{TOKEN_PREFIX}{}", rest[self.entries_max - 1].0),
            false => String::new(),
        };
        rest.truncate(self.entries_max);
        Page { entries: rest.into_iter().map(|(_, entry)| entry).collect(), next_token }
    }
}

/// Whether a cluster is a volume yet: one that has no id has never been made, and may not come to be.
#[must_use]
pub fn is_volume(cluster: &FileSystemCluster) -> bool {
    cluster.cluster_id().is_some()
}

/// The volume that a cluster is.
#[must_use]
pub fn volume(handle: &VolumeHandle, cluster: &FileSystemCluster) -> Volume {
    let reported = cluster.status.as_ref().and_then(|status| status.capacity.as_ref()?.bytes().ok());
    let bytes = reported.or_else(|| cluster.spec.capacity.bytes().ok()).unwrap_or_default();
    Volume {
        volume_id: handle.to_string(),
        capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        ..Volume::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(max: i32, token: &str, names: &[&'static str]) -> Page<&'static str> {
        PageRequest::parse(max, token).unwrap().of(names.iter().map(|name| ((*name).to_owned(), *name)))
    }

    #[test]
    fn pages_hold_each_volume_once_whatever_comes_and_goes() {
        let all = page(0, "", &["c", "a", "b"]);
        assert_eq!((all.entries, all.next_token.as_str()), (vec!["a", "b", "c"], ""));
        let first = page(2, "", &["c", "a", "b"]);
        assert_eq!(first.entries, ["a", "b"]);
        // The last one of the page is deleted, and one is made that sorts before it.
        let second = page(2, &first.next_token, &["aa", "c", "d"]);
        assert_eq!((second.entries, second.next_token.as_str()), (vec!["c", "d"], ""));
        assert!(page(2, &first.next_token, &[]).entries.is_empty());
    }

    #[test]
    fn a_token_of_somebody_else_is_told_to_begin_again() {
        for foreign in ["invalid-token", "after:", "17"] {
            let error = PageRequest::parse(0, foreign).unwrap_err();
            assert_eq!(error.code(), tonic::Code::Aborted, "{foreign}: {error}");
        }
        assert!(matches!(PageRequest::parse(-1, ""), Err(CsiError::Invalid(_))));
    }
}
