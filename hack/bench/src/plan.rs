//! How much work a run does.

use std::time::Duration;

/// Amounts and limits. A workload that reaches its time limit ends early and counts what it did.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the file that is written and read in sequence.
    pub stream_bytes: u64,
    /// Bytes of the file that is read and written at random places.
    pub random_bytes: u64,
    /// Time of a workload that could go on for ever.
    pub slice: Duration,
    /// Time limit of a workload that does a fixed amount.
    pub pass_max: Duration,
    /// Small files in a set.
    pub files: usize,
    /// Files of the tree for tar, at most.
    pub tree_files: usize,
    /// Bytes of the tree for tar, at most.
    pub tree_bytes: u64,
    /// Files of the repository.
    pub git_files: usize,
    /// Commits of the repository.
    pub git_commits: usize,
    /// Files of the big folder.
    pub big_files: usize,
    /// How long idle servers are watched before anything is done.
    pub rest: Duration,
    /// How long to wait for servers to finish what a workload left to do.
    pub settle_max: Duration,
    /// Rounds, unless the command line says otherwise.
    pub rounds: u32,
    /// Time for all rounds, unless the command line says otherwise.
    pub budget: Duration,
}

impl Plan {
    /// Half a minute for each target.
    pub fn quick() -> Self {
        Self {
            stream_bytes: 48 << 20,
            random_bytes: 32 << 20,
            slice: Duration::from_millis(150),
            pass_max: Duration::from_millis(1000),
            files: 300,
            tree_files: 200,
            tree_bytes: 8 << 20,
            git_files: 120,
            git_commits: 10,
            big_files: 2000,
            rest: Duration::from_secs(5),
            settle_max: Duration::from_millis(200),
            rounds: 2,
            budget: Duration::from_secs(180),
        }
    }

    /// About five minutes for each target, seven for a slow one.
    pub fn full() -> Self {
        Self {
            stream_bytes: 256 << 20,
            random_bytes: 128 << 20,
            slice: Duration::from_millis(600),
            pass_max: Duration::from_millis(2500),
            files: 2000,
            tree_files: 800,
            tree_bytes: 16 << 20,
            git_files: 500,
            git_commits: 60,
            big_files: 50_000,
            rest: Duration::from_secs(60),
            settle_max: Duration::from_millis(800),
            rounds: 5,
            budget: Duration::from_secs(3600),
        }
    }
}
