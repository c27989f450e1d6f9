//! Which files this session holds open, as the leader is to know it: an open file is kept when its last name
//! goes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use atoll_core::ids::InodeId;

/// Files named in one message.
pub const FILES_PER_MESSAGE_MAX: usize = 4096;

/// Files that are retained at most; of more the one that was closed first is told closed.
pub const RETAINED_MAX: usize = 4096;

/// The files, and those that the leader has still to be told are closed.
#[derive(Debug, Default)]
pub struct OpenFiles {
    open: HashSet<InodeId>,
    /// Those that were made, and that their makers haven't taken yet. They are open, whoever opens and closes them by their
    /// names meanwhile.
    made: HashSet<InodeId>,
    closed: BTreeSet<InodeId>,
    /// Those of the open ones that the leader is known to hold for this session.
    held: HashSet<InodeId>,
    /// Those of the open ones that the leader doesn't hold and needn't, since they have names that only this client can take
    /// away: it has the leader hold them before that.
    unheld: HashSet<InodeId>,
    /// Those that are closed and that the leader isn't told of, since it may as well hold them on: by when they were closed,
    /// counted up. Of a volume for one mount only: nobody else asks whether they are open.
    retained: BTreeMap<u64, InodeId>,
    retained_at: HashMap<InodeId, u64>,
    retained_count: u64,
    /// Files that are being made to be opened, by when they were begun, counted from 1.
    making: BTreeSet<u64>,
    begun: u64,
    /// A leader wants to be told everything: the last one that was begun when that was heard, and the leader's term.
    wanted: Option<(u64, u64)>,
}

impl OpenFiles {
    /// The file is open (or about to be); true if it wasn't before.
    pub fn open(&mut self, ino: InodeId) -> bool {
        let new = self.open.insert(ino);
        if new {
            // A notice that was not sent yet would undo what the leader is told now.
            self.closed.remove(&ino);
            self.forget_retained(ino);
        }
        new
    }

    /// What a predecessor of this process has left: files that are `open` here, those that the leader has said it holds, and
    /// those of them that were made and may still be taken by who asked for them. All others that it holds are closed.
    /// `held_are_all`: it has said all, so the others have names that only this client can take away.
    pub fn inherit(
        &mut self,
        open: impl IntoIterator<Item = InodeId>,
        held: &[InodeId],
        made: &[InodeId],
        held_are_all: bool,
    ) {
        self.open.extend(open);
        if held_are_all {
            self.unheld.extend(self.open.iter().filter(|ino| !held.contains(ino)));
        }
        for ino in held {
            if self.open.contains(ino) {
                self.held.insert(*ino);
            } else if !made.contains(ino) {
                self.closed.insert(*ino);
            }
        }
    }

    /// The leader has said that it holds the file, in the present session.
    pub fn is_held(&mut self, ino: InodeId) {
        self.unheld.remove(&ino);
        if self.open.contains(&ino) {
            self.held.insert(ino);
        }
    }

    /// Opens a file that has a name which only this client can take away. False if it is open already, which the leader may
    /// be about to be told.
    pub fn open_unheld(&mut self, ino: InodeId) -> bool {
        if self.open.contains(&ino) || self.made.contains(&ino) {
            return self.unheld.contains(&ino);
        }
        self.closed.remove(&ino);
        self.open.insert(ino);
        self.unheld.insert(ino)
    }

    /// A file was made, as with [`made`](Self::made), that the leader doesn't hold.
    pub fn made_unheld(&mut self, ino: InodeId) {
        self.made(ino);
        self.unheld.insert(ino);
    }

    /// The open files that the leader doesn't hold.
    #[must_use]
    pub fn unheld(&self) -> Vec<InodeId> {
        self.unheld.iter().copied().collect()
    }

    /// Whether the file is open, or was just made.
    #[must_use]
    pub fn is_in_use(&self, ino: InodeId) -> bool {
        self.open.contains(&ino) || self.made.contains(&ino)
    }

    /// As [`open`](Self::open), if the leader holds the file, so that it needn't be asked; false if it may not.
    pub fn open_again(&mut self, ino: InodeId) -> bool {
        if self.forget_retained(ino) {
            self.held.insert(ino);
            self.open.insert(ino);
        }
        self.open.contains(&ino) && self.held.contains(&ino)
    }

    /// The file's last handle is closed; true if there is something new to tell. `retain`: it has a name, and as long as it
    /// has, nobody needs to be told.
    pub fn close(&mut self, ino: InodeId, retain: bool) -> bool {
        if !self.open.remove(&ino) || self.made.contains(&ino) {
            return false;
        }
        if self.unheld.remove(&ino) {
            return false;
        }
        if !(self.held.remove(&ino) && retain) {
            self.closed.insert(ino);
            return true;
        }
        self.retained_count += 1;
        self.retained.insert(self.retained_count, ino);
        self.retained_at.insert(ino, self.retained_count);
        if atoll_faults::planted("retained-told-closed") {
            return self.closed.insert(ino);
        }
        let oldest = (self.retained.len() > RETAINED_MAX).then(|| self.retained.pop_first()).flatten();
        oldest.is_some_and(|(_, oldest)| {
            self.retained_at.remove(&oldest);
            self.closed.insert(oldest)
        })
    }

