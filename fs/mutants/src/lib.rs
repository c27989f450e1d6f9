//! Mistakes that can be made on purpose, to show that the simulation finds them.
//!
//! Where one would be made the code asks [`makes`]. In every build but the one made for it (`make sim-mutants`) the answer is
//! a constant `false`, and the compiler leaves nothing of it.

/// The mistakes, each with what it is.
pub const ALL: &[(&str, &str)] = &[
    ("log-sync-skipped", "the Raft log says that a batch is durable without syncing it"),
    ("vote-not-saved", "a vote is given and not written down"),
    ("flush-skipped", "the records count as flushed without being so, and the log before them is dropped"),
    ("stale-leader-serves", "a leader whose lease has run out goes on answering"),
    ("reply-before-commit", "an attribute is answered as set before its entry is committed"),
    ("slots-dropped", "a mutation that is sent again is done again"),
    ("log-tail-dropped", "the last record of the log is taken for torn when it is read back"),
    ("quota-not-released", "freed bytes stay charged"),
    ("storage-sync-skipped", "a storage server says that a replica is durable without syncing it"),
    ("trim-too-much", "a storage server gives back one block more than it is told to"),
    ("commit-before-durable", "a client commits bytes that the replicas have not synced"),
    ("replica-missing-ignored", "a client takes a write for done though a replica has failed"),
    ("settles-too-much", "a client takes for committed what was written while the commit was under way"),
    ("read-unverified", "nobody looks at the checksums of what is read"),
    ("fsync-returns-early", "fsync returns before what was written is committed"),
    (
        "seal-ignored",
        "what is written to a chunk and not yet committed is given back, though its writer is still at work",
    ),
    ("move-unchecked", "data is moved elsewhere though it was written anew or cut off meanwhile"),
    ("append-guessed", "an append goes where the client believes the end to be"),
    ("pages-right-early", "the kernel's pages count as right before those that aren't are gone"),
    ("growth-over-old-pages", "the kernel hears of a larger size while it has the page at the old end"),
    ("cut-late", "the kernel hears of a larger size while it may yet cut pages off at a smaller one"),
    ("lock-not-revalidated", "who gets a lock reads what the kernel held before"),
    ("create-unheld", "a file that is made to be opened isn't held by its maker from the start"),
    ("orphan-forgotten", "an unlinked file that may be held by who makes it counts as looked after"),
];

/// Whether this mistake is to be made now.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn makes(_mistake: &str) -> bool {
    false
}

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Whether this mistake is to be made now.
///
/// # Panics
/// If there is no mistake of this name.
#[cfg(feature = "mutants")]
#[must_use]
pub fn makes(mistake: &str) -> bool {
    debug_assert!(ALL.iter().any(|(name, _)| *name == mistake), "{mistake}");
    CHOSEN.get().is_some_and(|chosen| chosen == mistake)
}

/// Chooses the mistake that this process makes, once and for all.
///
/// # Errors
/// If there is no mistake of this name, or another one was chosen before.
#[cfg(feature = "mutants")]
pub fn choose(mistake: &str) -> Result<(), String> {
    if !ALL.iter().any(|(name, _)| *name == mistake) {
        return Err(format!("there is no mistake '{mistake}'"));
    }
    CHOSEN.set(mistake.to_owned()).map_err(|_| "one process makes one mistake".to_owned())
}
