//! The session against a mock kernel.

use std::sync::atomic::{AtomicU32, AtomicU64};

use atoll_client::vfs::{Errno, StatFs};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::*;
use crate::abi::input::{BatchForgetIn, ForgetIn, ForgetOne, GetattrIn, InHeader, LkIn};
use crate::abi::{Pod, UNIQUE_RESEND, opcode};
use crate::mock::MockKernel;
use crate::request::Operation;
use crate::slots::Layout;

const LAYOUT: Layout = Layout { slots: 8, buffers: 4 };

/// The inode whose WRITEs wait until they are told, or interrupted, and its attributes until they are told.
const STUCK: u64 = 99;

/// Answers STATFS at once, GETATTR never (until it is interrupted: EINTR), WRITE after a hop, SETLKW when told.
#[derive(Default)]
struct Script {
    forgotten: AtomicU64,
    written: Mutex<Vec<(u64, Vec<u8>)>>,
    served: AtomicU32,
    release: tokio::sync::Notify,
}

impl Handler for Script {
    async fn handle(self: Arc<Self>, call: Call) {
        self.served.fetch_add(1, Ordering::Relaxed);
        let interrupt = call.interrupt();
        match call.operation() {
            Err(problem) => call.error(Errno(problem.errno())),
            Ok(Operation::Statfs) => {
                drop(interrupt);
                call.statfs(&StatFs { blocks: 5, ..StatFs::default() });
            }
            Ok(Operation::Getattr { .. }) => {
                interrupt.interrupted().await;
                call.error(Errno(libc::EINTR));
            }
            Ok(Operation::Write { offset, data, .. }) => {
                if call.header().nodeid == STUCK {
                    tokio::select! {
                        () = self.release.notified() => {}
                        () = interrupt.interrupted() => return call.error(Errno(libc::EINTR)),
                    }
                }
                tokio::task::yield_now().await;
                self.written.lock().push((offset, data.to_vec()));
                let bytes = data.len() as u32;
                call.written(bytes);
            }
            Ok(Operation::Setlk { wait: true, .. }) => {
                self.release.notified().await;
                call.done();
            }
            Ok(Operation::Setxattr { value, .. }) => {
                assert_eq!(value.len(), 50_000);
                if call.header().nodeid == STUCK {
                    self.release.notified().await;
                }
                call.done();
            }
            Ok(Operation::Readlink) => panic!("a handler's mistake"),
            Ok(Operation::Lookup { .. }) => drop(call),
            Ok(_) => call.error(Errno(libc::ENOSYS)),
        }
    }

    fn forget(&self, nodeid: u64, lookups: u64) {
        self.forgotten.fetch_add(nodeid * 1000 + lookups, Ordering::Relaxed);
    }
}

struct Rig {
    kernel: MockKernel,
    session: Session,
    script: Arc<Script>,
    keeper: Bundle,
    runtime: Runtime,
}

impl Rig {
    fn new(devices: usize) -> Rig {
        Rig::with(devices, LAYOUT)
    }

    fn with(devices: usize, layout: Layout) -> Rig {
        let rig = Rig::before_init(devices, InitOptions::default(), layout);
        let granted = rig.kernel.init(InitFlags(u64::MAX)).expect("INIT");
        assert!(granted.contains(InitFlags::HAS_RESEND | InitFlags::FLOCK_LOCKS));
        let negotiated = rig.runtime.block_on(rig.session.ready()).expect("ready");
        assert_eq!(negotiated.flags, granted);
        rig
    }

    fn before_init(devices: usize, options: InitOptions, layout: Layout) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let (kernel, bundle) = MockKernel::new(devices, layout).expect("mock");
        let keeper = bundle.try_clone().expect("clone");
        let script = Arc::new(Script::default());
        let session = Session::start(bundle, options, Arc::clone(&script), runtime.handle()).expect("starts");
        Rig { kernel, session, script, keeper, runtime }
    }

    /// A reply can be received an instant before its request counts as done.
    fn wait_until_idle(&self) {
        let began = std::time::Instant::now();
        while self.session.requests_under_way() != 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "a request is never done");
            std::thread::yield_now();
        }
    }

    /// The session dies without answering what is under way; a successor takes the bundle.
    fn succeed(&mut self) {
        self.session.stop();
        let keeper = self.keeper.try_clone().expect("clone");
        self.script = Arc::new(Script::default());
        self.session =
            Session::resume(keeper, Arc::clone(&self.script), self.runtime.handle()).expect("resumes");
    }
}

