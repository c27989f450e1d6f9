//! Who reads the file that all append to finds the beginning of it; and who has opened it for that, all that was appended before.

use crate::client::{Event, RECORD_BYTES, What};

/// Checks each look against the content in the end: nothing that was appended changes any more.
///
/// # Errors
/// What is wrong.
pub fn check(events: &[Event], content: &[u8]) -> Result<(), String> {
    let mut appends = Vec::new();
    for (place, record) in content.chunks(RECORD_BYTES).enumerate() {
        let append =
            events.iter().find(|event| matches!(&event.what, What::Append(found) if found == record));
        appends.extend(append.map(|event| (event.ended, (place + 1) * RECORD_BYTES)));
    }
    for event in events {
        let What::Follow(opened, found) = &event.what else { continue };
        if !content.starts_with(found) {
            let wrong = found.iter().zip(content).position(|(a, b)| a != b).unwrap_or(content.len());
            return Err(format!(
                "client {} read {} bytes, until {:?}, which differ at {wrong} from what was appended",
                event.client,
                found.len(),
                event.ended
            ));
        }
        let before = appends.iter().filter(|(ended, _)| *ended < event.began).map(|(_, end)| *end).max();
        if let Some(end) = before.filter(|end| *opened && found.len() < *end) {
            return Err(format!(
                "client {} opened the file at {:?} and read {} bytes, of {end} that had been appended",
                event.client,
                event.began,
                found.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants;

    fn event(began: u64, ended: u64, what: What) -> Event {
        invariants::testing::event(0, began, ended, what)
    }

    #[test]
    fn it_finds_what_is_wrong() {
        let content: Vec<u8> = [[1; RECORD_BYTES], [2; RECORD_BYTES]].concat();
        let check = |look: Event| {
            let append = |record: u8, began, ended| event(began, ended, What::Append([record; RECORD_BYTES]));
            super::check(&[append(1, 0, 5), append(2, 6, 9), look], &content)
        };
        assert_eq!(check(event(6, 8, What::Follow(true, content[..RECORD_BYTES].to_vec()))), Ok(()));
        assert_eq!(check(event(10, 11, What::Follow(true, content.clone()))), Ok(()));
        assert_eq!(check(event(10, 11, What::Follow(false, content[..RECORD_BYTES].to_vec()))), Ok(()));
        let short = check(event(10, 11, What::Follow(true, content[..RECORD_BYTES].to_vec())));
        assert!(short.unwrap_err().contains("had been appended"));
        let zeroes = [content[..RECORD_BYTES].to_vec(), vec![0; 3]].concat();
        assert!(check(event(6, 8, What::Follow(false, zeroes))).unwrap_err().contains("differ at 16"));
    }
}
