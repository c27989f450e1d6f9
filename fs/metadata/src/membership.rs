//! How a change of the group is made: which steps, and when it is refused. Pure.
//!
//! A joiner first receives the log without a vote, so that a majority never depends on a member that has nothing. A
//! change is refused when what is left could not go on: the voters that are heard of have to be a majority of the new
//! group, the joiner among them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use atoll_core::ids::MemberId;
use atoll_proto::admin::MembersChange;
use atoll_raft::{PeerStatus, RaftStatus};

/// Members of a group at most. Five survive the loss of two; with more of them each commit would only wait for more disks.
pub const MEMBERS_MAX: usize = 5;
/// A member that was heard of within this time counts as there.
pub const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// What to do next to have a change made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Receive the log without a vote; comes back when it has it all.
    Learn(MemberId, String),
    /// These vote, and nobody else belongs to the group.
    Vote(BTreeSet<MemberId>),
    /// This one, which doesn't vote, leaves.
    Forget(MemberId),
    /// Transfer leadership to this one, which continues the change.
    Transfer(MemberId),
}

/// The group as its leader sees it.
#[derive(Clone, Debug)]
pub struct Group {
    /// The leader itself.
    pub me: MemberId,
    members: BTreeMap<MemberId, PeerStatus>,
    changing: bool,
}

impl Group {
    /// From the leader's status.
    #[must_use]
    pub fn of(status: &RaftStatus) -> Group {
        let members = status.members.iter().map(|(id, peer)| (MemberId(*id), peer.clone())).collect();
        Group { me: MemberId(status.member), members, changing: status.membership_changing }
    }

    fn voters(&self) -> BTreeSet<MemberId> {
        self.members.iter().filter(|(_, peer)| peer.voter).map(|(id, _)| *id).collect()
    }

    /// Whether a member is there now.
    #[must_use]
    pub fn is_heard(&self, member: MemberId) -> bool {
        member == self.me
            || self
                .members
                .get(&member)
                .is_some_and(|peer| peer.last_ack.is_some_and(|ack| ack <= HEARD_WITHIN))
    }

    /// Whether somebody has not answered this leader yet: one that has only just been elected waits for them.
    #[must_use]
    pub fn has_unheard(&self) -> bool {
        self.members.iter().any(|(id, peer)| *id != self.me && peer.last_ack.is_none())
    }

    /// Who could lead instead: those who are there, the one with most of the log first.
    #[must_use]
    pub fn successors(&self) -> Vec<MemberId> {
        let mut there: Vec<MemberId> =
            self.voters().into_iter().filter(|member| *member != self.me && self.is_heard(*member)).collect();
        there
            .sort_by_key(|member| Reverse((self.members.get(member).and_then(|peer| peer.matched), *member)));
        there
    }

    /// Whether what makes the records grow can be committed, when the disks of `full` are: a majority has to have room of
    /// those who are there. Without full disks silent members are no reason to refuse it: they are waited for.
    #[must_use]
    pub fn has_room(&self, full: &BTreeSet<MemberId>) -> bool {
        let voters = self.voters();
        let roomy = voters.iter().filter(|member| !full.contains(member) && self.is_heard(**member)).count();
        voters.is_disjoint(full) || roomy > voters.len() / 2
    }

    /// The first of them, or the next one if that is `without`.
    #[must_use]
    pub fn successor(&self, without: Option<MemberId>) -> Option<MemberId> {
        self.successors().into_iter().find(|member| Some(*member) != without)
    }

    /// The steps that a change takes from here on; none when it was made.
    ///
    /// # Errors
    /// If it can't be made, in words.
    pub fn steps(&self, change: &MembersChange) -> Result<Vec<Step>, String> {
        if self.changing {
            return Err(
                "another membership change is in progress: wait until it is done, then try again".into()
            );
        }
        match change {
            MembersChange::Add { member, address } => self.add(*member, address, None),
            MembersChange::Replace { old, new, address } => {
                if old == new {
                    return Err(format!("{old} can't replace itself"));
                }
                match (self.members.contains_key(old), self.voters().contains(new)) {
                    (true, _) => self.add(*new, address, Some(*old)),
                    (false, true) => Ok(Vec::new()),
                    (false, false) => Err(self.unknown(*old)),
                }
            }
            MembersChange::Remove { member } => self.remove(*member),
        }
    }

