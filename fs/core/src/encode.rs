//! Serialising into memory, which can't fail.

use serde::Serialize;

/// `start`, and `value` behind it.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "fails only for types without a fixed shape (sequences of unknown length), and records and messages have one"
)]
pub fn append<T: Serialize + ?Sized>(start: Vec<u8>, value: &T) -> Vec<u8> {
    postcard::to_extend(value, start).expect("records and messages can always be encoded")
}
