//! Each append is in the file once, whole; and one that began after another one was answered comes after it.

use std::collections::HashMap;

use crate::client::{Event, RECORD_BYTES, What};

/// Checks the content of the file that all clients appended to. All appends that were begun were answered.
///
/// # Errors
/// What is wrong.
pub fn check(events: &[Event], content: &[u8]) -> Result<(), String> {
    let mut places = HashMap::new();
    for (place, record) in content.chunks(RECORD_BYTES).enumerate() {
        if places.insert(record, place).is_some() {
            return Err(format!("the record at {} was appended twice", place * RECORD_BYTES));
        }
    }
    let mut appends = Vec::new();
    for event in events {
        if let What::Append(record) = &event.what {
            let Some(place) = places.remove(record.as_slice()) else {
                return Err(format!("a record of client {} that was appended is missing", event.client));
            };
            appends.push((event, place));
        }
    }
    if !places.is_empty() {
        return Err(format!("{} records were never appended", places.len()));
    }
    for (first, place) in &appends {
        for (second, later) in &appends {
            if first.ended < second.began && place > later {
                return Err(format!("record {later} was appended after record {place} was answered"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants;

    fn event(record: u8, began: u64, ended: u64) -> Event {
        invariants::testing::event(0, began, ended, What::Append([record; RECORD_BYTES]))
    }

    #[test]
    fn it_finds_what_is_wrong() {
        let events = [event(1, 0, 5), event(2, 3, 9), event(3, 10, 11)];
        let file = |records: &[u8]| -> Vec<u8> {
            records.iter().flat_map(|record| [*record; RECORD_BYTES]).collect()
        };
        assert_eq!(check(&events, &file(&[1, 2, 3])), Ok(()));
        assert_eq!(check(&events, &file(&[2, 1, 3])), Ok(()));
        assert!(check(&events, &file(&[3, 2, 1])).unwrap_err().contains("after"));
        assert!(check(&events, &file(&[1, 2, 2, 3])).unwrap_err().contains("twice"));
        assert!(check(&events, &file(&[1, 3])).unwrap_err().contains("missing"));
        assert!(check(&events, &file(&[1, 2, 3, 4])).unwrap_err().contains("never"));
    }
}