    /// A name goes, and the file that it names should go with it if nobody has it open: what is retained is told closed. True
    /// if there is something new to tell.
    pub fn release_retained(&mut self) -> bool {
        self.retained_at.clear();
        let retained = std::mem::take(&mut self.retained);
        let is_news = !retained.is_empty();
        self.closed.extend(retained.into_values());
        is_news
    }

    /// The same of one file, whose last name has gone.
    pub fn release(&mut self, ino: InodeId) -> bool {
        self.forget_retained(ino) && self.closed.insert(ino)
    }

    /// The session is lost: no leader holds anything for it.
    pub fn session_lost(&mut self) {
        self.held.clear();
        self.unheld.clear();
        self.retained.clear();
        self.retained_at.clear();
    }

    fn forget_retained(&mut self, ino: InodeId) -> bool {
        let at = self.retained_at.remove(&ino);
        at.is_some_and(|at| self.retained.remove(&at).is_some())
    }

    /// The file was made by this client, which holds it; its maker has still to take it.
    pub fn made(&mut self, ino: InodeId) {
        self.made.insert(ino);
        self.closed.remove(&ino);
        self.forget_retained(ino);
    }

    /// Its maker takes it, and has it open; or has gone away. True if there is something new to tell.
    pub fn settle(&mut self, ino: InodeId, kept: bool) -> bool {
        self.made.remove(&ino);
        if kept {
            self.open.insert(ino);
        }
        let is_news = !self.open.contains(&ino) && !self.unheld.remove(&ino);
        if is_news {
            self.closed.insert(ino);
        }
        is_news
    }

    /// A file is about to be made, to be opened. Its number is known with the outcome only.
    pub fn begin_making(&mut self) -> u64 {
        self.begun += 1;
        self.making.insert(self.begun);
        self.begun
    }

    /// What became of it is known; if it was made it is among the open ones. True if a leader waits for that.
    pub fn end_making(&mut self, number: u64) -> bool {
        self.making.remove(&number);
        self.wanted.is_some_and(|(last, _)| !self.is_making(last))
    }

    /// The leader of this term wants to be told all open files. True if that can be done now: not while a file may have been
    /// made under a leader before it, which this one would take for one that nobody holds.
    pub fn may_tell_all(&mut self, term: u64) -> bool {
        let last = match self.wanted {
            Some((last, of)) if of == term => last,
            _ => self.begun,
        };
        let may = !self.is_making(last);
        self.wanted = if may { None } else { Some((last, term)) };
        may
    }

    fn is_making(&self, last: u64) -> bool {
        self.making.first().is_some_and(|first| *first <= last)
    }

    /// True if the leader is to hold it: it is open, or retained.
    #[must_use]
    pub fn is_open(&self, ino: InodeId) -> bool {
        self.open.contains(&ino) || self.made.contains(&ino) || self.retained_at.contains_key(&ino)
    }

    /// The next closed files to tell of, as many as fit in a message.
    pub fn take_closed(&mut self) -> Vec<InodeId> {
        let next = self.closed.iter().nth(FILES_PER_MESSAGE_MAX).copied();
        let later = next.map_or_else(BTreeSet::new, |next| self.closed.split_off(&next));
        std::mem::replace(&mut self.closed, later).into_iter().collect()
    }

    /// They could not be told; those that were opened again meanwhile need not be.
    pub fn put_back(&mut self, closed: Vec<InodeId>) {
        let still: Vec<_> = closed.into_iter().filter(|ino| !self.is_open(*ino)).collect();
        self.closed.extend(still);
    }

