//! Serialising into memory, which can't fail.

use serde::Serialize;

/// Bytes that most records and messages find room in: growing from nothing takes an allocation for each doubling.
pub const USUAL_BYTES: usize = 192;

/// `start`, and `value` behind it.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "fails only for types without a fixed shape (sequences of unknown length), and records and messages have one"
)]
pub fn append<T: Serialize + ?Sized>(mut start: Vec<u8>, value: &T) -> Vec<u8> {
    start.reserve(USUAL_BYTES);
    postcard::to_extend(value, start).expect("records and messages can always be encoded")
}
