//! atoll-crds.
