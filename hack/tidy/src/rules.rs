//! The rules, by subject. Each function takes a repository and returns one verdict for each of its rules.

pub mod circles;
pub mod dependencies;
pub mod links;
pub mod manifests;
pub mod metrics;
pub mod parameters;
pub mod promises;
pub mod seams;
pub mod size;
pub mod unfinished;
pub mod words;
