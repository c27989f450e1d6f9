//! Frames of a connection: any number, one after the other. Their checksums are made right first.

use atoll_core::ids::SessionId;
use atoll_proto::Body;
use atoll_proto::frame::{FrameReader, FrameType, HEADER_BYTES, OutFrame};
use atoll_proto::metadata::{
    AskRequest, JournalBatch, MutateRequest, ReclaimRequest, SessionHeartbeat, kind,
};
use atoll_proto::registration::{Heartbeat, Register};
use atoll_proto::{Rpc, secure::Source};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::handshake::on_a_runtime;

pub(crate) fn read(data: &[u8]) -> bool {
    let mut bytes = data.to_vec();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
        let total = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let meta = u32::from_le_bytes([header[16], header[17], header[18], header[19]]) as usize;
        let Some(head_end) = at.checked_add(HEADER_BYTES + meta).filter(|end| *end <= bytes.len()) else {
            break;
        };
        let crc = super::crc32c(&[&bytes[at..at + HEADER_BYTES - 4], &bytes[at + HEADER_BYTES..head_end]]);
        bytes[at + HEADER_BYTES - 4..at + HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        at = at.saturating_add(total.max(HEADER_BYTES));
    }
    let wire = bytes.clone();
    on_a_runtime(async move {
        let mut reader = FrameReader::new(Source::plain(Box::new(std::io::Cursor::new(bytes))));
        let (mut read_any, mut at) = (false, 0);
        while let Ok(Some(frame)) = reader.next().await {
            message(frame.kind, &frame.meta);
            let body = Body::from(frame.body.clone());
            let again = OutFrame::raw(frame.frame_type, frame.kind, frame.request_id, &frame.meta, body);
            let again = again.map(|out| [&out.head[..], &frame.body[..]].concat()).unwrap_or_default();
            assert_eq!(
                again,
                wire[at..at + frame.bytes()],
                "a frame is not what it was when it is written again"
            );
            at += frame.bytes();
            read_any = true;
        }
        read_any
    })
}

/// Reads the message of a frame, as the servers do.
fn message(kind: u16, meta: &[u8]) {
    match kind {
        kind::MUTATE => same_again::<MutateRequest>(meta),
        kind::ASK => same_again::<AskRequest>(meta),
        kind::SESSION_HEARTBEAT => same_again::<SessionHeartbeat>(meta),
        kind::RECLAIM => same_again::<ReclaimRequest>(meta),
        kind::JOURNAL => same_again::<JournalBatch>(meta),
        Register::KIND => same_again::<Register>(meta),
        Heartbeat::KIND => same_again::<Heartbeat>(meta),
        _ => {}
    }
}

/// What can be read, written and read again is the same.
pub(super) fn same_again<M: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(message) = postcard::from_bytes::<M>(bytes) else { return };
    let Ok(first) = postcard::to_stdvec(&message) else { return };
    let again = postcard::from_bytes::<M>(&first).map(|message| postcard::to_stdvec(&message));
    assert_eq!(again, Ok(Ok(first)), "a message is not what it was when it is read again");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let frame = |frame_type, kind, meta: &[u8], body: &[u8]| {
        OutFrame::raw(frame_type, kind, 9, meta, Body::from(body.to_vec()))
            .map(|out| [&out.head[..], body].concat())
            .unwrap_or_default()
    };
    let heartbeat = postcard::to_stdvec(&SessionHeartbeat { session: SessionId(3), reclaimed_term: 1 });
    let heartbeat = frame(FrameType::Request, kind::SESSION_HEARTBEAT, &heartbeat.unwrap_or_default(), b"");
    let ping = frame(FrameType::Ping, 0, b"", b"");
    let read = frame(FrameType::Reply, 0x201, b"meta", &[7; 300]);
    vec![[&ping[..], &heartbeat].concat(), read, ping]
}
