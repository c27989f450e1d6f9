//! Faults that can be planted on purpose, to show that the simulation finds them.
//!
//! Where one would be planted the code asks [`planted`]. In every build but the one made for it (`make sim-faults`) the answer is
//! a constant `false`, and the compiler leaves nothing of it.

/// The faults, each with what it is.
pub const ALL: &[(&str, &str)] = &[
    ("log-sync-skipped", "the Raft log says that a batch is durable without syncing it"),
    ("vote-not-saved", "a vote is given and not saved"),
    (
        "flush-skipped",
        "the records are taken as flushed though they are not, and the log before them is removed",
    ),
    ("stale-leader-serves", "a leader whose lease has expired still answers requests"),
    ("reply-before-commit", "a change of an attribute is acknowledged before its entry is committed"),
    ("slots-dropped", "a mutation that is sent again is applied again"),
    ("log-tail-dropped", "the last record of the log is taken as torn when it is read back"),
    ("quota-not-released", "freed bytes are not returned to the quota"),
    ("storage-sync-skipped", "a storage server says that a replica is durable without syncing it"),
    ("trim-too-much", "a storage server trims one block more than its task says"),
    ("commit-before-durable", "a client commits bytes that the replicas have not synced"),
    ("replica-missing-ignored", "a client takes a write as done though a replica has failed"),
    ("settles-too-much", "a client takes data as committed that was written during the commit"),
    ("read-unverified", "the checksums of reads are not verified"),
    ("fsync-returns-early", "fsync returns before the written data is committed"),
    (
        "seal-ignored",
        "written and not yet committed blocks of a chunk are trimmed, though its writer is still active",
    ),
    ("move-unchecked", "data is moved though it was overwritten or truncated meanwhile"),
    ("append-guessed", "an append is written at the end that the client knows"),
    ("pages-right-early", "the kernel's pages count as valid before the invalid ones are dropped"),
    ("growth-over-old-pages", "the kernel receives a larger size while it has the page at the old end"),
    ("cut-late", "the kernel receives a larger size while it may still truncate pages at a smaller one"),
    ("cut-forgotten", "pages that were read while the kernel was still to truncate others count as whole"),
    ("write-cut", "a page in which the kernel may have truncated what was just written stays"),
    (
        "old-reply-late",
        "a thread of the kernel may replace the size that the holder of a new lock receives by an older one",
    ),
    ("retained-told-closed", "a client opens a file again without asking that the leader was told is closed"),
    (
        "successor-forgets-data",
        "a successor of a client whose process was killed forgets what that had not committed",
    ),
    ("lock-unsettled", "the size that the holder of a new lock receives is ignored by the kernel"),
    ("lock-not-revalidated", "the holder of a new lock reads pages that the kernel had before"),
    ("lock-not-reclaimed", "a client doesn't tell a new leader which locks it has"),
    ("lock-granted-untold", "a new leader grants locks before all sessions have told it which they have"),
    ("lock-kept", "the locks of a session that has ended are kept"),
    ("lost-write-sent", "what was written in a session that is lost is committed in the next one"),
    ("create-unheld", "a file that is created to be opened does not count as open from the start"),
    ("journal-overtaken", "a client asks the service before what it has carried out itself is committed"),
    ("journal-synced-early", "fsync returns before the journal is committed"),
    ("journal-reordered", "entries of a journal are sent in another order than their callers were told"),
    ("successor-skips-journal", "a successor of a client doesn't send what that had in its journal"),
    ("journal-applied-twice", "entries of a journal that come again are carried out again"),
    ("journal-open-unheld", "the name of an open file is removed before the service knows that it is open"),
    ("orphan-forgotten", "a file that is removed while others are being freed is never freed"),
];

/// Whether this fault is planted.
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn planted(_fault: &str) -> bool {
    false
}

#[cfg(feature = "planted")]
static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Whether this fault is planted.
///
/// # Panics
/// If there is no fault of this name.
#[cfg(feature = "planted")]
#[must_use]
pub fn planted(fault: &str) -> bool {
    debug_assert!(ALL.iter().any(|(name, _)| *name == fault), "{fault}");
    CHOSEN.get().is_some_and(|chosen| chosen == fault)
}

/// Plants this fault in this process, once and for all.
///
/// # Errors
/// If there is no fault of this name, or another one was chosen before.
#[cfg(feature = "planted")]
pub fn plant(fault: &str) -> Result<(), String> {
    if !ALL.iter().any(|(name, _)| *name == fault) {
        return Err(format!("there is no planted fault '{fault}'"));
    }
    CHOSEN.set(fault.to_owned()).map_err(|_| "a process plants one fault only".to_owned())
}
