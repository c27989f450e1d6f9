//! Segments of the Raft log, from a disk. Their checksums are made right first: see [`atoll_raft::fuzzing`].

pub(crate) fn read(data: &[u8]) -> bool {
    atoll_raft::fuzzing::read_log(data)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    atoll_raft::fuzzing::logs()
}
