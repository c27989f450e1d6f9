//! What a volume's client may take of the memory that the mount host of a node has. Pure.
//!
//! A mount host has as much memory as its pod's limit says. Each client is counted with its budget as long as it is there, and a
//! volume whose budget has no room is refused: otherwise the kernel would end all of them at once when they need what was
//! promised.

use crate::mount_flags::MountFlags;

const MIB: u64 = 1 << 20;

/// The buffer of a client whose flags name none (bytes): the default of `atoll-fs mount --buffer`.
pub const BUFFER_BYTES_DEFAULT: u64 = 64 * MIB;
/// What a client takes beside its buffer (bytes): reading ahead (32 MiB), maps of files (16 MiB), requests of the kernel (48 MiB),
/// records of a volume for one mount (64 MiB) and its journal (8 MiB), the program and its threads (16 MiB).
pub const CLIENT_BYTES: u64 = 184 * MIB;
/// What the mount host's own process takes (bytes), with the descriptors and logs of its clients.
pub const HOST_BYTES: u64 = 48 * MIB;
/// The budget of a client with these flags (bytes).
#[must_use]
pub fn of(flags: &MountFlags) -> u64 {
    flags.buffer_bytes.unwrap_or(BUFFER_BYTES_DEFAULT) + CLIENT_BYTES
}

/// How many volumes a node takes whose mount host has so much memory (bytes; `None`: nobody limits it), at most
/// `volumes_max`: those with the usual flags. At least one, so that a limit that is too low is seen in what it refuses.
#[must_use]
pub fn volumes(memory: Option<u64>, volumes_max: u32) -> u32 {
    let Some(memory) = memory else { return volumes_max };
    let fit = memory.saturating_sub(HOST_BYTES) / of(&MountFlags::default());
    u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, volumes_max.max(1))
}

/// Why a client's budget has no room beside those that there are; `None`: it has.
#[must_use]
pub fn refusal(memory: Option<u64>, held: u64, wanted: u64) -> Option<String> {
    let room = memory?.saturating_sub(HOST_BYTES);
    (held.saturating_add(wanted) > room).then(|| {
        format!(
            "this node's mount host has {} MiB of memory for its clients, of which {} are taken, and this volume takes {} (mount \
             option buffer=): raise the memory limit of the DaemonSet atoll-mount-host, or lower buffer=",
            room / MIB,
            held / MIB,
            wanted / MIB
        )
    })
}

/// What a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use<T> {
    /// Which one.
    pub client: T,
    /// Memory that it is counted with (bytes).
    pub budget: u64,
    /// Memory of its own (bytes). Its buffer and the kernel's requests are none of it: those outlive each client.
    pub own: u64,
}

/// The client that is ended, for another one to continue with less, since all together take more than there is: the kernel would
/// end all of them. It is the one that has taken most, beyond its budget. One that takes much while there is enough for all is
/// left alone: it may know many files.
#[must_use]
pub fn oversized<T: Copy>(memory: Option<u64>, clients: &[Use<T>]) -> Option<T> {
    let buffers = clients.iter().map(|one| one.budget.saturating_sub(CLIENT_BYTES)).sum::<u64>();
    let taken = clients.iter().map(|one| one.own).sum::<u64>() + buffers;
    let largest = clients.iter().max_by_key(|one| one.own).filter(|one| one.own > CLIENT_BYTES)?;
    (taken > memory?.saturating_sub(HOST_BYTES)).then_some(largest.client)
}

/// A process's own memory (bytes), from its `/proc/<pid>/status`: what it shares with nobody and no file has.
#[must_use]
pub fn own_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_takes_as_many_volumes_as_have_room() {
        let one = of(&MountFlags::default());
        assert_eq!(one, 248 * MIB);
        assert_eq!(volumes(None, 64), 64, "nobody limits it");
        assert_eq!(volumes(Some(HOST_BYTES + 5 * one), 64), 5);
        assert_eq!(volumes(Some(HOST_BYTES + 5 * one - 1), 64), 4);
        assert_eq!(volumes(Some(1 << 40), 64), 64);
        assert_eq!(volumes(Some(MIB), 64), 1);
    }

    #[test]
    fn a_volume_without_room_is_refused_and_told_why() {
        let small = of(&MountFlags { buffer_bytes: Some(16 * MIB), ..MountFlags::default() });
        assert_eq!(small, 200 * MIB);
        let memory = Some(HOST_BYTES + 300 * MIB);
        assert_eq!(refusal(memory, 0, small), None);
        assert_eq!(refusal(memory, 100 * MIB, small), None, "to the last byte");
        let why = refusal(memory, 100 * MIB + 1, small).unwrap();
        assert!(why.contains("300 MiB") && why.contains("atoll-mount-host"), "{why}");
        assert_eq!(refusal(None, 1 << 50, small), None);
    }

    #[test]
    fn the_largest_client_is_ended_when_there_is_not_enough_for_all() {
        let budget = of(&MountFlags::default());
        let one = |client, own| Use { client, budget, own: own * MIB };
        let memory = Some(HOST_BYTES + 3 * budget);
        assert_eq!(oversized(memory, &[one('a', 516), one('b', 20), one('c', 16)]), None, "to the last byte");
        assert_eq!(oversized(memory, &[one('a', 30), one('b', 517), one('c', 20)]), Some('b'));
        assert_eq!(oversized(None, &[one('a', 1 << 20)]), None);
        // More mounts than there may be, which were there before: none of them takes more than it may.
        assert_eq!(oversized(memory, &[one('a', 100); 5]), None);
        assert_eq!(oversized::<char>(memory, &[]), None);
    }

    #[test]
    fn memory_of_its_own_is_what_a_process_shares_with_nobody() {
        let status = "Name:\tatoll-fs\nVmRSS:\t  900000 kB\nRssAnon:\t   20480 kB\nRssShmem:\t 65536 kB\n";
        assert_eq!(own_bytes(status), Some(20 * MIB));
        assert_eq!(own_bytes("Name:\tkthreadd\n"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(own_bytes(&own).unwrap() > 0);
    }
}
