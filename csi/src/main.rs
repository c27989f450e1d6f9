//! atoll-csi.

fn main() {}
