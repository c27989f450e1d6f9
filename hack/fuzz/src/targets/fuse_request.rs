//! A request of the kernel: 8 bytes of INIT's flags, then the message. Its length is made right first.

use atoll_fuse::InitFlags;
use atoll_fuse::request::{Operation, parse, parse_header};

/// Bytes of a message's header (`fuse_in_header` in the kernel's `include/uapi/linux/fuse.h`).
const HEADER_BYTES: usize = 40;

pub(crate) fn read(data: &[u8]) -> bool {
    let Some((flags, message)) = data.split_first_chunk::<8>() else { return false };
    let negotiated = InitFlags(u64::from_le_bytes(*flags));
    let _ = parse_header(message);
    let mut message = message.to_vec();
    if message.len() >= HEADER_BYTES {
        let length = (message.len() as u32).to_le_bytes();
        message[..4].copy_from_slice(&length);
    }
    let Ok((header, operation)) = parse(&message, negotiated) else { return false };
    assert_eq!(header.len as usize, message.len());
    if let Operation::BatchForget(forgets) = &operation {
        assert!(forgets.iter().count() * 16 <= message.len(), "more is forgotten than was said");
    }
    // Goes through every field.
    assert!(!format!("{operation:?}").is_empty());
    true
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let message = |flags: u64, opcode: u32, arguments: &[u8]| {
        let mut bytes = flags.to_le_bytes().to_vec();
        bytes.extend((HEADER_BYTES as u32 + arguments.len() as u32).to_le_bytes());
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.resize(8 + HEADER_BYTES, 0);
        bytes.extend(arguments);
        bytes
    };
    // LOOKUP, FORGET, GETATTR, RENAME, WRITE, INIT, BATCH_FORGET: the interface's numbers.
    vec![
        message(0, 1, b"name\0"),
        message(0, 2, &5_u64.to_le_bytes()),
        message(0, 3, &[0; 16]),
        message(0, 12, &[&2_u64.to_le_bytes()[..], b"old\0new\0"].concat()),
        message(0, 16, &[&[0; 16][..], &4_u32.to_le_bytes(), &[0; 20], b"data"].concat()),
        message(0, 26, &[&7_u32.to_le_bytes()[..], &41_u32.to_le_bytes(), &[0; 56]].concat()),
        message(0, 42, &[&1_u32.to_le_bytes()[..], &[0; 4], &[1; 16]].concat()),
    ]
}
