//! What an outbox sends.

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutFrame {
    /// Who sends it.
    pub caller: u32,
    /// Which of the caller's.
    pub number: u32,
}

impl OutFrame {
    pub(crate) fn bytes(&self) -> usize {
        1
    }
}
