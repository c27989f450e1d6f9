//! The way of written bytes: into the buffer ([`buffer`]), against reserved quota ([`reservation`]), from
//! there in order ([`flush`]) into chunks ([`chunk_writer`]) or into the commit itself.

pub mod buffer;
pub mod chunk_writer;
pub mod flush;
pub mod reservation;
