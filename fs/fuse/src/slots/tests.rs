use super::*;
use crate::abi::Pod;
use crate::abi::input::InHeader;

fn small() -> RequestMemory {
    RequestMemory::create(Layout { slots: 200, buffers: 6 }).expect("memory")
}

/// Plays the kernel's copy: the first bytes into the slot, the rest into the buffer.
fn fill(memory: &RequestMemory, slot: u32, buffer: u32, message: &[u8]) {
    memory.slot(slot).buffer.store(buffer + 1, Ordering::Relaxed);
    let head = message.len().min(PREFIX_BYTES);
    // SAFETY: the test alone uses the memory; all lengths are within the places.
    unsafe {
        memory.request_ptr(slot).copy_from_nonoverlapping(message.as_ptr(), head);
        memory.payload_ptr(buffer).copy_from_nonoverlapping(message[head..].as_ptr(), message.len() - head);
    }
}

fn request(len: usize) -> Vec<u8> {
    let header = InHeader { len: len as u32, unique: 8, ..InHeader::default() };
    let mut message = header.as_bytes().to_vec();
    message.extend((message.len()..len).map(|i| (i % 251) as u8));
    message
}

#[test]
fn requests_of_every_size_become_contiguous() {
    let memory = small();
    for (len, keeps_buffer) in [
        (40, false),
        (PREFIX_BYTES, false),
        (PREFIX_BYTES + 1, false),
        (SLOT_REQUEST_BYTES_MAX, false),
        (SLOT_REQUEST_BYTES_MAX + 1, true),
        (PREFIX_BYTES + PAYLOAD_BYTES_MAX, true),
    ] {
        let message = request(len);
        fill(&memory, 1, 2, &message);
        // SAFETY: the test alone uses the memory.
        let kept = unsafe { memory.make_contiguous(1, len) };
        assert_eq!(kept, keeps_buffer, "{len} bytes");
        // SAFETY: as above.
        assert!(unsafe { memory.message(1, kept.then_some(2), len) } == message, "{len} bytes");
        assert_eq!(memory.unanswered(1).load(Ordering::Relaxed), len as u32);
    }
}

#[test]
fn a_successor_finds_what_the_predecessor_read() {
    let memory = small();
    let message = request(100_000);
    fill(&memory, 7, 3, &message);
    let negotiated = Negotiated { minor: 45, max_write: 1 << 20, ..Negotiated::default() };
    assert_eq!(memory.negotiated(), None);
    memory.set_negotiated(&negotiated);

    let descriptor = memory.file().try_clone_to_owned().expect("dup");
    drop(memory);
    let memory = RequestMemory::adopt(descriptor).expect("adopts");
    assert_eq!(memory.layout(), Layout { slots: 200, buffers: 6 });
    assert_eq!(memory.negotiated(), Some(negotiated));
    let pool = Pool::new(&memory, 1);
    let unfinished = memory.unfinished(&pool, 1);
    let buffer = Some((3, Keep::Other));
    assert_eq!(unfinished, [Unfinished { slot: 7, device: 0, len: message.len(), buffer }]);
    let resident = memory.resident_bytes().expect("stat");
    assert!(resident < 200 << 10, "slots that were never used still have no pages: {resident}");
    assert!(!pool.take_this_slot(7) && !pool.take_this_buffer(3, Keep::Other), "nobody else gets them");
    // SAFETY: the test alone uses the memory.
    assert!(unsafe { memory.message(7, Some(3), message.len()) } == message);
}

#[test]
fn damaged_slots_are_emptied() {
    let memory = small();
    fill(&memory, 0, 1, &request(50_000));
    // Names the same buffer; a length beyond all bounds; a descriptor that doesn't exist.
    fill(&memory, 1, 1, &request(50_000));
    memory.unanswered(2).store(u32::MAX, Ordering::Relaxed);
    fill(&memory, 3, 2, &request(100));
    memory.slot(3).device.store(9, Ordering::Relaxed);
    let pool = Pool::new(&memory, 1);
    let slots: Vec<u32> = memory.unfinished(&pool, 2).iter().map(|found| found.slot).collect();
    assert_eq!(slots, [0]);
    assert!((1..4).all(|slot| memory.unanswered(slot).load(Ordering::Relaxed) == 0));
}

