//! What holds in every world, one file each. Operations in folders of their own check themselves as they go
//! ([`crate::client`]): each takes effect once, with one reply, whatever happens, and what was written is there.

pub mod appends;
pub mod counter;
pub mod follow;
pub mod names;
pub mod records;
pub mod register;
pub mod replicas;

/// Events of a history, for the tests of what is checked.
#[cfg(test)]
mod testing {
    use std::time::Duration;

    use crate::client::{Event, What};

    /// From one millisecond of the world to another.
    pub(super) fn event(client: usize, began: u64, ended: u64, what: What) -> Event {
        Event { client, began: Duration::from_millis(began), ended: Duration::from_millis(ended), what }
    }
}
