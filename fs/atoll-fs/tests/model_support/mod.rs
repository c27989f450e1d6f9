//! The operations of the model test, carried out on two trees by threads that are different users.

#![allow(dead_code, reason = "each test program uses a part of it")]

mod calls;
mod compare;
mod users;

use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::Cluster;
use calls::Call;
use users::Users;

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
        fresh(root);
    }
    let mut users = Users::start(&ours, &reference);
    let mut known: Vec<Vec<u8>> = vec![Vec::new()];
    let kill_every = options.operations / (options.kills + 1);
    let mut history: Vec<String> = Vec::new();
    for at in 1..=options.operations {
        let user = rng.random_range(0..Users::COUNT);
        let further = options.all && rng.random_bool(0.2);
        let mut call = match further {
            true => Call::random_further(&mut rng, &known),
            false => Call::random(&mut rng, &known),
        };
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

/// A new folder that everybody may write to.
fn fresh(root: &Path) {
    let _ = std::fs::remove_dir_all(root);
    std::fs::create_dir_all(root).unwrap();
    std::os::unix::fs::chown(root, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
}

/// Runs one seed on several mounts of one volume: each operation on one of them, and all see the same afterwards.
pub fn run_on_mounts(mounts: &[PathBuf], reference: &Path, seed: u64, operations: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let name = format!("seed-{seed}");
    let reference = reference.join(&name);
    fresh(&mounts[0].join(&name));
    fresh(&reference);
    let roots: Vec<PathBuf> = mounts.iter().map(|mount| mount.join(&name)).collect();
    let mut users: Vec<Users> = roots.iter().map(|root| Users::start(root, &reference)).collect();
    let mut known: Vec<Vec<u8>> = vec![Vec::new()];
    let mut history: Vec<String> = Vec::new();
    for at in 1..=operations {
        let call = match rng.random_bool(0.2) {
            true => Call::random_further(&mut rng, &known),
            false => Call::random(&mut rng, &known),
        };
        if call.is_about_a_handle() {
            continue;
        }
        let (mount, user) = (rng.random_range(0..mounts.len()), rng.random_range(0..Users::COUNT));
        history.push(format!("{at}: mount {mount}, user {user}: {}", call.brief()));
        let (mine, theirs) = users[mount].run(user, &call);
        if mine != theirs {
            let recent = history[history.len().saturating_sub(12)..].join("\n");
            panic!("seed {seed}: a mount says {mine:?}, the local folder {theirs:?}\n{recent}");
        }
        if at % 40 == 0 {
            known = compare::paths(&reference);
        }
        if at % COMPARE_EVERY == 0 {
            look(&roots, &reference, &history);
        }
    }
    drop(users);
    look(&roots, &reference, &history);
    std::fs::remove_dir_all(&roots[0]).unwrap();
    std::fs::remove_dir_all(&reference).unwrap();
}

/// All mounts show what the local folder does. Each stamps times by its own idea of the leader's clock, which is right
/// to about a round trip: there is no order between them.
fn look(roots: &[PathBuf], reference: &Path, history: &[String]) {
    for root in roots {
        compare::content(root, reference, history);
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
