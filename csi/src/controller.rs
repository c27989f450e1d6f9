//! The controller service: volumes come and go as FileSystemClusters. What to do is decided by pure functions
//! ([`judge`], [`removal`]); the handlers carry it out, and look again.

mod listing;
mod service;

use std::collections::{BTreeMap, HashMap};

use atoll_crds::names::{VolumeHandle, annotations, labels};
use atoll_crds::v1alpha1::cluster::{CAPACITY_BYTES_MAX, CAPACITY_BYTES_MIN};
use atoll_crds::v1alpha1::{Access, ConditionType, FileSystemCluster, Reason};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::access::{self, Capability};
use crate::csi::{CapacityRange, CreateVolumeRequest};
use crate::error::{CsiError, Pending};
use crate::params::Parameters;
use crate::volume_id;

pub use service::ControllerService;

/// What volumes' sizes are rounded down to (as `atoll_core::limits::BLOCK_BYTES`).
const BLOCK_BYTES: u64 = 4096;
/// The size of a volume whose request names none.
const CAPACITY_BYTES_DEFAULT: u64 = 10 << 30;

/// How long a new cluster may take to become ready (seconds).
const TIMEOUT_SECONDS: i64 = 900;
/// Reasons of the Ready condition that don't pass by waiting.
const HOPELESS: [Reason; 9] = [
    Reason::InvalidSpec,
    Reason::UnknownVersion,
    Reason::TooFewNodes,
    Reason::StorageClassMissing,
    Reason::StorageClassRefused,
    Reason::NameConflict,
    Reason::ForeignData,
    Reason::AdoptionRefused,
    Reason::ApiRefused,
];

/// Reasons of the ExpansionPending condition that don't pass by waiting.
const INFEASIBLE: [Reason; 2] = [Reason::ExpansionInfeasible, Reason::NotExpandable];

/// A parsed CreateVolume.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The cluster that shall be.
    pub cluster: FileSystemCluster,
    /// Its handle.
    pub handle: VolumeHandle,
    /// Its size.
    pub capacity_bytes: u64,
    volume_name: String,
    request_hash: String,
}

impl Wanted {
    /// Parses the request. Nothing has been looked at yet, so everything that can't ever be is refused here.
    ///
    /// # Errors
    /// [`CsiError::Missing`], [`CsiError::Invalid`] and [`CsiError::OutOfRange`].
    pub fn parse(request: &CreateVolumeRequest, namespace: &str) -> Result<Wanted, CsiError> {
        let volume_name = volume_id::volume_name(&request.name)?;
        let capabilities = Capability::parse_all(&request.volume_capabilities)?;
        let capacity_bytes = capacity(request.capacity_range.as_ref())?;
        let parameters = Parameters::parse(&request.parameters)?;
        if request.volume_content_source.is_some() {
            return Err(CsiError::Invalid(
                "volumes from snapshots or other volumes are not supported yet: leave dataSource out"
                    .to_owned(),
            ));
        }
        if let Some(name) = request.mutable_parameters.keys().next() {
            return Err(CsiError::Invalid(format!(
                "VolumeAttributesClass parameter '{name}': a class can't change volumes yet"
            )));
        }
        let name = volume_id::cluster_name(volume_name);
        let handle =
            VolumeHandle::new(namespace, &name).map_err(|error| CsiError::Internal(error.to_string()))?;
        let access = if access::exclusive(&capabilities) { Access::Exclusive } else { Access::Shared };
        // What StorageClass templates can name is the PV alone, so the key's Secret is called like it.
        let pv = parameters.origin.pv.clone().unwrap_or_else(|| volume_name.to_owned());
        let secret = Some(pv).filter(|name| is_secret_name(name));
        let request_hash = request_hash(capacity_bytes, access, &capabilities, &request.parameters);
        let mut cluster = FileSystemCluster::new(&name, parameters.spec(capacity_bytes, access, secret));
        let (mut label, mut annotation) = parameters.origin.marks();
        label.push((labels::NAME.to_owned(), labels::NAME_VALUE.to_owned()));
        label.push((labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_CSI.to_owned()));
        annotation.push((annotations::VOLUME_NAME.to_owned(), volume_name.to_owned()));
        annotation.push((annotations::REQUEST_HASH.to_owned(), request_hash.clone()));
        cluster.metadata.namespace = Some(namespace.to_owned());
        cluster.metadata.labels = Some(label.into_iter().collect());
        cluster.metadata.annotations = Some(annotation.into_iter().collect());
        Ok(Wanted { cluster, handle, capacity_bytes, volume_name: volume_name.to_owned(), request_hash })
    }
}

/// What CreateVolume does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It does not exist: create it.
    Make,
    /// It can be used: answer.
    Ready,
    /// It can't be used yet: look again, or tell this.
    Wait(Pending),
    /// It won't come to be by waiting, and holds no data: remove it, then tell this. Otherwise external-provisioner would
    /// ask for it for ever, also when the claim is long gone.
    GiveUp(String),
}

