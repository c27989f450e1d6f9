//! Replies with a file's size that the kernel's threads may not have processed yet. Pure.
//!
//! Whichever reply is processed first makes those void that were asked for before that: each one raises the inode's
//! `attr_version` (`fuse_change_attributes` in fs/fuse/inode.c of Linux 6.18). So a thread that was preempted between
//! its reply and that, for however long, leaves its older size in the place of a newer one that another thread is just
//! being told. Nothing says when a thread has processed a reply, but that it asks for something else, or that an
//! invalidation has made the reply void.

use std::time::Duration;

use tokio::time::Instant;

use super::NEVER_VOID;

/// Threads of one file that are told apart.
const THREADS_MAX: usize = 16;
/// For so long a reply may be pending as far as those are concerned who would do without pages for it.
pub const LATELY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Reply {
    /// 0 if it isn't known.
    thread: u32,
    /// The epoch in which it was asked for.
    asked: u64,
    /// `None`: of several ones.
    size: Option<u64>,
    told: Instant,
    /// This thread has written since, which makes it void by the time that the thread goes on.
    overtaken_by: Option<u32>,
}

impl Reply {
    fn may_replace(&self, size: u64, voided: u64) -> bool {
        self.asked >= voided && self.size != Some(size)
    }
}

/// Of one file.
#[derive(Debug, Default)]
pub struct Replies(Vec<Reply>);

impl Replies {
    /// The thread is told this size; `voided`: the last epoch whose invalidation is over. What no invalidation makes void
    /// isn't known here.
    pub fn told(&mut self, size: u64, (thread, asked): (u32, u64), voided: u64, now: Instant) {
        self.gone_on(thread);
        self.0.retain(|reply| reply.asked >= voided);
        if asked == NEVER_VOID {
            return;
        }
        if self.0.len() >= THREADS_MAX {
            let first = self.0.remove(0);
            if let Some(next) = self.0.first_mut() {
                // Whose they are isn't known any more.
                let size = next.size.filter(|size| first.size == Some(*size));
                *next = Reply { thread: 0, asked: next.asked.max(first.asked), size, ..*next };
            }
        }
        self.0.push(Reply { thread, asked, size: Some(size), told: now, overtaken_by: None });
    }

    /// The thread asks for something else.
    pub fn gone_on(&mut self, thread: u32) {
        if thread != 0 {
            self.0.retain(|reply| reply.thread != thread && reply.overtaken_by != Some(thread));
        }
    }

    /// The thread has written to the file, and is about to hear that it is done.
    pub fn written(&mut self, thread: u32) {
        for reply in self.0.iter_mut().filter(|_| thread != 0) {
            reply.overtaken_by.get_or_insert(thread);
        }
    }

    /// True if a thread may yet leave another size than this one.
    #[must_use]
    pub fn may_replace(&self, size: u64, voided: u64) -> bool {
        self.0.iter().any(|reply| reply.may_replace(size, voided))
    }

    /// The same, of one that was lately told to another thread than this one.
    #[must_use]
    pub fn may_lately_replace(&self, size: u64, thread: u32, voided: u64, now: Instant) -> bool {
        let is_pending = |reply: &Reply| {
            (thread == 0 || reply.thread != thread) && now.duration_since(reply.told) < LATELY
        };
        self.0.iter().any(|reply| is_pending(reply) && reply.may_replace(size, voided))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_pending_until_its_thread_goes_on_or_it_is_void() {
        let (mut replies, now) = (Replies::default(), Instant::now());
        assert!(!replies.may_replace(200, 0));
        replies.told(100, (1, 5), 0, now);
        assert!(replies.may_replace(200, 5) && !replies.may_replace(100, 5) && !replies.may_replace(200, 6));
        assert!(replies.may_lately_replace(200, 2, 5, now) && !replies.may_lately_replace(100, 2, 5, now));
        assert!(!replies.may_lately_replace(200, 2, 5, now + LATELY));
        assert!(!replies.may_lately_replace(200, 1, 5, now));
        replies.written(3);
        assert!(replies.may_lately_replace(200, 2, 5, now), "the writer may not have processed that either");
        replies.gone_on(3);
        assert!(!replies.may_lately_replace(200, 2, 5, now));
        replies.told(100, (1, 5), 0, now);
        replies.gone_on(2);
        assert!(replies.may_replace(200, 0));
        replies.gone_on(1);
        assert!(!replies.may_replace(200, 0));
        replies.told(100, (1, 5), 0, now);
        replies.told(200, (1, 5), 0, now);
        assert!(!replies.may_replace(200, 0), "it asked again, so it had processed the first one");
        replies.told(100, (0, 5), 0, now);
        replies.gone_on(0);
        assert!(replies.may_replace(200, 0), "nobody knows whose it was");
        let (mut replies, now) = (Replies::default(), Instant::now());
        replies.told(100, (1, NEVER_VOID), 0, now);
        assert!(!replies.may_replace(200, 0));
    }

    #[test]
    fn a_bounded_number_is_told_apart_and_none_forgotten() {
        let (mut replies, now) = (Replies::default(), Instant::now());
        for thread in 1..100 {
            replies.told(100, (thread, u64::from(thread)), 0, now);
        }
        assert_eq!(replies.0.len(), THREADS_MAX);
        assert!(
            !replies.may_replace(100, 0) && replies.may_replace(200, 99) && !replies.may_replace(200, 100)
        );
        replies.told(200, (100, 100), 0, now);
        for thread in 100..200 {
            replies.gone_on(thread);
        }
        assert!(replies.may_replace(200, 0) && !replies.may_replace(100, 0));
        replies.told(200, (100, 100), 100, now);
        assert_eq!(replies.0.len(), 1, "the others are void");
        for thread in 200..300 {
            replies.told(300, (thread, 100), 0, now);
        }
        assert!(replies.may_replace(200, 0) && replies.may_replace(300, 0));
    }
}
