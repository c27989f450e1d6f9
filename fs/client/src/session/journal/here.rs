//! Carries mutations out on what is known here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atoll_core::attributes::{Attributes, FileKind, Timestamp};
use atoll_core::commands::{ClientOp, Context, Outcome, ops, projection};
use atoll_core::encode::{self, USUAL_BYTES};
use atoll_core::ids::{InodeId, journaled_inode};
use atoll_core::namespace::{Txn, execute_locally};
use atoll_core::query::{self, OpError, find_entry};
use atoll_core::store::{StoreError, Write};
use atoll_proto::metadata::{Answer, InodeRecords, Query};
use atoll_proto::queries;

use super::ops::{can_be_journaled, last_names_gone, name_removed, named};
use super::{ENTRIES_MAX, Entry, Keeping, Position, Refused, State, View};
use crate::arena::Origin;
use crate::metadata::{ClientError, Made};
use crate::origin;
use crate::session::mutations::{CarriedOut, repeats_badly};
use crate::session::{Asked, Inner, State as SessionState, clock, fate};

/// Inodes that the volume must have room for: beyond that nothing is made here, since what was made can't be refused any more.
const INODES_LEFT_MIN: u64 = 4 * ENTRIES_MAX as u64;
/// Directories that would take more answers than these aren't taken in.
const PARTS_MAX: usize = 32;
/// How long that may take.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(1);
/// A directory that can't be taken in is not asked for again for so long.
const ADOPT_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What became of taking a directory in.
enum Adopted {
    /// All of it was known already.
    Known,
    /// It is now.
    Now,
    /// It can't be.
    No,
}

/// What was carried out here, so far as it isn't in the journal's records yet.
pub(super) struct Done {
    pub outcome: Outcome,
    pub writes: Vec<Write>,
}

impl Keeping {
    /// Carries an operation out on what is known. `None`: that isn't enough, or it would be refused, which the service says
    /// better.
    pub(super) fn carry_out(
        &self,
        op: &ClientOp,
        context: &Context,
        busy: &HashMap<InodeId, u32>,
    ) -> Option<Done> {
        let view = View { cache: &self.cache, busy };
        let mut txn = Txn::open(&view).ok()?;
        let outcome = execute_locally(&mut txn, op, context).ok()?;
        let done = Done { writes: txn.into_writes(), outcome };
        (!matches!(done.outcome, Outcome::Refused(_))).then_some(done)
    }

    /// The inode that a name leads to, if that is known here.
    pub(super) fn find(&self, parent: InodeId, name: &[u8]) -> Result<Option<InodeId>, StoreError> {
        let txn = Txn::open(&self.cache)?;
        let Some(volume) = txn.superblock() else { return Err(StoreError::NotCached) };
        Ok(find_entry(&self.cache, volume.hash_key, parent, name)?.map(|found| found.ino))
    }

    fn describe(&self, directories: [Option<InodeId>; 2]) -> Vec<Attributes> {
        directories.into_iter().flatten().filter_map(|ino| self.cache.attributes(ino)).collect()
    }
}

