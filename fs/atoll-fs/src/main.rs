//! The `atoll-fs` binary.
fn main() {}
