//! Results for people and for programs.

mod against;
mod json;
mod numbers;
mod rest;
mod table;

pub use json::json;
pub use table::{print, summary};