/// Compares what was found with what is wanted.
///
/// # Errors
/// [`CsiError::Exists`] if it is another volume's, or was made for another request. Nothing was begun for this one.
pub fn judge(found: Option<&FileSystemCluster>, wanted: &Wanted, now: Timestamp) -> Result<Step, CsiError> {
    let Some(found) = found else { return Ok(Step::Make) };
    let nothing = BTreeMap::new();
    let marks = found.metadata.annotations.as_ref().unwrap_or(&nothing);
    let mark = |name: &str| marks.get(name).map_or("", String::as_str);
    if mark(annotations::VOLUME_NAME) != wanted.volume_name {
        return Err(CsiError::Exists(format!(
            "FileSystemCluster {} exists and was not created for volume '{}'",
            found.name_str(),
            wanted.volume_name
        )));
    }
    if mark(annotations::REQUEST_HASH) != wanted.request_hash {
        return Err(CsiError::Exists(format!(
            "volume '{}' exists with another size, other capabilities or other parameters",
            wanted.volume_name
        )));
    }
    if found.is_terminating() {
        return Ok(Step::Wait(Pending::NotYet(format!(
            "an earlier volume named '{}' is being deleted: {}",
            wanted.volume_name,
            state(found)
        ))));
    }
    if found.is_ready() {
        return Ok(Step::Ready);
    }
    // What adopts disks may have data, too.
    let made = found.status.as_ref().is_some_and(|status| status.bootstrapped || status.adopted);
    if !made && is_hopeless(found, now) {
        return Ok(Step::GiveUp(format!("the volume can't be created: {}", state(found))));
    }
    Ok(Step::Wait(Pending::NotYet(format!("the volume's cluster is not ready yet: {}", state(found)))))
}

/// Whether a cluster that isn't ready won't be by waiting: it says so, or has taken too long.
fn is_hopeless(found: &FileSystemCluster, now: Timestamp) -> bool {
    let reason = found.condition(ConditionType::Ready).map_or("", |ready| ready.reason.as_str());
    let made = found.metadata.creation_timestamp.as_ref().map_or(now, |made| made.0);
    HOPELESS.iter().any(|hopeless| hopeless.as_str() == reason)
        || now.duration_since(made) > SignedDuration::from_secs(TIMEOUT_SECONDS)
}

/// What DeleteVolume does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// There is nothing any more.
    Gone,
    /// It has an id and no word that its data may go: give the word.
    Confirm {
        /// The cluster's id.
        id: String,
    },
    /// Ask for its end.
    Delete {
        /// Its uid, so that no later one of that name is meant.
        uid: String,
    },
    /// It is ending.
    Wait(Pending),
}

/// Decides about a cluster that has to go.
#[must_use]
pub fn removal(found: Option<&FileSystemCluster>) -> Removal {
    let Some(found) = found else { return Removal::Gone };
    let id = found.cluster_id();
    if let Some(id) = id.filter(|id| found.spec.deletion_confirmation.as_deref() != Some(*id)) {
        return Removal::Confirm { id: id.to_owned() };
    }
    if !found.is_terminating() {
        return Removal::Delete { uid: found.metadata.uid.clone().unwrap_or_default() };
    }
    Removal::Wait(Pending::NotYet(format!("the volume's cluster is being deleted: {}", state(found))))
}

/// What ControllerExpandVolume asks for: at least this many bytes, and at most that many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expansion {
    /// Bytes that the volume must have.
    pub required: u64,
    /// Bytes that it may have.
    pub limit: u64,
}

impl Expansion {
    /// Parses the request's range.
    ///
    /// # Errors
    /// [`CsiError::Missing`], [`CsiError::Invalid`] and [`CsiError::OutOfRange`].
    pub fn parse(range: Option<&CapacityRange>) -> Result<Expansion, CsiError> {
        let Some(range) = range.filter(|range| (range.required_bytes, range.limit_bytes) != (0, 0)) else {
            return Err(CsiError::Missing("capacity_range"));
        };
        let required = capacity(Some(range))?;
        let limit = u64::try_from(range.limit_bytes).ok().filter(|limit| *limit > 0).unwrap_or(u64::MAX);
        // Without a required size, what there is is enough.
        let required = if range.required_bytes == 0 { 0 } else { required };
        Ok(Expansion { required, limit })
    }
}

/// What ControllerExpandVolume does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Growth {
    /// The volume has this many bytes, which is enough: answer.
    Done(u64),
    /// Have the cluster ask for so many bytes.
    Ask(u64),
    /// It grows: look again, or tell this.
    Wait(Pending),
}