#[test]
fn requests_are_answered_under_their_numbers_on_their_descriptors() {
    let rig = Rig::new(2);
    let one = rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    let two = rig.kernel.write(1, 9, 4096, b"some data").expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error, reply.body.len()), (one, 0, 80));
    assert_eq!(reply.body[0], 5);
    let reply = rig.kernel.receive(1).expect("reply");
    assert_eq!((reply.unique, reply.error, reply.body[0]), (two, 0, 9));
    assert_eq!(*rig.script.written.lock(), [(4096, b"some data".to_vec())]);
}

#[test]
fn data_of_every_size_arrives_whole() {
    let rig = Rig::new(1);
    let sizes = [0usize, 1, 80, 4096, 8048, 8049, 65_536, 100_000];
    for size in sizes {
        let data: Vec<u8> = (0..size).map(|i| (i % 253) as u8).collect();
        rig.kernel.write(0, 9, size as u64, &data).expect("send");
        assert_eq!(rig.kernel.receive(0).expect("reply").error, 0);
        let (offset, written) = rig.script.written.lock().pop().expect("written");
        assert!(offset == size as u64 && written == data, "{size} bytes");
    }
}

#[test]
fn an_interrupt_ends_a_wait_even_if_it_comes_first() {
    let rig = Rig::new(2);
    let getattr = GetattrIn::default();
    let waiting = rig.kernel.request(0, opcode::GETATTR, 1, &[getattr.as_bytes()]).expect("send");
    rig.kernel.interrupt(1, waiting).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (waiting, -libc::EINTR));

    rig.kernel.interrupt(1, 0x1000).expect("send");
    // What this descriptor says next shows that the interrupt was taken.
    rig.kernel.request(1, opcode::STATFS, 1, &[]).expect("send");
    rig.kernel.receive(1).expect("reply");
    rig.kernel.request_as(0, 0x1000, opcode::GETATTR, 1, &[getattr.as_bytes()]).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (0x1000, -libc::EINTR));
}

#[test]
fn forgets_have_no_reply() {
    let rig = Rig::new(1);
    rig.kernel.request(0, opcode::FORGET, 3, &[ForgetIn { nlookup: 2 }.as_bytes()]).expect("send");
    let batch = BatchForgetIn { count: 1, dummy: 0 };
    let one = ForgetOne { nodeid: 5, nlookup: 1 };
    rig.kernel.request(0, opcode::BATCH_FORGET, 0, &[batch.as_bytes(), one.as_bytes()]).expect("send");
    let asked = rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    assert_eq!(rig.kernel.receive(0).expect("reply").unique, asked);
    assert_eq!(rig.script.forgotten.load(Ordering::Relaxed), 3002 + 5001);
    rig.wait_until_idle();
}

#[test]
fn garbage_is_answered_and_the_session_goes_on() {
    let rig = Rig::new(1);
    rig.kernel.send_raw(0, b"abc").expect("send");
    rig.kernel.send_raw(0, &[0xff; 39]).expect("send");
    let lies = InHeader { len: 1 << 30, opcode: opcode::STATFS, unique: 70, ..InHeader::default() };
    rig.kernel.send_raw(0, lies.as_bytes()).expect("send");
    assert_eq!(
        rig.kernel.receive(0).map(|reply| (reply.unique, reply.error)).expect("reply"),
        (70, -libc::EIO)
    );
    // Too short for its opcode, a name without an end, an opcode that doesn't exist, a handler that panics, and one
    // that forgets to answer.
    for (opcode, body, errno) in [
        (opcode::WRITE, &b"short"[..], libc::EIO),
        (opcode::UNLINK, b"endless", libc::EINVAL),
        (999, b"", libc::ENOSYS),
        (opcode::READLINK, b"", libc::EIO),
        (opcode::LOOKUP, b"x\0", libc::EIO),
    ] {
        let unique = rig.kernel.request(0, opcode, 1, &[body]).expect("send");
        let reply = rig.kernel.receive(0).expect("reply");
        assert_eq!((reply.unique, reply.error), (unique, -errno), "{}", opcode::name(opcode));
    }
    rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    assert_eq!(rig.kernel.receive(0).expect("reply").error, 0);
    rig.wait_until_idle();
}