impl Inner {
    /// Carries a mutation out here, if that can be: then it is in the journal, and committed before anything that is asked of
    /// the service after it.
    pub(in crate::session) fn carry_out_here(
        &self,
        op: &ClientOp,
        asked: &Asked,
    ) -> Option<(CarriedOut, Position)> {
        if !can_be_journaled(op) {
            return None;
        }
        let SessionState::Open(current) = *self.state.borrow() else { return None };
        if asked.is_void(fate(op), current) {
            return None;
        }
        let repeats_badly = repeats_badly(op).filter(|_| asked.origin.request != 0);
        if repeats_badly.is_some_and(|kind| self.unanswered.find(asked.origin.request, kind).is_some()) {
            // It has done so already, or a predecessor of this process has.
            return None;
        }
        let (volume, valid_until) = {
            let heard = self.heard.read();
            (heard.volume, heard.valid_until)
        };
        let boot = clock::since_boot();
        if boot >= valid_until || self.closing.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.journal.state.lock();
        let State { keeping, renaming, busy, carried_out, paused_until, .. } = &mut *state;
        let keeping = keeping.as_mut().filter(|keeping| keeping.current == current)?;
        if *renaming > 0 || boot < *paused_until || keeping.queue.len() >= ENTRIES_MAX {
            return None;
        }
        let sequence = keeping.next;
        let number = journaled_inode(current.id, sequence)?;
        let made;
        let (op, makes) = match op {
            ClientOp::Create(op) => {
                if volume.inodes_total.saturating_sub(volume.inodes_used) < INODES_LEFT_MIN {
                    return None;
                }
                made = ClientOp::from(ops::Create { ino: Some(number), ..op.clone() });
                keeping.cache.begin_inode(number);
                (&made, true)
            }
            op => (op, false),
        };
        let now = self.clock.now();
        let context = Context { session: current.id, now, journaled: Some(number) };
        // Its last name may only go once the service knows that it is open.
        let removed = name_removed(op).map(|(parent, name)| keeping.find(parent, name));
        let may_remove = match removed {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(ino)) => {
                let unheld = atoll_faults::planted("journal-open-unheld");
                unheld || ino.is_none_or(|ino| !self.open_files.lock().is_in_use(ino))
            }
        };
        let done = if may_remove { keeping.carry_out(op, &context, busy) } else { None };
        let entry = done.and_then(|done| {
            let origin = Origin {
                request: repeats_badly.map_or(0, |_| asked.origin.request),
                order: asked.origin.order,
            };
            let entry =
                self.append_entry(keeping, op, now, &done.outcome, (sequence, origin, repeats_badly))?;
            Some((entry, done))
        });
        let Some((entry, done)) = entry else {
            if makes {
                keeping.cache.end_inode(number);
            }
            return None;
        };
        keeping.next += 1;
        keeping.bytes += entry.bytes.len();
        keeping.cache.write(done.writes);
        let parents = keeping.describe(op.directories());
        if let Some(kind) = repeats_badly {
            // Before it can be sent: once it is committed it isn't in the ring any more, where a successor finds this as well.
            origin::is_first(kind);
            self.note_done(asked.origin.request, Some(kind), &done.outcome);
        }
        let is_alone = keeping.queue.is_empty();
        keeping.queue.push_back(entry);
        *carried_out += 1;
        drop(state);
        if is_alone {
            self.journal.work.notify_one();
        }
        let position = Position { epoch: current.epoch, sequence };
        Some((CarriedOut { outcome: done.outcome, parents, session: Some(current.id), time: now }, position))
    }

    /// Carries a mutation out here, if that can be, or can be once its directories are known.
    pub(in crate::session) async fn done_here(&self, op: &ClientOp, asked: &Asked) -> Option<CarriedOut> {
        let mut done = self.carry_out_here(op, asked);
        if done.is_none() && self.adopt_directories(op).await {
            done = self.carry_out_here(op, asked);
        }
        let (done, _) = done?;
        let mut is_news = false;
        for ino in last_names_gone(&done.outcome).into_iter().flatten() {
            is_news |= self.open_files.lock().release(ino);
        }
        if is_news {
            // Before the batch that the entry goes with, so that the file is freed along with it.
            self.tell_closed();
        }
        Some(done)
    }

    /// Records an entry where a successor finds it; `None` if there is no room.
    fn append_entry(
        &self,
        keeping: &Keeping,
        op: &ClientOp,
        time: Timestamp,
        outcome: &Outcome,
        (sequence, origin, repeats_badly): (u64, Origin, Option<u8>),
    ) -> Option<Entry> {
        let removed = |attributes: &&Attributes| attributes.nlink == 0;
        let [first, second] = outcome.described();
        let frees = first.filter(removed).or(second.filter(removed)).map(|attributes| attributes.ino);
        // The same bytes as a `JournalEntry`, without moving the operation into one.
        let bytes = encode::append(Vec::with_capacity(USUAL_BYTES), &(time, projection(outcome), frees, op));
        let told = match repeats_badly.filter(|_| origin.request != 0) {
            Some(kind) => encode::append(Vec::new(), &(kind, outcome)),
            None => Vec::new(),
        };
        let number = (keeping.current.id, sequence);
        let room = self.arena.append_to_journal(number, origin, &bytes, &told).ok()?;
        let inodes = [
            op.directories()[0],
            first.map(|attributes| attributes.ino),
            second.map(|attributes| attributes.ino),
        ];
        let (what, name) = named(op);
        Some(Entry { sequence, bytes, room, inodes, what, name })
    }

    /// Makes a file that is open from then on, here. `None`: see [`carry_out_here`](Self::carry_out_here).
    pub(in crate::session) fn make_here(self: &Arc<Self>, op: &ClientOp, asked: &Asked) -> Option<Made> {
        let (CarriedOut { outcome, parents, .. }, _) = self.carry_out_here(op, asked)?;
        let Outcome::Inode(attributes) = outcome else { return None };
        let ino = attributes.ino;
        self.open_files.lock().made_unheld(ino);
        let inner = Arc::clone(self);
        let made = Made::new(*attributes, move |kept| {
            if inner.open_files.lock().settle(ino, kept) {
                inner.close_notices.notify_one();
            }
        });
        Some(made.in_directories(parents))
    }

    /// Opens a file that is known to exist here, so that the service needn't be asked: it holds the file only when its last
    /// name is about to go.
    pub(in crate::session) fn open_known(&self, ino: InodeId) -> bool {
        let valid = clock::since_boot() < self.heard.read().valid_until;
        let state = self.journal.state.lock();
        let is_known = valid
            && state.renaming == 0
            && state
                .keeping
                .as_ref()
                .and_then(|keeping| keeping.cache.inode(ino))
                .is_some_and(|record| record.nlink > 0 && record.kind() == FileKind::File);
        is_known && self.open_files.lock().open_unheld(ino)
    }

    /// Answers a question from what is known here, if that is enough: then nothing in the journal has to be committed first.
    fn answer_here(&self, question: &Query) -> Option<Result<Answer, ClientError>> {
        let (is_exclusive, valid_until) = {
            let heard = self.heard.read();
            (heard.config.exclusive, heard.valid_until)
        };
        if !is_exclusive {
            return None;
        }
        let valid = clock::since_boot() < valid_until;
        let state = self.journal.state.lock();
        let State { keeping, renaming, busy, .. } = &*state;
        let keeping = keeping.as_ref().filter(|_| valid && *renaming == 0)?;
        let view = View { cache: &keeping.cache, busy };
        let answer = match question {
            Query::Lookup(queries::Lookup { parent, name }) => query::superblock(&view)
                .and_then(|volume| query::lookup(&view, volume.hash_key, *parent, name))
                .map(Answer::Inode),
            Query::GetAttr(queries::GetAttr { ino }) => {
                query::inode(&view, *ino).map(|record| Answer::Inode(record.attributes(*ino)))
            }
            Query::GetXattr(queries::GetXattr { ino, name }) => {
                query::xattr(&view, *ino, name).map(Answer::Bytes)
            }
            Query::ListXattr(queries::ListXattr { ino }) => {
                query::xattr_names(&view, *ino).map(Answer::Bytes)
            }
            Query::ReadDir(queries::ReadDir { ino, cookie, bytes_max, plus }) => {
                query::directory_page(&view, *ino, *cookie, *plus, *bytes_max).map(Answer::Directory)
            }
            Query::ReadLink(queries::ReadLink { ino }) => query::link_target(&view, *ino).map(Answer::Bytes),
            _ => return None,
        };
        match answer {
            Ok(answer) => Some(Ok(answer)),
            Err(OpError::Refused(error)) => Some(Err(error.into())),
            Err(OpError::Store(_)) => None,
        }
    }

    /// Takes the directories in that an operation changes names in, so that it and those after it can be carried out here.
    /// False if there is nothing to gain.
    pub(in crate::session) async fn adopt_directories(&self, op: &ClientOp) -> bool {
        if !can_be_journaled(op) {
            return false;
        }
        let mut adopted = false;
        for ino in op.directories().into_iter().flatten() {
            match self.adopt(ino, PARTS_MAX).await {
                Adopted::Known => {}
                Adopted::Now => adopted = true,
                Adopted::No => return false,
            }
        }
        adopted
    }

    /// Answers a question from what is known here, if that is enough, or once its directory is known.
    pub(in crate::session) async fn answered_here(
        &self,
        question: &Query,
    ) -> Option<Result<Answer, ClientError>> {
        let answer = self.answer_here(question);
        match question {
            // Who lists a directory from its beginning uses what it names. Of a large one the first entries don't wait for the
            // last.
            Query::ReadDir(queries::ReadDir { ino, cookie: 0, .. }) if answer.is_none() => {
                match self.adopt(*ino, 1).await {
                    Adopted::Now => self.answer_here(question),
                    Adopted::Known | Adopted::No => None,
                }
            }
            _ => answer,
        }
    }

    /// Takes a directory in, if that takes at most so many answers.
    async fn adopt(&self, ino: InodeId, parts_max: usize) -> Adopted {
        let valid = clock::since_boot() < self.heard.read().valid_until;
        if !valid {
            return Adopted::No;
        }
        let now = clock::since_boot();
        let (begun, forgotten) = {
            let mut state = self.journal.state.lock();
            let begun = state.begun;
            if state.renaming > 0 || state.busy.contains_key(&ino) {
                return Adopted::No;
            }
            let Some(keeping) = &mut state.keeping else { return Adopted::No };
            if keeping.cache.knows_entries(ino) {
                return Adopted::Known;
            }
            keeping.refused.retain(|_, refused| now.saturating_sub(refused.since) < ADOPT_AGAIN_AFTER);
            if keeping.refused.get(&ino).is_some_and(|refused| refused.parts_max >= parts_max) {
                return Adopted::No;
            }
            let forgotten = keeping.cache.forgotten();
            // Nothing that is carried out here changes it meanwhile.
            *state.busy.entry(ino).or_default() += 1;
            (begun, forgotten)
        };
        let busy = Busy { inner: self, ino };
        // What takes longer than this the mutation itself waits for, as long as it may.
        let parts = tokio::time::timeout(ADOPT_TIMEOUT, self.records_of(ino, parts_max)).await.ok().flatten();
        drop(busy);
        let mut state = self.journal.state.lock();
        let is_current = state.begun == begun;
        let Some(keeping) = &mut state.keeping else { return Adopted::No };
        match parts {
            Some(_) if !is_current || keeping.cache.forgotten() != forgotten => return Adopted::No,
            Some(parts) => {
                keeping.cache.learn(ino, parts);
                if keeping.cache.knows(ino) {
                    return Adopted::Now;
                }
                // It alone is more than may be kept.
            }
            None => {}
        }
        keeping.refused.insert(ino, Refused { since: now, parts_max });
        Adopted::No
    }

    /// Asks for everything about an inode. `None`: it is too much, or it can't be told.
    async fn records_of(&self, ino: InodeId, parts_max: usize) -> Option<Vec<InodeRecords>> {
        let (mut parts, mut from) = (Vec::new(), 0);
        while parts.len() < parts_max {
            let answer = self.question(&queries::Records { ino, from }.into()).await.ok()?;
            let Answer::Records(part) = answer else { return None };
            let next = part.next;
            parts.push(part);
            match next {
                Some(next) if next > from => from = next,
                Some(_) => return None,
                None => return Some(parts),
            }
        }
        None
    }
}

/// Keeps an inode from being changed here while it is asked for.
struct Busy<'a> {
    inner: &'a Inner,
    ino: InodeId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.journal.state.lock();
        if let Some(count) = state.busy.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                state.busy.remove(&self.ino);
            }
        }
    }
}
