//! The operator is killed again and again, at random requests of one long life: each step ends as it does without.
//!
//! `make test-operator-kills` has 50 kills in each of many lives; as one of many tests it is a few of them.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::*;

/// Kills in a life, unless `ATOLL_OPERATOR_KILLS` says otherwise.
const KILLS: usize = 3;
/// Lives, unless `ATOLL_OPERATOR_LIVES` says otherwise.
const LIVES: u64 = 4;

/// Whatever happens to a volume, one after the other.
const WHOLE_LIFE: Life = &[
    |world| {
        create_for_a_trial(world);
        run_version(world, EARLIER);
    },
    |world| has_servers(world, 3, 3),
    add_storage_server,
    delete_services,
    lose_metadata_disk,
    delete_storage_disk,
    |world| has_servers(world, 3, 4),
    |world| run_version(world, VERSION),
    five_metadata_servers,
    |world| has_servers(world, 5, 4),
    remove_storage_server,
    three_metadata_servers,
    give_storage_servers_memory,
    |world| runs(world, VERSION),
    pause,
    add_storage_server,
    go_on,
    |world| has_servers(world, 3, 4),
    remove_storage_server,
    |world| run_version(world, EARLIER),
    |world| runs(world, EARLIER),
    delete,
    is_kept,
    |world| {
        create_for_a_trial(world);
        run_version(world, EARLIER);
    },
    is_all_there,
    confirm,
    delete,
    is_gone,
];

/// What is left after each step, and how many requests it took.
async fn outlive(kills: BTreeMap<usize, bool>, what: &str) -> (Vec<Value>, usize) {
    let kubernetes = Kubernetes::new();
    kubernetes.api.door.kill_at(kills);
    let (mut operator, mut left) = (None, Vec::new());
    for (step, happens) in WHOLE_LIFE.iter().enumerate() {
        happens(&kubernetes);
        let operator = operator.get_or_insert_with(|| Operator::start(&kubernetes));
        settle(&kubernetes, operator, 1, &format!("step {step} {what}")).await;
        left.push(without_what_was(what_is_left(&kubernetes)));
    }
    assert_eq!(kubernetes.api.door.kills_left(), 0, "not all kills happened {what}");
    let (writes, reads) = kubernetes.api.door.counts();
    (left, writes + reads)
}

/// Without conditions that say of something that was so for a moment that it isn't any more: a killed operator may not have seen
/// that moment. To be absent means the same.
fn without_what_was(mut left: Value) -> Value {
    if let Some(Value::Array(found)) = left.pointer_mut("/filesystemclusters~1db/status/conditions") {
        found.retain(|condition| condition["status"] != "False" || condition["reason"] != "AsSpecified");
    }
    left
}

fn number<T: std::str::FromStr>(variable: &str, otherwise: T) -> T {
    let text = std::env::var(variable).ok();
    text.map_or(otherwise, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} isn't a number: {text}"))
    })
}

#[tokio::test]
async fn a_life_in_which_the_operator_is_killed_at_random_ends_as_without_kills() {
    let (kills, lives) = (number("ATOLL_OPERATOR_KILLS", KILLS), number("ATOLL_OPERATOR_LIVES", LIVES));
    let (expected, requests) = outlive(BTreeMap::new(), "without kills").await;
    let first: u64 = number("ATOLL_OPERATOR_SEED", rand::rng().random::<u32>().into());
    for seed in first..first.saturating_add(lives) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut at = BTreeMap::new();
        while at.len() < kills.min(requests) {
            at.insert(random.random_range(0..requests), random.random());
        }
        let again = format!("(ATOLL_OPERATOR_SEED={seed} ATOLL_OPERATOR_KILLS={kills})");
        let (found, _) = outlive(at, &again).await;
        for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let differs = difference(expected, found);
            assert_eq!(differs, None, "after step {step}, killed {kills} times {again}");
        }
    }
    println!(
        "{lives} lives of {requests} requests, the operator killed {kills} times in each: seeds from {first}"
    );
}
