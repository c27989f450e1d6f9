//! The way of bytes that are read: where they are ([`map`]), from which replica ([`chunk_reader`]), and
//! before they are asked for ([`readahead`]).

pub mod chunk_reader;
pub mod map;
pub mod readahead;
