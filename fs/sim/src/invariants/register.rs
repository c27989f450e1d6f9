//! An attribute that all clients set and get is linearizable: as if each operation took effect at one moment between its
//! beginning and its end (Herlihy and Wing 1990).
//!
//! Every value is set once, so no search is needed (Gibbons and Korach 1997, "read-mapping is known"). The operations
//! that set or get one value take effect in a row, the setting one first: a *zone*, from the earliest end in it to the latest
//! beginning. If that is a stretch of time (forward), the value is the register's for all of it, and two such stretches may
//! not overlap; otherwise (backward) one moment is enough for all of it, which must not lie within another's stretch.

use std::collections::HashMap;
use std::time::Duration;

use crate::client::{Event, What};

#[derive(Debug)]
struct Zone {
    set_began: Duration,
    first_end: Duration,
    last_begin: Duration,
}

/// Checks a history. At first the register is 0.
///
/// # Errors
/// What is wrong.
pub fn check(events: &[Event]) -> Result<(), String> {
    let mut zones = HashMap::from([(
        0,
        Zone { set_began: Duration::ZERO, first_end: Duration::ZERO, last_begin: Duration::ZERO },
    )]);
    for event in events {
        if let What::Set(value) = event.what {
            let zone = Zone { set_began: event.began, first_end: event.ended, last_begin: event.began };
            if zones.insert(value, zone).is_some() {
                return Err(format!("{value:#x} was set twice"));
            }
        }
    }
    for event in events {
        if let What::Get(value) = event.what {
            let Some(zone) = zones.get_mut(&value) else {
                return Err(format!("client {} got {value:#x}, which nobody has set", event.client));
            };
            if event.ended < zone.set_began {
                return Err(format!("client {} got {value:#x} before it was set", event.client));
            }
            zone.first_end = zone.first_end.min(event.ended);
            zone.last_begin = zone.last_begin.max(event.began);
        }
    }
    let zones: Vec<(u64, Zone)> = zones.into_iter().collect();
    for (value, zone) in zones.iter().filter(|(_, zone)| zone.first_end < zone.last_begin) {
        for (other, inner) in zones.iter().filter(|(other, _)| other != value) {
            let (from, to) = match inner.first_end < inner.last_begin {
                true => (inner.first_end, inner.last_begin),
                false => (inner.last_begin, inner.first_end),
            };
            let forward = inner.first_end < inner.last_begin;
            let conflict = match forward {
                // Both are the register's value at once.
                true => from < zone.last_begin && zone.first_end < to,
                // The other one's moment would have to lie within.
                false => zone.first_end < from && to < zone.last_begin,
            };
            if conflict {
                return Err(format!(
                    "{value:#x} was the register's value from {:?} to {:?}, and so was {other:#x} in between ({from:?} to {to:?})",
                    zone.first_end, zone.last_begin
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::event;

    #[test]
    fn what_can_be_put_in_order_is_fine() {
        let events = [
            event(0, 1, 10, What::Set(1)),
            event(1, 2, 3, What::Get(0)),
            event(1, 4, 5, What::Get(1)),
            event(2, 6, 12, What::Set(2)),
            event(1, 7, 8, What::Get(1)),
            event(1, 9, 11, What::Get(2)),
            event(0, 13, 14, What::Get(2)),
        ];
        assert_eq!(check(&events), Ok(()));
    }

    #[test]
    fn what_went_back_in_time_is_found() {
        let stale = [event(0, 1, 2, What::Set(1)), event(1, 3, 4, What::Get(0))];
        assert!(check(&stale).is_err());
        let back =
            [event(0, 1, 20, What::Set(1)), event(1, 2, 3, What::Get(1)), event(1, 4, 5, What::Get(0))];
        assert!(check(&back).is_err());
        let lost = [event(0, 1, 2, What::Set(1)), event(0, 3, 4, What::Set(2)), event(1, 5, 6, What::Get(1))];
        assert!(check(&lost).is_err());
        assert!(check(&[event(0, 1, 2, What::Get(9))]).is_err());
        let early = [event(0, 1, 2, What::Get(9)), event(1, 3, 4, What::Set(9))];
        assert!(check(&early).is_err());
    }
}
