//! atoll-provisioner.

fn main() {}
