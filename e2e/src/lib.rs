//! atoll-e2e.