#[test]
fn strangers_are_refused() {
    let file = memfd_create(c"stranger", MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
    assert!(matches!(RequestMemory::adopt(file.try_clone().expect("dup")), Err(AdoptError::Damaged)));
    let file = File::from(file);
    file.set_len(1 << 20).expect("set_len");
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)).expect("seal");
    assert!(matches!(RequestMemory::adopt(file.into()), Err(AdoptError::Foreign)));
}

#[test]
fn idle_memory_is_small() {
    let memory = small();
    let pool = Pool::new(&memory, 1);
    let buffers: Vec<u32> = (0..6).map(|_| pool.take_buffer(&memory).expect("open")).collect();
    let slots: Vec<u32> = (0..200).map(|_| pool.take_slot().expect("open")).collect();
    for slot in &slots {
        memory.slot(*slot).device.store(1, Ordering::Relaxed);
    }
    let busy = memory.resident_bytes().expect("stat");
    assert!(busy >= 6 << 20, "buffers come with their pages: {busy}");
    buffers.into_iter().for_each(|buffer| pool.free_buffer(&memory, buffer));
    slots.into_iter().for_each(|slot| pool.free_slot(&memory, slot));
    assert_eq!((pool.slots_taken(), pool.buffers_taken()), (0, 0));
    let idle = memory.resident_bytes().expect("stat");
    assert!(idle < 6 << 20, "all but the resident few are given back: {idle}");
    assert!(idle <= 4 * BUFFER_BYTES as u64 + 128 * SLOT_BYTES as u64 + HEADER_BYTES as u64, "{idle}");
}

#[test]
fn a_closed_pool_lets_nobody_wait() {
    let memory = RequestMemory::create(Layout { slots: 1, buffers: 1 }).expect("memory");
    let pool = Pool::new(&memory, 1);
    assert_eq!(pool.take_slot(), Some(0));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.take_slot());
        pool.close();
        assert_eq!(waiter.join().expect("no panic"), None);
    });
}

fn write(size: usize, write_flags: u32) -> Vec<u8> {
    let len = (PREFIX_BYTES + size) as u32;
    let header = InHeader { len, unique: 8, opcode: opcode::WRITE, ..InHeader::default() };
    let write = WriteIn { offset: 512, size: size as u32, write_flags, ..WriteIn::default() };
    let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    [header.as_bytes(), write.as_bytes(), &data].concat()
}

/// Makes a WRITE one of a file that is open with `O_APPEND`.
fn append(message: &mut [u8]) {
    let at = size_of::<InHeader>() + std::mem::offset_of!(WriteIn, flags);
    message[at..at + 4].copy_from_slice(&(libc::O_APPEND as u32).to_le_bytes());
    assert_eq!(Large::of(message), Large::Append);
}

/// With two readers: two buffers of each share, and six for write-back.
fn shared() -> RequestMemory {
    let memory = RequestMemory::create(Layout { slots: 200, buffers: 14 }).expect("memory");
    let shares = Shares { waiting: 2, append: 2, other: 2, write_back: 6 };
    assert_eq!(memory.layout().shares(2), shares);
    memory
}

#[test]
fn a_share_is_never_exceeded_and_what_is_given_back_is_kept_again() {
    let memory = shared();
    let pool = Pool::new(&memory, 2);
    let readers: Vec<u32> = (0..2).map(|_| pool.take_buffer(&memory).expect("open")).collect();
    let keep = |keep| {
        assert!(pool.keep(keep));
        // What a reader does next: its own buffer is the request's now.
        pool.take_buffer(&memory).expect("there is one for each reader")
    };
    let kinds = [Keep::Waiting, Keep::Append, Keep::Other];
    let mut kept = Vec::new();
    for kind in kinds {
        assert!(pool.may_lend(kind), "other shares don't matter");
        kept.push([keep(kind), keep(kind)]);
        assert!(!pool.may_lend(kind));
        assert!(!pool.keep(kind), "no more than its share");
    }
    let write_back: Vec<u32> = (0..6).map(|_| keep(Keep::WriteBack)).collect();
    assert_eq!(pool.buffers_taken(), 14);
    for (kind, kept) in kinds.into_iter().zip(kept) {
        pool.give_back(&memory, kept[0], kind);
        assert!(pool.keep(kind));
    }
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| pool.keep(Keep::WriteBack));
        pool.give_back(&memory, write_back[0], Keep::WriteBack);
        assert!(patient.join().expect("no panic"), "write-back is waited for, not refused");
    });
    pool.close();
    assert!(!pool.keep(Keep::WriteBack), "but for a session that ends");
    drop(readers);
}

