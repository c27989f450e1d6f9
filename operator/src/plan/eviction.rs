//! How many pods an administrator may evict now: none while data would become unavailable by it. A pod that isn't ready counts
//! in Kubernetes itself; what only the cluster's own servers know is looked at here.

use atoll_crds::names::Component;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Action, Owned};
use crate::build::{budget::budget, compare};
use crate::observe::{Observed, is_heard};
use crate::validate::Wanted;

/// The budget that has to follow what the servers say, if one has to.
pub fn next(seen: &Observed, wanted: &Wanted) -> Option<Action> {
    let due = |component| {
        let away = max_unavailable(seen, wanted, component);
        let mut object = budget(wanted, component, away).filter(|_| before(seen, component) != Some(away))?;
        compare::stamp(&mut object, |object| &mut object.metadata);
        Some(Action::Apply(Owned::Budget(Box::new(object))))
    };
    Component::ALL.into_iter().find_map(due)
}

/// Pods of a component that may be away at the same time. Without a word of the leader it is what it was: an election says
/// nothing about it.
pub fn max_unavailable(seen: &Observed, wanted: &Wanted, component: Component) -> i32 {
    let Some(answer) = seen.answer().filter(|answer| answer.is_leader && answer.cluster.is_some()) else {
        return before(seen, component).unwrap_or(1);
    };
    match component {
        // A pod that is back on another node is ready before its chunks have all their replicas again.
        Component::Storage => {
            let away = answer.servers.iter().filter(|server| !server.alive).count();
            i32::from(away == 0 && answer.chunks_short == 0)
        }
        Component::Metadata => {
            let replicas = usize::from(wanted.workload(component).replicas);
            // One that receives a snapshot can't take part in a majority yet.
            let works = |member: &&atoll_proto::metadata::MemberStatus| {
                member.voter && member.snapshot.is_none() && is_heard(member)
            };
            let working = answer.members.iter().filter(works).count();
            i32::from(working > replicas / 2 + 1)
        }
    }
}

/// What is allowed now.
pub fn before(seen: &Observed, component: Component) -> Option<i32> {
    match seen.budgets.get(&component)?.spec.as_ref()?.max_unavailable.as_ref()? {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::MetadataFact;
    use crate::testing;

    fn allowed(seen: &Observed) -> (i32, i32) {
        let wanted = testing::wanted("1Gi");
        let of = |component| max_unavailable(seen, &wanted, component);
        (of(Component::Metadata), of(Component::Storage))
    }

    #[test]
    fn nothing_may_be_evicted_while_data_would_become_unavailable_by_it() {
        let changed = |change: fn(&mut Observed)| {
            let mut seen = testing::running();
            change(&mut seen);
            allowed(&seen)
        };
        assert_eq!(changed(|_| {}), (1, 1));
        assert_eq!(changed(|seen| testing::answer(seen).chunks_short = 1), (1, 0));
        assert_eq!(changed(|seen| testing::answer(seen).servers[1].alive = false), (1, 0));
        assert_eq!(changed(|seen| testing::answer(seen).members[2].silent_ms = None), (0, 1));
        assert_eq!(changed(|seen| testing::answer(seen).members[2].voter = false), (0, 1));
        assert_eq!(changed(|seen| testing::answer(seen).members[2].snapshot = Some((1, 2))), (0, 1));
        assert_eq!(changed(|seen| drop(testing::answer(seen).members.pop())), (0, 1));
    }

    #[test]
    fn an_election_changes_nothing() {
        let mut seen = testing::running();
        testing::answer(&mut seen).is_leader = false;
        assert_eq!(allowed(&seen), (1, 1));
        let budget = seen.budgets.get_mut(&Component::Storage).expect("budget");
        budget.spec.as_mut().expect("spec").max_unavailable = Some(IntOrString::Int(0));
        assert_eq!(allowed(&seen), (1, 0));
        seen.metadata = MetadataFact::Unreachable("no route".into());
        assert_eq!(allowed(&seen), (1, 0));
    }
}
