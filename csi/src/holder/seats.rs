//! Who is to lead among the mount hosts of a node. Pure.

use std::collections::BTreeMap;

/// A mount host that is connected to the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// When it was started (milliseconds of the machine's boot time).
    pub started_ms: u64,
    /// It leads: it has all mounts, and serves them.
    pub leading: bool,
    /// It said that it can't serve them.
    pub unfit: bool,
}

/// The mount hosts, by the numbers of their connections.
#[derive(Clone, Debug, Default)]
pub struct Seats(pub BTreeMap<u64, Seat>);

impl Seats {
    /// Who is to lead: the one that was started last, as an upgrade wants it, unless it can't serve and another one may.
    /// When each can't, the one that was started last all the same: mounts that wait for it are better than none.
    pub fn turn(&self) -> Option<u64> {
        let rank = |(number, seat): &(&u64, &Seat)| (!seat.unfit, seat.started_ms, **number);
        self.0.iter().max_by_key(rank).map(|(number, _)| *number)
    }

    /// Whether somebody else than the holder has all mounts.
    pub fn has_leader(&self) -> bool {
        self.0.values().any(|seat| seat.leading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(seats: &[(u64, u64, bool, bool)]) -> Seats {
        let seat = |&(number, started_ms, leading, unfit)| (number, Seat { started_ms, leading, unfit });
        Seats(seats.iter().map(seat).collect())
    }

    #[test]
    fn the_last_one_to_start_is_to_lead_in_whichever_order_they_come() {
        assert_eq!(seats(&[]).turn(), None);
        assert_eq!(seats(&[(1, 50, true, false)]).turn(), Some(1));
        // The old one leads; after the holder's restart it comes second.
        assert_eq!(seats(&[(1, 50, true, false), (2, 90, false, false)]).turn(), Some(2));
        assert_eq!(seats(&[(1, 90, false, false), (2, 50, true, false)]).turn(), Some(1));
        assert_eq!(seats(&[(1, 50, true, false), (2, 50, false, false)]).turn(), Some(2));
    }

    #[test]
    fn one_that_cannot_serve_leaves_it_to_another_one_once() {
        assert_eq!(seats(&[(1, 50, false, false), (2, 90, true, true)]).turn(), Some(1));
        assert_eq!(seats(&[(2, 90, true, true)]).turn(), Some(2), "there is no other one");
        assert_eq!(seats(&[(1, 50, true, true), (2, 90, false, true)]).turn(), Some(2));
    }

    #[test]
    fn the_mounts_have_another_keeper_while_somebody_leads() {
        assert!(!seats(&[]).has_leader());
        assert!(!seats(&[(1, 50, false, false)]).has_leader());
        assert!(seats(&[(1, 50, false, false), (2, 40, true, false)]).has_leader());
    }
}