#[test]
fn blocked_locks_leave_room_for_others() {
    let rig = Rig::new(1);
    let lock = LkIn { lk: crate::abi::input::FileLock { kind: 1, ..Default::default() }, ..LkIn::default() };
    let mut refused = 0;
    for _ in 0..LAYOUT.slots {
        rig.kernel.request(0, opcode::SETLKW, 1, &[lock.as_bytes()]).expect("send");
    }
    let asked = rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    loop {
        let reply = rig.kernel.receive(0).expect("reply");
        if reply.unique == asked {
            break;
        }
        assert_eq!(reply.error, -libc::ENOLCK);
        refused += 1;
    }
    assert!(refused > 0 && refused < LAYOUT.slots, "{refused}");
    for _ in refused..LAYOUT.slots {
        rig.script.release.notify_one();
        assert_eq!(rig.kernel.receive(0).expect("reply").error, 0);
    }
    rig.wait_until_idle();
}

#[test]
fn writes_that_wait_never_take_the_last_buffers() {
    const WRITES: usize = 6;
    let layout = Layout { slots: 32, buffers: 12 };
    let rig = Rig::with(1, layout);
    let waiting = layout.shares(1).waiting as usize;
    let data: Vec<u8> = (0..100_000u32).map(|i| (i % 253) as u8).collect();
    let stuck: Vec<u64> =
        (0..WRITES).map(|number| rig.kernel.write(0, STUCK, number as u64, &data).expect("send")).collect();
    let asked = rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    assert_eq!(rig.kernel.receive(0).expect("reply").unique, asked);

    // Also what has a buffer, and can't be shortened.
    let write_back = crate::abi::input::WriteIn {
        size: data.len() as u32,
        write_flags: crate::abi::flags::WRITE_CACHE,
        ..Default::default()
    };
    let asked = rig.kernel.request(0, opcode::WRITE, 9, &[write_back.as_bytes(), &data]).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!(
        (reply.unique, reply.error, reply.body[..4].to_vec()),
        (asked, 0, 100_000u32.to_le_bytes().to_vec())
    );
    let attribute = crate::abi::input::SetxattrIn { size: 50_000, ..Default::default() };
    let parts = [attribute.as_bytes(), b"user.a\0", &data[..50_000]];
    let asked = rig.kernel.request(0, opcode::SETXATTR, 9, &parts).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (asked, 0));
    let append = crate::abi::input::WriteIn {
        size: data.len() as u32,
        flags: libc::O_APPEND as u32,
        ..Default::default()
    };
    let asked = rig.kernel.request(0, opcode::WRITE, 9, &[append.as_bytes(), &data]).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (asked, 0));
    assert!(rig.script.written.lock().pop().expect("written").1 == data, "an append is whole");
    let forgets: Vec<u8> =
        (0..1000).flat_map(|_| ForgetOne { nodeid: 5, nlookup: 1 }.as_bytes().to_vec()).collect();
    let batch = BatchForgetIn { count: 1000, dummy: 0 };
    rig.kernel.request(0, opcode::BATCH_FORGET, 0, &[batch.as_bytes(), &forgets]).expect("send");

    rig.kernel.interrupt(0, stuck[0]).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (stuck[0], -libc::EINTR));
    assert_eq!(rig.script.forgotten.load(Ordering::Relaxed), 5001 * 1000);

    rig.script.written.lock().clear();
    let mut whole = 0;
    for _ in 1..WRITES {
        rig.script.release.notify_one();
        let reply = rig.kernel.receive(0).expect("reply");
        let (offset, written) = rig.script.written.lock().pop().expect("written");
        let number = stuck.iter().position(|unique| *unique == reply.unique).expect("one of them");
        assert_eq!((reply.error, offset), (0, number as u64));
        assert_eq!(reply.body[..4], (written.len() as u32).to_le_bytes());
        assert!(written == data[..written.len()], "the beginning of what was to be written");
        whole += usize::from(written.len() == data.len());
    }
    assert_eq!(whole, waiting - 1, "what has a buffer is written whole, but for the interrupted one");
    rig.wait_until_idle();
}

#[test]
fn what_cannot_be_shortened_is_refused_beyond_its_share_alone() {
    let layout = Layout { slots: 32, buffers: 12 };
    let rig = Rig::with(1, layout);
    let value = vec![7; 50_000];
    let attribute = crate::abi::input::SetxattrIn { size: 50_000, ..Default::default() };
    let parts = [attribute.as_bytes(), b"user.a\0", &value[..]];
    let ask = |node| rig.kernel.request(0, opcode::SETXATTR, node, &parts).expect("send");
    let stuck = layout.shares(1).other;
    assert!(stuck > 0);
    for _ in 0..stuck {
        ask(STUCK);
    }
    let asked = ask(9);
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (asked, -libc::ENOMEM));
    let asked = rig.kernel.write(0, 9, 0, &value).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (asked, 0), "others have shares of their own");
    assert!(rig.script.written.lock().pop().expect("written").1 == value);
    for _ in 0..stuck {
        rig.script.release.notify_one();
        assert_eq!(rig.kernel.receive(0).expect("reply").error, 0);
    }
    rig.wait_until_idle();
    let asked = ask(9);
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!((reply.unique, reply.error), (asked, 0), "there is room again");
}

