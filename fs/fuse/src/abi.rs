//! The kernel's FUSE interface (`linux/fuse.h`), protocol 7.45.
//!
//! Structures are `repr(C)` without padding (checked at compile time), so that they may be copied out of and
//! into messages byte by byte. They are always copied, never borrowed in place: a message's structures
//! follow names of any length, so nothing guarantees their alignment, and none is larger than 104 bytes.

pub mod flags;
pub mod input;
pub mod opcode;
pub mod output;

/// The protocol's major version.
pub const KERNEL_VERSION: u32 = 7;
/// The newest minor version that this code knows.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// The oldest minor version that is served (Linux 5.4): older ones have shorter structures, no
/// `EXPLICIT_INVAL_DATA` and no `MAX_PAGES`.
pub const KERNEL_MINOR_VERSION_MIN: u32 = 31;

/// Marks an INTERRUPT's own number: the request that it interrupts has the same without this bit.
pub const UNIQUE_INTERRUPT: u64 = 1;
/// Marks a request that the kernel sends again after `FUSE_NOTIFY_RESEND`. The reply must carry it.
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// A structure that is nothing but its bytes.
///
/// # Safety
/// The type is `repr(C)` (or a plain integer), has no padding, and every bit pattern is a valid value.
pub unsafe trait Pod: Copy + 'static {
    /// The structure as the bytes that the kernel reads.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: no padding, so all `size_of` bytes are initialised; the lifetime is that of `self`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// Copies a structure out of the front of `bytes`; `None` when they are too few.
    fn read_from(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: there are enough bytes (checked above), an unaligned read needs no alignment, and every
        // bit pattern is valid.
        Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
    }
}

macro_rules! pod_integers {
    ($($int:ty),*) => {$(
        // SAFETY: an integer.
        unsafe impl Pod for $int {}
    )*};
}
pod_integers!(u8, u16, u32, u64, i32, i64);

// SAFETY: an array has the padding of its elements: none.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// Declares structures of the interface and proves that they have no padding.
macro_rules! abi {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        const _: () = {
            assert!(size_of::<$name>() == 0 $(+ size_of::<$ty>())*, "padding in a kernel structure");
            const fn pod<T: $crate::abi::Pod>() {}
            $(pod::<$ty>();)*
        };

        // SAFETY: `repr(C)`, all fields are `Pod`, and there is no padding (both asserted above).
        unsafe impl $crate::abi::Pod for $name {}
    )*};
}
pub(crate) use abi;

#[cfg(test)]
mod tests {
    use super::input::*;
    use super::output::*;
    use super::*;

    #[test]
    fn sizes_are_the_kernels() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!(size_of::<InitIn>(), 64);
        assert_eq!(size_of::<LkIn>(), 48);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Kstatfs>(), 80);
        assert_eq!(size_of::<Statx>(), 256);
        assert_eq!(size_of::<StatxOut>(), 288);
    }

    #[test]
    fn structures_survive_a_copy_at_any_alignment() {
        let header = InHeader { len: 40, opcode: 3, unique: 77, nodeid: 1, ..InHeader::default() };
        let mut bytes = vec![0u8];
        bytes.extend_from_slice(header.as_bytes());
        let back = InHeader::read_from(&bytes[1..]).expect("40 bytes");
        assert_eq!((back.len, back.opcode, back.unique, back.nodeid), (40, 3, 77, 1));
        assert!(InHeader::read_from(&bytes[2..]).is_none(), "39 bytes are too few");
    }
}
