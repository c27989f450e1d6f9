//! Storage servers as a leader knows them, and the one chunk that they keep. The time in which copies are made is a tick each.

use std::collections::{BTreeMap, BTreeSet};

use atoll_core::commands::ServerChange;
use atoll_core::ids::ServerId;
use atoll_proto::admin::ChangeServer;
use atoll_proto::metadata::ServerStatus;

/// What is recorded of a server.
#[derive(Clone, Debug)]
struct Record {
    address: String,
    draining: bool,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Storage {
    servers: BTreeMap<ServerId, Record>,
    /// Servers that have a replica.
    chunk: BTreeSet<ServerId>,
}

/// Servers that work, with their addresses.
pub type Working = BTreeMap<ServerId, String>;

impl Storage {
    /// Servers register, and a replica is made or taken away if one is due. Whether anything has changed. `disks` are those that
    /// there are, whether anybody uses them or not.
    pub fn tick(&mut self, working: &Working, disks: &BTreeSet<ServerId>, copies: usize) -> bool {
        let mut changed = false;
        for (server, address) in working {
            let known = self.servers.contains_key(server);
            changed |= !known;
            self.servers.entry(*server).or_insert(Record { address: address.clone(), draining: false });
        }
        let staying: Vec<ServerId> =
            working.keys().filter(|server| !self.servers[*server].draining).copied().collect();
        if self.chunk.is_empty() {
            if staying.len() >= copies {
                self.chunk.extend(&staying[..copies]);
            }
            return changed || !self.chunk.is_empty();
        }
        assert!(self.chunk.iter().any(|server| disks.contains(server)), "the last copy was let go");
        let counting = |server: &&ServerId| !self.servers.get(*server).is_some_and(|found| found.draining);
        if self.chunk.iter().filter(counting).count() >= copies {
            let (stay, go): (BTreeSet<ServerId>, BTreeSet<ServerId>) =
                self.chunk.iter().partition(|server| counting(server));
            self.chunk = stay;
            return changed || !go.is_empty();
        }
        let target = staying.into_iter().find(|server| !self.chunk.contains(server));
        let can_be_read = self.chunk.iter().any(|server| working.contains_key(server));
        changed | target.filter(|_| can_be_read).is_some_and(|target| self.chunk.insert(target))
    }

    /// What a leader does, or why it doesn't. Whether anything has changed.
    pub fn change(&mut self, request: ChangeServer, working: &Working) -> Result<bool, &'static str> {
        let ChangeServer { server, change } = request;
        let Some(record) = self.servers.get_mut(&server) else {
            return if change == ServerChange::Forget { Ok(false) } else { Err("there is no such server") };
        };
        match change {
            ServerChange::Forget if working.contains_key(&server) => Err("it is still running"),
            ServerChange::Forget if self.chunk.contains(&server) => Err("it still has replicas"),
            ServerChange::Forget if !record.draining => Err("it is in use"),
            ServerChange::Forget => Ok(self.servers.remove(&server).is_some()),
            ServerChange::Drain | ServerChange::Undrain => {
                let draining = change == ServerChange::Drain;
                Ok(std::mem::replace(&mut record.draining, draining) != draining)
            }
        }
    }

    /// Servers, as a status has them.
    pub fn statuses(&self, working: &Working) -> Vec<ServerStatus> {
        let status = |(server, record): (&ServerId, &Record)| ServerStatus {
            server: *server,
            address: record.address.clone(),
            alive: working.contains_key(server),
            draining: record.draining,
            capacity: 3 << 30,
            used: 0,
            free: 3 << 30,
            chunks: u64::from(self.chunk.contains(server)),
            silent_ms: 0,
            stored: 0,
        };
        self.servers.iter().map(status).collect()
    }

    /// Chunks by their replicas on servers that work and aren't drained.
    pub fn by_replicas(&self, working: &Working, copies: usize) -> Vec<u64> {
        let mut by = vec![0; copies.max(self.chunk.len()) + 1];
        let stays = |server: &&ServerId| working.contains_key(*server) && !self.servers[*server].draining;
        if !self.chunk.is_empty() {
            by[self.chunk.iter().filter(stays).count()] = 1;
        }
        by
    }

    /// Chunks that name each server.
    pub fn naming(&self) -> Vec<(ServerId, u64)> {
        self.chunk.iter().map(|server| (*server, 1)).collect()
    }
}