/// Compares what a cluster has with what its volume shall have. A volume never gets smaller by this; a size that was asked for
/// in vain is taken back.
///
/// # Errors
/// [`CsiError::OutOfRange`] if it can't grow so far, so that its claim may ask for less.
pub fn growth(found: &FileSystemCluster, expansion: Expansion) -> Result<Growth, CsiError> {
    if found.is_terminating() {
        let message = format!("the volume's cluster is being deleted: {}", state(found));
        return Ok(Growth::Wait(Pending::NotYet(message)));
    }
    let has = found.status.as_ref().and_then(|status| status.capacity.as_ref()?.bytes().ok());
    let Some(has) = has else {
        let message = format!("the volume's cluster has not reported its size yet: {}", state(found));
        return Ok(Growth::Wait(Pending::NotYet(message)));
    };
    if has > expansion.limit {
        return Err(CsiError::OutOfRange(format!(
            "the volume has {has} bytes, more than the {} that were named as the limit, and can't be made smaller",
            expansion.limit
        )));
    }
    let asks = found.spec.capacity.bytes().unwrap_or(has);
    let pending = found.condition(ConditionType::ExpansionPending).filter(|pending| {
        pending.status == "True"
            && (pending.observed_generation.is_none()
                || pending.observed_generation >= found.metadata.generation)
    });
    let infeasible =
        pending.is_some_and(|pending| INFEASIBLE.iter().any(|reason| reason.as_str() == pending.reason));
    if is_block_short(has, expansion.required) {
        return Ok(if infeasible && asks > has {
            Growth::Ask(has)
        } else {
            Growth::Done(has.max(expansion.required))
        });
    }
    if asks != expansion.required {
        return Ok(Growth::Ask(expansion.required));
    }
    let words =
        pending.map_or_else(|| state(found), |pending| format!("{} ({})", pending.message, pending.reason));
    if infeasible {
        return Err(CsiError::OutOfRange(format!(
            "the volume can't have {} bytes: {words}",
            expansion.required
        )));
    }
    Ok(Growth::Wait(Pending::NotYet(format!("the volume is being expanded: {words}"))))
}

/// Volumes have whole blocks: one that was asked for less than a block more than that has what was asked for.
fn is_block_short(has: u64, required: u64) -> bool {
    required.saturating_sub(has) < BLOCK_BYTES
}

/// The Ready condition in words: what the user sees as an event on the PVC.
fn state(found: &FileSystemCluster) -> String {
    match found.condition(ConditionType::Ready) {
        Some(ready) if !ready.message.is_empty() => format!("{} ({})", ready.message, ready.reason),
        Some(ready) if !ready.reason.is_empty() => ready.reason.clone(),
        _ => "the operator has not reported its status yet (does atoll-operator run in atoll-system?)"
            .to_owned(),
    }
}

/// Whether a volume can be used like this; the text says why not.
#[must_use]
pub fn unfit(found: &FileSystemCluster, capabilities: &[Capability]) -> Option<String> {
    (found.spec.access == Access::Exclusive && !access::exclusive(capabilities)).then(|| {
        "the volume was created for one node at a time (access: Exclusive) and can't be used by several"
            .to_owned()
    })
}

/// The size to make, in bytes.
fn capacity(range: Option<&CapacityRange>) -> Result<u64, CsiError> {
    let range = range.copied().unwrap_or_default();
    let parse = |bytes: i64, what: &str| {
        u64::try_from(bytes).map_err(|_| CsiError::Invalid(format!("capacity_range.{what} is negative")))
    };
    let required = parse(range.required_bytes, "required_bytes")?;
    let limit = match parse(range.limit_bytes, "limit_bytes")? {
        0 => u64::MAX,
        limit => limit,
    };
    if limit < required {
        return Err(CsiError::Invalid("capacity_range: the limit is below the required size".to_owned()));
    }
    if limit < CAPACITY_BYTES_MIN {
        return Err(CsiError::OutOfRange(format!(
            "a volume of at most {limit} bytes is too small: the minimum is 16Mi"
        )));
    }
    if required > CAPACITY_BYTES_MAX {
        return Err(CsiError::OutOfRange(format!(
            "a volume of {required} bytes is too large: the maximum is 1Ei"
        )));
    }
    let wanted = if required == 0 { CAPACITY_BYTES_DEFAULT.min(limit) } else { required };
    Ok(wanted.max(CAPACITY_BYTES_MIN))
}

/// A hash of everything in the request that makes another volume of it.
fn request_hash(
    capacity_bytes: u64,
    access: Access,
    capabilities: &[Capability],
    parameters: &HashMap<String, String>,
) -> String {
    let mut texts = vec!["1".to_owned(), capacity_bytes.to_string(), format!("{access:?}")];
    let mut modes: Vec<&str> = capabilities.iter().map(Capability::mode_name).collect();
    modes.sort_unstable();
    modes.dedup();
    texts.extend(modes.into_iter().map(str::to_owned));
    let sorted: BTreeMap<&String, &String> =
        parameters.iter().filter(|(name, _)| !name.starts_with("csi.storage.k8s.io/")).collect();
    texts.extend(sorted.into_iter().map(|(name, value)| format!("{name}={value}")));
    format!("{:032x}", volume_id::hash(texts.iter().map(String::as_str)))
}

/// A DNS subdomain, which is what a Secret may be called.
fn is_secret_name(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=253).contains(&name.len())
        && name.split('.').all(|label| {
            label.bytes().next().is_some_and(alphanumeric)
                && label.bytes().last().is_some_and(alphanumeric)
                && label.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
        })
}

#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
