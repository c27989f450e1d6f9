//! kubectl-atoll.

fn main() {}