    fn add(&self, member: MemberId, address: &str, old: Option<MemberId>) -> Result<Vec<Step>, String> {
        let mut voters = self.voters();
        if let Some(known) = self.members.get(&member) {
            if known.addr != address {
                return Err(format!(
                    "{member} is a member already, at {}: remove it before it is added at {address}",
                    known.addr
                ));
            }
            if known.voter && old.is_none() {
                return Ok(Vec::new());
            }
        }
        let same_address = |(id, peer): (&MemberId, &PeerStatus)| {
            (*id != member && Some(*id) != old && peer.addr == address).then_some(*id)
        };
        if let Some(other) = self.members.iter().find_map(same_address) {
            return Err(format!(
                "{other} is also a member at {address}: if its disk is gone, replace it by {member}"
            ));
        }
        if let Some(old) = old {
            voters.remove(&old);
        }
        voters.insert(member);
        if voters.len() > MEMBERS_MAX {
            return Err(format!(
                "a group has at most {MEMBERS_MAX} members: replace a member instead of adding one"
            ));
        }
        self.can_go_on(&voters, Some(member))?;
        let mut steps = Vec::new();
        if !self.members.get(&member).is_some_and(|known| known.voter) {
            steps.push(Step::Learn(member, address.to_owned()));
        }
        // The leader doesn't vote itself out: who comes after it does.
        steps.push(if old == Some(self.me) {
            self.transfer_leadership(&voters)?
        } else {
            Step::Vote(voters)
        });
        Ok(steps)
    }

    fn remove(&self, member: MemberId) -> Result<Vec<Step>, String> {
        if !self.members.contains_key(&member) {
            return Ok(Vec::new());
        }
        let mut voters = self.voters();
        if !voters.remove(&member) {
            return Ok(vec![Step::Forget(member)]);
        }
        if voters.is_empty() {
            return Err(format!("{member} is the last member and can't be removed"));
        }
        self.can_go_on(&voters, None)?;
        Ok(vec![if member == self.me { self.transfer_leadership(&voters)? } else { Step::Vote(voters) }])
    }

    fn transfer_leadership(&self, voters: &BTreeSet<MemberId>) -> Result<Step, String> {
        match self.successor(Some(self.me)).filter(|successor| voters.contains(successor)) {
            Some(successor) => Ok(Step::Transfer(successor)),
            None => Err(format!(
                "{} is the leader and no other member could become the leader: add a member first",
                self.me
            )),
        }
    }

    /// Whether the voters that are there are a majority of the new group.
    fn can_go_on(&self, voters: &BTreeSet<MemberId>, joiner: Option<MemberId>) -> Result<(), String> {
        let there = |member: &&MemberId| self.is_heard(**member) || Some(**member) == joiner;
        let silent: Vec<String> =
            voters.iter().filter(|member| !there(member)).map(ToString::to_string).collect();
        if (voters.len() - silent.len()) * 2 > voters.len() {
            return Ok(());
        }
        Err(format!(
            "the group would lose its majority: of its {} members then, {} don't respond ({}); start or \
             remove those first",
            voters.len(),
            silent.len(),
            silent.join(", ")
        ))
    }

