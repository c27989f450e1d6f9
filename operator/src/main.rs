//! atoll-operator.

fn main() {}