#[test]
fn a_successor_redoes_what_was_not_answered() {
    let mut rig = Rig::new(2);
    let getattr = GetattrIn::default();
    let waiting = rig.kernel.request(1, opcode::GETATTR, 1, &[getattr.as_bytes()]).expect("send");
    let answered = rig.kernel.request(1, opcode::STATFS, 1, &[]).expect("send");
    assert_eq!(rig.kernel.receive(1).expect("reply").unique, answered);

    // The predecessor's future stays alive here, as it would not in a dead process; it never ends by itself.
    rig.succeed();
    rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    let first = rig.kernel.receive(0).expect("reply");
    let second = rig.kernel.receive(0).expect("notification");
    let resend = [&first, &second].into_iter().find(|message| message.unique == 0).expect("RESEND");
    assert_eq!((resend.error, resend.body.len()), (7, 0));
    assert_eq!(rig.script.served.load(Ordering::Relaxed), 2, "one redone, one new");

    // The kernel obeys, on the other descriptor: the request under way is recognised, and answered under its new
    // number where it was read last.
    let again = waiting | UNIQUE_RESEND;
    rig.kernel.request_as(0, again, opcode::GETATTR, 1, &[getattr.as_bytes()]).expect("send");
    rig.kernel.request(0, opcode::STATFS, 1, &[]).expect("send");
    rig.kernel.receive(0).expect("reply");
    assert_eq!(rig.script.served.load(Ordering::Relaxed), 3, "not served twice");
    rig.kernel.interrupt(0, again).expect("send");
    // A socket takes a reply under any number, so the old address gets it.
    let reply = rig.kernel.receive(1).expect("reply");
    assert_eq!((reply.unique, reply.error), (waiting, -libc::EINTR));
}

#[test]
fn nothing_can_be_resumed_before_it_began() {
    let runtime = Runtime::new().expect("runtime");
    let (_kernel, bundle) = MockKernel::new(1, LAYOUT).expect("mock");
    let resumed = Session::resume(bundle, Arc::new(Script::default()), runtime.handle());
    assert!(matches!(resumed.err(), Some(SessionError::NothingToResume)));
}

#[test]
fn an_old_kernel_is_refused_and_a_newer_one_is_told_our_version() {
    use crate::abi::input::InitIn;
    use crate::abi::output::InitOut;
    let rig = Rig::before_init(1, InitOptions::default(), LAYOUT);
    let newer = InitIn { major: 8, ..InitIn::default() };
    rig.kernel.request(0, opcode::INIT, 0, &[newer.as_bytes()]).expect("send");
    let reply = rig.kernel.receive(0).expect("reply");
    assert_eq!(InitOut::read_from(&reply.body).map(|out| out.major), Some(7));
    let old = InitIn { major: 7, minor: 20, ..InitIn::default() };
    rig.kernel.request(0, opcode::INIT, 0, &[old.as_bytes()]).expect("send");
    assert_eq!(rig.kernel.receive(0).expect("reply").error, -libc::EPROTO);
    let ready = rig.runtime.block_on(rig.session.ready());
    assert!(matches!(ready, Err(SessionError::Ended(End::Failed(libc::EPROTO)))));
}

#[test]
fn notifications_have_the_kernels_form() {
    use bytes::Bytes;
    let rig = Rig::new(1);
    let notifier = rig.session.notifier().clone();
    rig.runtime.block_on(async {
        notifier.inval_inode(7, 4096, -1).await.expect("sent");
        notifier.expire_entry(1, Bytes::from_static(b"name")).await.expect("sent");
        notifier.delete(1, 7, Bytes::from_static(b"n")).await.expect("sent");
        notifier.store(7, 0, Bytes::from_static(b"data")).await.expect("sent");
    });
    let forms: Vec<(i32, usize)> = (0..4)
        .map(|_| rig.kernel.receive(0).map(|reply| (reply.error, reply.body.len())).expect("notification"))
        .collect();
    assert_eq!(forms, [(2, 24), (3, 16 + 5), (6, 24 + 2), (4, 24 + 4)]);
}

#[test]
fn the_end_of_the_device_ends_the_session() {
    let Rig { kernel, session, runtime, .. } = Rig::new(2);
    drop(kernel);
    assert_eq!(runtime.block_on(session.ended()), End::Unmounted);
}
