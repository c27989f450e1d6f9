//! Which files this session holds open, as the leader is to know it: an open file is kept when its last name
//! goes. Pure.

use std::collections::{HashSet, VecDeque};

use atoll_core::ids::InodeId;

/// Files named in one message.
pub const FILES_PER_MESSAGE_MAX: usize = 4096;

/// The files, and those that the leader has still to be told are closed.
#[derive(Debug, Default)]
pub struct OpenFiles {
    open: HashSet<InodeId>,
    closed: VecDeque<InodeId>,
}

impl OpenFiles {
    /// The file is open (or about to be); true if it wasn't before.
    pub fn open(&mut self, ino: InodeId) -> bool {
        let new = self.open.insert(ino);
        if new {
            // A notice that was not sent yet would undo what the leader is told now.
            self.closed.retain(|closed| *closed != ino);
        }
        new
    }

    /// The file's last handle is closed; true if there is something new to tell.
    pub fn close(&mut self, ino: InodeId) -> bool {
        let known = self.open.remove(&ino);
        if known {
            self.closed.push_back(ino);
        }
        known
    }

    /// True if it is open.
    #[must_use]
    pub fn is_open(&self, ino: InodeId) -> bool {
        self.open.contains(&ino)
    }

    /// The next closed files to tell of, as many as fit in a message.
    pub fn take_closed(&mut self) -> Vec<InodeId> {
        let count = self.closed.len().min(FILES_PER_MESSAGE_MAX);
        self.closed.drain(..count).collect()
    }

    /// They could not be told; those that were opened again meanwhile need not be.
    pub fn put_back(&mut self, closed: Vec<InodeId>) {
        for ino in closed.into_iter().rev() {
            if !self.open.contains(&ino) {
                self.closed.push_front(ino);
            }
        }
    }

    /// The leader was told that these are open. Those that were closed while it was told are to be told closed, again
    /// if need be: that notice may have come first.
    pub fn told_open(&mut self, told: &[InodeId]) {
        for ino in told {
            if !self.open.contains(ino) && !self.closed.contains(ino) {
                self.closed.push_back(*ino);
            }
        }
    }

    /// True if the leader has still to be told of closed files.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// All open files, in messages; there is at least one message. A new leader that hears this knows nothing
    /// of files that were closed before.
    #[must_use]
    pub fn messages(&self) -> Vec<Vec<InodeId>> {
        let all: Vec<InodeId> = self.open.iter().copied().collect();
        if all.is_empty() {
            return vec![Vec::new()];
        }
        all.chunks(FILES_PER_MESSAGE_MAX).map(<[InodeId]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeId = InodeId(10);
    const B: InodeId = InodeId(11);

    #[test]
    fn a_file_that_is_opened_again_is_not_told_closed() {
        let mut files = OpenFiles::default();
        assert!(files.open(A));
        assert!(!files.open(A));
        files.open(B);
        assert!(files.close(A));
        assert!(!files.close(A));
        files.close(B);
        files.open(A);
        assert_eq!(files.take_closed(), [B]);
        files.open(B);
        files.put_back(vec![B]);
        assert!(files.take_closed().is_empty());
        assert!(files.is_open(A));
    }

    #[test]
    fn what_is_closed_while_a_new_leader_is_told_is_told_closed_after_that() {
        let mut files = OpenFiles::default();
        files.open(A);
        files.open(B);
        let told: Vec<InodeId> = files.messages().concat();
        files.close(A);
        assert_eq!(files.take_closed(), [A], "this notice overtakes the message");
        files.told_open(&told);
        assert!(files.has_closed());
        assert_eq!(files.take_closed(), [A]);
        assert!(!files.has_closed());
    }

    #[test]
    fn all_are_told_in_bounded_messages() {
        let mut files = OpenFiles::default();
        assert_eq!(files.messages(), vec![Vec::<InodeId>::new()]);
        for number in 0..=FILES_PER_MESSAGE_MAX as u64 {
            files.open(InodeId(number));
        }
        let messages = files.messages();
        assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [FILES_PER_MESSAGE_MAX, 1]);
    }
}
