//! The volume as a whole: its making, its quota, its storage servers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::attributes::S_IFMT;
use crate::commands::{Context, INTERNAL, Mutation, ServerChange};
use crate::error::FsError;
use crate::ids::{ClusterId, ROOT, ServerId, SessionId};
use crate::keys;
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES, COPIES_MAX, FEATURE_LEVEL_FIRST};
use crate::records::{InodeRecord, ServerRecord, SessionRecord, Superblock, VolumeConfig};
use crate::store::Family;
use crate::txn::{OpResult, Txn};

/// Tasks of one server at most: one a chunk.
const TASKS_MAX: usize = 1 << 24;

/// The first number given to a file; the ones before are kept for the root and for later uses.
pub(crate) const FIRST_INODE: u64 = 16;

fn check(config: &VolumeConfig) -> OpResult<()> {
    let sound = config.copies >= 1
        && config.copies <= COPIES_MAX
        && config.copies_min >= 1
        && config.copies_min <= config.copies
        && config.bytes_total >= BLOCK_BYTES
        && config.inodes_total >= 1
        && config.chunk_bytes.is_multiple_of(BLOCK_BYTES)
        && (1 << 20..=CHUNK_BYTES * 16).contains(&config.chunk_bytes)
        && u64::from(config.inline_file_bytes) <= crate::limits::COMMIT_INLINE_BYTES_MAX;
    if sound { Ok(()) } else { Err(FsError::InvalidArgument.into()) }
}

/// Makes the volume.
///
/// Makes the volume: its record and its root directory. To do it again for the same cluster changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Key of the hash of names.
    pub hash_key: (u64, u64),
    /// Configuration.
    pub config: VolumeConfig,
}

impl Mutation for Bootstrap {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let now = context.now;
        let Bootstrap { cluster, hash_key, ref config } = *self;
        if let Some(superblock) = txn.superblock() {
            return if superblock.cluster == cluster { Ok(()) } else { Err(FsError::WrongCluster.into()) };
        }
        check(config)?;
        let (uid, gid, mode) = config.root;
        txn.set_superblock(Superblock {
            cluster,
            feature_level: FEATURE_LEVEL_FIRST,
            hash_key,
            config: config.clone(),
            next_inode: FIRST_INODE,
            next_chunk: 1,
            next_session: 1,
            next_inline: 1,
            epoch: 1,
            bytes_used: 0,
            bytes_reserved: 0,
            inodes_used: 1,
            inline_bytes: 0,
            created: now,
        });
        let root = InodeRecord::new((0o040_000 & S_IFMT) | (mode & 0o7777), (uid, gid), ROOT, 1, now);
        txn.put_inode(ROOT, &root);
        Ok(())
    }
}

/// Changes the configuration.
///
/// Changes the configuration. A capacity below what is used is allowed: nothing more can be written then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// The new one.
    pub config: VolumeConfig,
}

impl Mutation for Configure {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let config = &self.config;
        check(config)?;
        txn.volume_mut()?.config = config.clone();
        Ok(())
    }
}

/// Raises the feature level: from now on the volume may have what builds below it don't understand. It is never lowered; a
/// level that is reached changes nothing. That all servers and mounts know the level the leader has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseFeatureLevel {
    /// To which level.
    pub level: u32,
}

impl Mutation for RaiseFeatureLevel {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let volume = txn.volume_mut()?;
        if volume.feature_level < self.level {
            volume.feature_level = self.level;
            #[cfg(feature = "next-release")]
            if self.level >= 2 {
                let record = crate::records::LevelRecord { raised: context.now };
                txn.put(Family::System, keys::level(self.level), &record);
            }
        }
        let _ = context;
        Ok(())
    }
}

/// A storage server joins, or has a new address or labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutServer {
    /// Which.
    pub server: ServerId,
    /// Where it listens.
    pub address: String,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
}

impl Mutation for PutServer {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let now = context.now;
        let PutServer { server, ref address, ref labels } = *self;
        txn.volume()?;
        let key = keys::server(server);
        let known: Option<ServerRecord> = txn.load(Family::System, &key)?;
        let record = ServerRecord {
            address: address.to_owned(),
            labels: labels.clone(),
            joined: known.as_ref().map_or(now, |known| known.joined),
            draining: known.as_ref().is_some_and(|known| known.draining),
        };
        if known.as_ref() != Some(&record) {
            txn.put(Family::System, key, &record);
        }
        Ok(())
    }
}

/// What an administrator wants of a storage server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeServer {
    /// Which.
    pub server: ServerId,
    /// What.
    pub change: ServerChange,
}