    /// The leader was told that these are open. Those that were closed while it was told are to be told closed, again
    /// if need be: that notice may have come first.
    pub fn told_open(&mut self, told: &[InodeId]) {
        for ino in told {
            if !self.is_open(*ino) {
                self.closed.insert(*ino);
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
        let open = self.open.union(&self.made).copied().filter(|ino| !self.unheld.contains(ino));
        let all: Vec<InodeId> = open.chain(self.retained.values().copied()).collect();
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
        assert!(files.close(A, false));
        assert!(!files.close(A, false));
        files.close(B, false);
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
        files.close(A, false);
        assert_eq!(files.take_closed(), [A], "this notice overtakes the message");
        files.told_open(&told);
        assert!(files.has_closed());
        assert_eq!(files.take_closed(), [A]);
        assert!(!files.has_closed());
    }

    #[test]
    fn what_is_made_is_open_until_its_maker_closes_it_or_goes_away() {
        let mut files = OpenFiles::default();
        files.made(A);
        // By its name.
        assert!(files.open(A));
        assert!(!files.close(A, false), "its maker has it");
        assert!(files.is_open(A));
        assert_eq!(files.messages(), [[A]]);
        assert!(!files.settle(A, true));
        assert!(files.close(A, false));
        files.made(B);
        files.open(B);
        assert!(!files.settle(B, false), "somebody else has it open");
        assert!(files.close(B, false));
        files.made(B);
        assert!(files.settle(B, false));
        assert_eq!(files.take_closed(), [A, B]);
    }

    #[test]
    fn a_new_leader_is_told_once_all_is_known_that_was_made_under_the_old_one() {
        let mut files = OpenFiles::default();
        assert!(files.may_tell_all(1));
        let (first, second) = (files.begin_making(), files.begin_making());
        assert!(!files.end_making(first), "nobody waits for it");
        assert!(!files.may_tell_all(2));
        // Begun after the new leader was heard of, so it is made under that one, which knows.
        let third = files.begin_making();
        assert!(!files.may_tell_all(2));
        assert!(!files.may_tell_all(3), "now under the one before this");
        assert!(!files.end_making(second));
        assert!(files.end_making(third));
        assert!(files.may_tell_all(3));
        let fourth = files.begin_making();
        assert!(!files.end_making(fourth));
    }

    #[test]
    fn what_is_retained_is_opened_again_until_a_name_goes() {
        let mut files = OpenFiles::default();
        files.open(A);
        assert!(!files.open_again(A), "the leader has not said yet that it holds it");
        files.is_held(A);
        assert!(files.open_again(A));
        assert!(!files.close(A, true));
        assert_eq!(files.messages(), [[A]], "a new leader is to hold it");
        files.told_open(&[A]);
        assert!(!files.has_closed() && files.open_again(A), "the leader holds it on");
        files.close(A, true);
        assert!(files.release_retained() && !files.open_again(A));
        assert_eq!(files.take_closed(), [A]);

        files.open(B);
        assert!(files.close(B, true), "nobody has said that it is held: it is told closed");
    }

    #[test]
    fn what_has_no_name_or_belongs_to_a_lost_session_is_not_retained() {
        let mut files = OpenFiles::default();
        for ino in [A, B] {
            files.open(ino);
            files.is_held(ino);
        }
        files.close(A, true);
        assert!(files.release(A) && !files.release(A) && !files.release(B), "B is open");
        assert_eq!(files.take_closed(), [A]);
        assert!(files.close(B, false));
        assert_eq!(files.take_closed(), [B]);
        for ino in [A, B] {
            files.open(ino);
            files.is_held(ino);
        }
        files.close(A, true);
        files.session_lost();
        assert!(
            !files.open_again(A) && !files.open_again(B),
            "B is open, which the new session's leader has yet to be told"
        );
        assert_eq!(files.messages(), [[B]]);
    }

    #[test]
    fn a_successor_holds_what_is_open_and_tells_the_rest_closed() {
        let (retained, made) = (InodeId(12), InodeId(13));
        let mut files = OpenFiles::default();
        files.inherit([A, B], &[A, retained, made], &[made], false);
        assert!(files.is_open(A) && files.is_open(B));
        assert!(files.open_again(A) && !files.open_again(B), "the leader didn't know of the second");
        assert_eq!(files.take_closed(), [retained]);
    }

    #[test]
    fn who_alone_can_take_a_name_away_has_files_open_that_the_leader_does_not_hold() {
        let mut files = OpenFiles::default();
        files.made_unheld(A);
        assert!(!files.settle(A, true) && files.is_in_use(A));
        assert!(files.open_unheld(B) && files.open_unheld(B));
        assert_eq!(files.messages(), vec![Vec::<InodeId>::new()]);
        assert!(!files.open_again(B), "the leader doesn't hold it");
        // Its name is about to go.
        files.is_held(B);
        assert_eq!((files.unheld(), files.messages().concat()), (vec![A], vec![B]));
        assert!(!files.open_unheld(B), "the leader holds it from now on");
        assert!(!files.close(A, true) && !files.has_closed(), "there is nothing to tell");
        assert!(files.close(B, false));
        files.made_unheld(A);
        assert!(!files.settle(A, false) && !files.is_in_use(A), "who asked for it has gone away");
        // In another session somebody else can take names away.
        files.open_unheld(A);
        files.session_lost();
        assert_eq!(files.messages().concat(), [A]);
        let mut files = OpenFiles::default();
        files.inherit([A, B], &[A], &[], true);
        assert_eq!(files.unheld(), [B]);
    }

    #[test]
    fn as_many_are_retained_as_may_be() {
        let mut files = OpenFiles::default();
        let close = |files: &mut OpenFiles, ino| {
            files.open(InodeId(ino));
            files.is_held(InodeId(ino));
            files.close(InodeId(ino), true)
        };
        assert!((0..RETAINED_MAX as u64).all(|ino| !close(&mut files, ino)));
        assert!(!close(&mut files, 0), "the last one that was closed now");
        assert!(close(&mut files, RETAINED_MAX as u64));
        assert_eq!(files.take_closed(), [InodeId(1)]);
        assert!(files.open_again(InodeId(0)) && !files.open_again(InodeId(1)));
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
