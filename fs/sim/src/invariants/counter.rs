//! Numbers that all count on, each under a lock of its own: none counts from a value that another one has counted from, and who
//! opens the file finds what was counted before.

use std::collections::HashMap;

use crate::client::{Event, What};

/// Checks the counts that were answered. One that failed may have counted, too.
///
/// # Errors
/// What is wrong.
pub fn check(events: &[Event]) -> Result<(), String> {
    let mut counts: HashMap<(usize, u64), &Event> = HashMap::new();
    for event in events {
        if let What::Count(counter, value) = event.what
            && let Some(other) = counts.insert((counter, value), event)
        {
            return Err(format!(
                "clients {} and {} both counted from {value} on number {counter}, until {:?} and {:?}",
                other.client, event.client, other.ended, event.ended
            ));
        }
    }
    for event in events {
        let (counter, value, what) = match event.what {
            What::Count(counter, value) => (counter, value, "counted from"),
            What::Peek(counter, value) => (counter, value, "found"),
            _ => continue,
        };
        let earlier = counts.iter().find(|((other, counted), earlier)| {
            *other == counter && *counted >= value && earlier.ended < event.began
        });
        if let Some(((_, counted), earlier)) = earlier {
            return Err(format!(
                "client {} {what} {value} in number {counter} from {:?} on, when client {} had counted from {counted} until {:?}",
                event.client, event.began, earlier.client, earlier.ended
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::testing::event;

    #[test]
    fn it_finds_what_is_wrong() {
        let good = [
            event(0, 0, 5, What::Count(0, 0)),
            event(1, 1, 9, What::Count(0, 1)),
            // One that failed has counted from 2.
            event(0, 10, 12, What::Count(0, 3)),
            event(2, 10, 12, What::Peek(0, 2)),
            event(2, 13, 14, What::Peek(0, 4)),
        ];
        assert_eq!(check(&good), Ok(()));
        let twice = [event(0, 0, 5, What::Count(0, 0)), event(1, 1, 9, What::Count(0, 0))];
        assert!(check(&twice).unwrap_err().contains("both"));
        let back = [event(0, 0, 5, What::Count(0, 1)), event(1, 6, 9, What::Count(0, 0))];
        assert!(check(&back).unwrap_err().contains("counted from 0"));
        let old = [event(0, 0, 5, What::Count(0, 1)), event(1, 6, 9, What::Peek(0, 1))];
        assert!(check(&old).unwrap_err().contains("found 1"));
    }
}