#[test]
fn a_request_that_keeps_a_buffer_may_give_what_it_does_not_need_back() {
    let memory = small();
    let pool = Pool::new(&memory, 1);
    let buffer = pool.take_buffer(&memory).expect("open");
    let message = request(PREFIX_BYTES + (64 << 10));
    fill(&memory, 1, buffer, &message);
    // SAFETY: the test alone uses the memory.
    assert!(unsafe { memory.make_contiguous(1, message.len()) });
    let before = memory.resident_bytes().expect("stat");
    pool.drop_rest(&memory, buffer, message.len());
    let needed = (PAGE_BYTES + (64 << 10)) as u64;
    assert_eq!(before - memory.resident_bytes().expect("stat"), BUFFER_BYTES as u64 - needed);
    // SAFETY: as above.
    assert!(unsafe { memory.message(1, Some(buffer), message.len()) } == message);
    pool.free_buffer(&memory, buffer);
    let again = pool.take_buffer(&memory).expect("open");
    assert_eq!((again, memory.resident_bytes().expect("stat")), (buffer, before), "it is whole again");
}

#[test]
fn a_shortened_write_is_whole_after_each_step_and_for_a_successor() {
    let memory = small();
    let message = write(100_000, 0);
    fill(&memory, 1, 2, &message);
    // SAFETY: the test alone uses the memory.
    unsafe {
        assert!(memory.make_contiguous(1, message.len()));
        assert_eq!(Large::of(memory.message(1, Some(2), message.len())), Large::Write);
        let len = memory.shorten_write(1, 2);
        assert_eq!(len, PREFIX_BYTES + SHORT_WRITE_BYTES);
        assert_eq!(memory.message(1, None, len), write(SHORT_WRITE_BYTES, 0));
        // A predecessor that was killed before the last step, or before the one before.
        memory.slot(1).buffer.store(3, Ordering::Relaxed);
        assert!(!memory.make_contiguous(1, len));
        assert_eq!(memory.message(1, None, len), write(SHORT_WRITE_BYTES, 0));
        memory.slot(1).buffer.store(3, Ordering::Relaxed);
        memory.unanswered(1).store(message.len() as u32, Ordering::Relaxed);
        assert!(memory.make_contiguous(1, message.len()));
        let halfway = memory.message(1, Some(2), message.len());
        let (_, operation) = crate::request::parse(halfway, crate::InitFlags::EMPTY).expect("parses");
        let crate::request::Operation::Write { data, .. } = operation else { panic!("{operation:?}") };
        assert!(data == &message[PREFIX_BYTES..][..SHORT_WRITE_BYTES]);
    }
}

#[test]
fn a_successor_leaves_its_readers_room() {
    let memory = shared();
    for slot in 0..9 {
        let mut message = write(50_000, if slot == 0 { flags::WRITE_CACHE } else { 0 });
        if slot > 5 {
            append(&mut message);
        }
        fill(&memory, slot, slot, &message);
    }
    let pool = Pool::new(&memory, 2);
    let found = memory.unfinished(&pool, 1);
    let kept: Vec<_> = found.iter().map(|found| found.buffer.map(|(_, keep)| keep)).collect();
    let (waiting, append, short) = (Some(Keep::Waiting), Some(Keep::Append), None);
    let write_back = Some(Keep::WriteBack);
    assert_eq!(kept, [write_back, waiting, waiting, short, short, short, append, append, short]);
    let is_short = |found: &Unfinished| found.len == PREFIX_BYTES + SHORT_WRITE_BYTES;
    assert!(found.iter().all(|found| found.buffer.is_some() != is_short(found)));
    assert_eq!(pool.buffers_taken(), 5);
}
