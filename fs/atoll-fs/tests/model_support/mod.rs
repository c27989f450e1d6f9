//! The operations of the model test, carried out on two trees by threads that are different users.

mod calls;
mod compare;

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::Cluster;
use calls::{Call, Users};

/// How a seed is run.
pub struct Options {
    /// Operations.
    pub operations: usize,
    /// How often everything is synced, killed and started again in between.
    pub kills: usize,
    /// Times before 1970 and set-id bits are among the operations (the second transport carries neither exactly).
    pub all: bool,
}

/// Operations between two comparisons of the whole trees.
const COMPARE_EVERY: usize = 250;

/// Runs one seed in folders of its own.
pub fn run_seed(cluster: &Cluster, seed: u64, options: &Options) {
    let mut rng = StdRng::seed_from_u64(seed);
    let ours = cluster.path(&format!("seed-{seed}"));
    let reference = cluster.folder().join(format!("reference-{seed}"));
    for root in [&ours, &reference] {
        let _ = std::fs::remove_dir_all(root);
        std::fs::create_dir(root).unwrap();
        std::os::unix::fs::chown(root, Some(0), Some(0)).unwrap();
        std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mut users = Users::start(&ours, &reference);
    let mut known: Vec<Vec<u8>> = vec![Vec::new()];
    let kill_every = options.operations / (options.kills + 1);
    let mut history: Vec<String> = Vec::new();
    for at in 1..=options.operations {
        let user = rng.random_range(0..Users::COUNT);
        let mut call = Call::random(&mut rng, &known);
        if !options.all {
            if call.sets_an_old_time() {
                continue;
            }
            call.clear_setid();
        }
        history.push(format!("{at}: user {user}: {}", call.brief()));
        let (mine, theirs) = users.run(user, &call);
        if mine != theirs {
            let recent = history[history.len().saturating_sub(12)..].join("\n");
            panic!(
                "seed {seed}: the mount says {mine:?}, the local folder {theirs:?}\nlast operations:\n{recent}"
            );
        }
        if at % 40 == 0 {
            known = compare::paths(&reference);
        }
        if options.kills > 0 && at % kill_every == 0 && at < options.operations {
            users.close_handles();
            sync_everything(&ours);
            drop(users);
            cluster.kill();
            cluster.up();
            users = Users::start(&ours, &reference);
            compare::trees(&ours, &reference, &history);
        }
        if at % COMPARE_EVERY == 0 {
            compare::trees(&ours, &reference, &history);
        }
    }
    drop(users);
    compare::trees(&ours, &reference, &history);
    for root in [&ours, &reference] {
        std::fs::remove_dir_all(root).unwrap();
    }
}

/// fsync of every file and folder: after that a kill may lose nothing.
fn sync_everything(root: &Path) {
    for path in compare::paths(root) {
        let path = calls::join(root, &path);
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if found.is_file() || found.is_dir() {
            std::fs::File::open(&path).unwrap().sync_all().unwrap();
        }
    }
}