impl Mutation for ChangeServer {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, _context: &Context) -> OpResult<()> {
        let ChangeServer { server, change } = *self;
        let key = keys::server(server);
        let Some(mut record) = txn.load::<ServerRecord>(Family::System, &key)? else {
            // Forgotten already is as good.
            return match change {
                ServerChange::Forget => Ok(()),
                ServerChange::Drain | ServerChange::Undrain => Err(FsError::NotFound.into()),
            };
        };
        match change {
            ServerChange::Forget if !record.draining => return Err(FsError::TryAgain.into()),
            ServerChange::Forget => {
                for (task, _) in txn.collect_prefix(Family::System, &keys::tasks(server), TASKS_MAX)? {
                    txn.delete(Family::System, task);
                }
                txn.delete(Family::System, key);
                return Ok(());
            }
            ServerChange::Drain | ServerChange::Undrain => {}
        }
        let draining = change == ServerChange::Drain;
        if record.draining != draining {
            record.draining = draining;
            txn.put(Family::System, key, &record);
        }
        Ok(())
    }
}

/// Charges the difference between what a file was and is charged. `promise`: whose reservation it comes out
/// of, and how many bytes of it are used up. Beyond a promise there must be room.
pub(crate) fn charge(
    txn: &mut Txn<'_>,
    before: u64,
    after: u64,
    promise: Option<(SessionId, u64)>,
) -> OpResult<()> {
    let promised = match promise {
        Some((session, bytes)) if bytes > 0 => take_promise(txn, session, bytes)?,
        _ => 0,
    };
    let beyond = after.saturating_sub(before).saturating_sub(promised);
    if beyond > txn.volume()?.volume_use().bytes_free() {
        return Err(FsError::NoSpace.into());
    }
    count_charged(txn, before, after)
}

/// The same of what was accepted against a promise, and isn't refused any more: that the volume has become smaller since then
/// is no reason.
pub(crate) fn charge_promised(
    txn: &mut Txn<'_>,
    before: u64,
    after: u64,
    (session, bytes): (SessionId, u64),
) -> OpResult<()> {
    if bytes > 0 {
        take_promise(txn, session, bytes)?;
    }
    count_charged(txn, before, after)
}

fn count_charged(txn: &mut Txn<'_>, before: u64, after: u64) -> OpResult<()> {
    let volume = txn.volume_mut()?;
    if after < before && atoll_faults::planted("quota-not-released") {
        return Ok(());
    }
    volume.bytes_used = volume.bytes_used.saturating_add(after).saturating_sub(before);
    Ok(())
}

/// Uses up to `bytes` of a session's reservation; returns how many it had.
fn take_promise(txn: &mut Txn<'_>, session: SessionId, bytes: u64) -> OpResult<u64> {
    if session == INTERNAL {
        return Ok(0);
    }
    let key = keys::session(session);
    let Some(mut record) = txn.load::<SessionRecord>(Family::System, &key)? else { return Ok(0) };
    let taken = record.bytes_reserved.min(bytes);
    if taken > 0 {
        record.bytes_reserved -= taken;
        txn.put(Family::System, key, &record);
        let volume = txn.volume_mut()?;
        volume.bytes_reserved = volume.bytes_reserved.saturating_sub(taken);
    }
    Ok(taken)
}

/// Asks for bytes of quota to buffer writes against.
///
/// Promises a session bytes of quota, so that what it buffers can't fail late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Bytes, in whole blocks.
    pub bytes: u64,
    /// Fewer will do, down to this.
    pub bytes_min: u64,
}

impl Mutation for Reserve {
    type Outcome = u64;

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<u64> {
        let session = context.session;
        let Reserve { bytes, bytes_min } = *self;
        if bytes_min > bytes || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(FsError::InvalidArgument.into());
        }
        let free = txn.volume()?.volume_use().bytes_free();
        // Not all that is left to one session, unless it needs it: others ask too.
        let fair = (free / 4) / BLOCK_BYTES * BLOCK_BYTES;
        let granted = bytes.min(fair.max(bytes_min));
        if granted > free {
            return Err(FsError::NoSpace.into());
        }
        let key = keys::session(session);
        let mut record: SessionRecord = txn.load(Family::System, &key)?.ok_or(FsError::SessionExpired)?;
        record.bytes_reserved = record.bytes_reserved.saturating_add(granted);
        txn.put(Family::System, key, &record);
        let volume = txn.volume_mut()?;
        volume.bytes_reserved = volume.bytes_reserved.saturating_add(granted);
        Ok(granted)
    }
}

/// Gives bytes of quota back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreserve {
    /// Bytes.
    pub bytes: u64,
}

impl Mutation for Unreserve {
    type Outcome = ();

    fn apply(&self, txn: &mut Txn<'_>, context: &Context) -> OpResult<()> {
        let (session, bytes) = (context.session, self.bytes);
        take_promise(txn, session, bytes)?;
        Ok(())
    }
}