    fn unknown(&self, member: MemberId) -> String {
        let known: Vec<String> =
            self.members.iter().map(|(id, peer)| format!("{id} at {}", peer.addr)).collect();
        format!("{member} isn't a member; the members are {}", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);
    const C: MemberId = MemberId(3);
    const D: MemberId = MemberId(4);

    /// A leads; each of the others is heard of or not.
    fn group(others: &[(MemberId, bool)]) -> Group {
        let peer = |id: MemberId, heard: bool, voter| PeerStatus {
            addr: format!("m{}:1", id.0),
            voter,
            matched: None,
            last_ack: heard.then_some(Duration::from_millis(100)),
            snapshot: None,
        };
        let mut members: BTreeMap<_, _> =
            others.iter().map(|(id, heard)| (*id, peer(*id, *heard, true))).collect();
        members.insert(A, peer(A, false, true));
        Group { me: A, members, changing: false }
    }

    fn add(member: MemberId) -> MembersChange {
        MembersChange::Add { member, address: format!("m{}:1", member.0) }
    }

    fn replace(old: MemberId, new: MemberId) -> MembersChange {
        MembersChange::Replace { old, new, address: format!("m{}:1", new.0) }
    }

    fn set(members: &[MemberId]) -> BTreeSet<MemberId> {
        members.iter().copied().collect()
    }

    #[test]
    fn a_joiner_learns_before_it_votes_and_is_added_once() {
        let alone = group(&[]);
        let learn = Step::Learn(B, "m2:1".into());
        assert_eq!(alone.steps(&add(B)), Ok(vec![learn, Step::Vote(set(&[A, B]))]));
        assert_eq!(group(&[(B, true)]).steps(&add(B)), Ok(Vec::new()));
        let mut learning = group(&[(B, true)]);
        learning.members.get_mut(&B).unwrap().voter = false;
        assert_eq!(learning.steps(&add(B)).unwrap().last(), Some(&Step::Vote(set(&[A, B]))));
        assert_eq!(learning.steps(&MembersChange::Remove { member: B }), Ok(vec![Step::Forget(B)]));
    }

    #[test]
    fn an_address_or_an_id_that_is_taken_is_refused_with_what_to_do() {
        let three = group(&[(B, true), (C, true)]);
        let moved = MembersChange::Add { member: B, address: "elsewhere:1".into() };
        assert!(three.steps(&moved).unwrap_err().contains("remove it before"));
        let same = MembersChange::Add { member: D, address: "m3:1".into() };
        assert!(three.steps(&same).unwrap_err().contains("replace it by"));
        let mut changing = three;
        changing.changing = true;
        assert!(changing.steps(&add(D)).unwrap_err().contains("in progress"));
    }

    #[test]
    fn a_member_whose_disk_is_gone_is_replaced_in_one_change() {
        let three = group(&[(B, true), (C, false)]);
        let at_its_address = MembersChange::Replace { old: C, new: D, address: "m3:1".into() };
        let learn = Step::Learn(D, "m3:1".into());
        assert_eq!(three.steps(&at_its_address), Ok(vec![learn, Step::Vote(set(&[A, B, D]))]));
        let done = group(&[(B, true), (D, true)]);
        assert_eq!(done.steps(&replace(C, D)), Ok(Vec::new()));
        assert!(three.steps(&replace(MemberId(9), MemberId(10))).unwrap_err().contains("isn't a member"));
    }

    #[test]
    fn what_is_left_has_to_be_able_to_go_on() {
        let degraded = group(&[(B, true), (C, false)]);
        assert!(degraded.steps(&MembersChange::Remove { member: B }).unwrap_err().contains("don't respond"));
        assert_eq!(degraded.steps(&MembersChange::Remove { member: C }), Ok(vec![Step::Vote(set(&[A, B]))]));
        assert!(group(&[]).steps(&MembersChange::Remove { member: A }).unwrap_err().contains("last"));
        assert_eq!(degraded.steps(&MembersChange::Remove { member: D }), Ok(Vec::new()));
        let many: Vec<_> = (2..=MEMBERS_MAX as u64).map(|id| (MemberId(id), true)).collect();
        assert!(group(&many).steps(&add(MemberId(8))).unwrap_err().contains("at most"));
    }

    #[test]
    fn a_leader_that_leaves_hands_over_first() {
        let three = group(&[(B, true), (C, false)]);
        assert_eq!(
            three.steps(&MembersChange::Remove { member: A }),
            Err("the group would lose its majority: of its 2 members then, 1 don't respond (".to_owned()
                + &C.to_string()
                + "); start or remove those first")
        );
        let three = group(&[(B, true), (C, true)]);
        let steps = three.steps(&MembersChange::Remove { member: A }).unwrap();
        assert!(matches!(steps[..], [Step::Transfer(to)] if to == B || to == C));
        let steps = three.steps(&replace(A, D)).unwrap();
        assert!(matches!(&steps[..], [Step::Learn(D, _), Step::Transfer(_)]));
    }

    #[test]
    fn the_one_with_most_of_the_log_succeeds() {
        let mut three = group(&[(B, true), (C, true)]);
        let position = |index| Some(atoll_raft::LogPosition { term: 1, index });
        three.members.get_mut(&B).unwrap().matched = position(9);
        three.members.get_mut(&C).unwrap().matched = position(7);
        assert_eq!(three.successor(None), Some(B));
        three.members.get_mut(&B).unwrap().last_ack = None;
        assert_eq!(three.successor(None), Some(C));
        assert_eq!(three.successor(Some(C)), None);
    }

    #[test]
    fn what_grows_needs_a_majority_with_room() {
        let three = group(&[(B, true), (C, true)]);
        assert!(three.has_room(&set(&[])));
        assert!(three.has_room(&set(&[B])));
        assert!(!three.has_room(&set(&[B, C])));
        // The full one would be needed…
        let degraded = group(&[(B, true), (C, false)]);
        assert!(!degraded.has_room(&set(&[B])));
        // …and here it isn't.
        assert!(degraded.has_room(&set(&[C])));
        assert!(degraded.has_room(&set(&[])));
        assert!(group(&[]).has_room(&set(&[])));
    }
}
