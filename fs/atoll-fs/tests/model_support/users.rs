//! Threads that are different users and carry calls out on two trees.

use std::path::Path;
use std::sync::mpsc;

use super::calls::{Call, Seen, Tree};

enum Order {
    Run(Call),
    CloseHandles,
}

struct User {
    orders: Option<mpsc::Sender<Order>>,
    answers: mpsc::Receiver<(Seen, Seen)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Threads that are different users; each has handles of its own.
pub struct Users(Vec<User>);

impl Users {
    /// root, and two users of whom one is in the other's group.
    pub const COUNT: usize = 3;

    /// Starts the threads on both trees.
    pub fn start(ours: &Path, reference: &Path) -> Users {
        let identities: [(u32, u32, &[u32]); Users::COUNT] =
            [(0, 0, &[]), (1001, 1001, &[1002]), (1002, 1002, &[])];
        let users = identities.map(|(uid, gid, groups)| {
            let (orders, receiver) = mpsc::channel::<Order>();
            let (sender, answers) = mpsc::channel();
            let mut trees = [ours, reference].map(Tree::new);
            let groups = groups.to_vec();
            let thread = std::thread::spawn(move || {
                become_user(uid, gid, &groups);
                while let Ok(order) = receiver.recv() {
                    match order {
                        Order::Run(call) => {
                            let [mine, theirs] = trees.each_mut().map(|tree| tree.run(&call));
                            sender.send((mine, theirs)).unwrap();
                        }
                        Order::CloseHandles => {
                            for tree in &mut trees {
                                (0..=u8::MAX).for_each(|number| tree.close(number));
                            }
                            sender.send((Ok(Vec::new()), Ok(Vec::new()))).unwrap();
                        }
                    }
                }
                for tree in &mut trees {
                    (0..=u8::MAX).for_each(|number| tree.close(number));
                }
            });
            User { orders: Some(orders), answers, thread: Some(thread) }
        });
        Users(users.into())
    }

    /// Runs a call as a user on both trees.
    pub fn run(&mut self, user: usize, call: &Call) -> (Seen, Seen) {
        let user = &self.0[user];
        user.orders.as_ref().unwrap().send(Order::Run(call.clone())).unwrap();
        user.answers.recv_timeout(crate::common::TIMEOUT).unwrap_or_else(|_| panic!("{call:?} hangs"))
    }

    /// Closes every handle.
    pub fn close_handles(&mut self) {
        for user in &self.0 {
            user.orders.as_ref().unwrap().send(Order::CloseHandles).unwrap();
            let _ = user.answers.recv_timeout(crate::common::TIMEOUT).expect("closing hangs");
        }
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        for user in &mut self.0 {
            user.orders.take();
            // A thread that hangs in a call must not hang the test's clean-up as well.
            if !std::thread::panicking()
                && let Some(thread) = user.thread.take()
            {
                let _ = thread.join();
            }
        }
    }
}

/// Makes this thread alone another user: the raw calls, since those of the C library change all threads.
fn become_user(uid: u32, gid: u32, groups: &[u32]) {
    // SAFETY: plain numbers, and a list with its length.
    unsafe {
        libc::umask(0o022);
        assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
    }
}
