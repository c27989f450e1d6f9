//! POSIX access control lists, in the form that the kernel keeps them in extended attributes.
//!
//! The kernel checks access; what is done here is what it leaves to a filesystem: the permission bits and the
//! list say the same thing at all times, and what is made in a directory inherits its default list.

use bytes::Bytes;

/// The attribute that holds an inode's own list.
pub const ACCESS_NAME: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what is inherited from a directory.
pub const DEFAULT_NAME: &[u8] = b"system.posix_acl_default";

/// Version of the attributes' form.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// Id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// A list. Permissions are 0 to 7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    user_obj: u16,
    users: Vec<(u32, u16)>,
    group_obj: u16,
    groups: Vec<(u32, u16)>,
    mask: Option<u16>,
    other: u16,
}

impl Acl {
    /// Reads an attribute's value. `Some(None)`: a list without entries, which means none. `None`: it makes no
    /// sense.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Option<Acl>> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % 8 != 0 {
            return None;
        }
        if entries.is_empty() {
            return Some(None);
        }
        let (mut user_obj, mut group_obj, mut mask, mut other) = (None, None, None, None);
        let (mut users, mut groups) = (Vec::new(), Vec::new());
        for entry in entries.chunks_exact(8) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let allowed = u16::from_le_bytes([entry[2], entry[3]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            if allowed > 7 {
                return None;
            }
            let once = match tag {
                USER_OBJ => &mut user_obj,
                GROUP_OBJ => &mut group_obj,
                MASK => &mut mask,
                OTHER => &mut other,
                USER => {
                    users.push((id, allowed));
                    continue;
                }
                GROUP => {
                    groups.push((id, allowed));
                    continue;
                }
                _ => return None,
            };
            if once.replace(allowed).is_some() {
                return None;
            }
        }
        if mask.is_none() && !(users.is_empty() && groups.is_empty()) {
            return None;
        }
        users.sort_unstable();
        groups.sort_unstable();
        Some(Some(Acl { user_obj: user_obj?, users, group_obj: group_obj?, groups, mask, other: other? }))
    }

    /// The attribute's value.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut value = VERSION.to_le_bytes().to_vec();
        let mut push = |tag: u16, allowed: u16, id: u32| {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&allowed.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        };
        push(USER_OBJ, self.user_obj, NO_ID);
        self.users.iter().for_each(|(id, allowed)| push(USER, *allowed, *id));
        push(GROUP_OBJ, self.group_obj, NO_ID);
        self.groups.iter().for_each(|(id, allowed)| push(GROUP, *allowed, *id));
        if let Some(mask) = self.mask {
            push(MASK, mask, NO_ID);
        }
        push(OTHER, self.other, NO_ID);
        value.into()
    }

    /// Whether the permission bits say as much as the list.
    #[must_use]
    pub fn is_minimal(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask.is_none()
    }

    /// `mode` with the permission bits that go with the list.
    #[must_use]
    pub fn apply_to(&self, mode: u32) -> u32 {
        let group = self.mask.unwrap_or(self.group_obj);
        (mode & !0o777) | u32::from(self.user_obj) << 6 | u32::from(group) << 3 | u32::from(self.other)
    }

    /// The list after `chmod` to `mode`.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Acl {
        self.user_obj = (mode >> 6 & 7) as u16;
        match &mut self.mask {
            Some(mask) => *mask = (mode >> 3 & 7) as u16,
            None => self.group_obj = (mode >> 3 & 7) as u16,
        }
        self.other = (mode & 7) as u16;
        self
    }

    /// As a directory's default list: the list of what is made in it with `mode`, and the mode that goes with it.
    #[must_use]
    pub fn inherit(mut self, mode: u32) -> (Acl, u32) {
        self.user_obj &= (mode >> 6 & 7) as u16;
        match &mut self.mask {
            Some(mask) => *mask &= (mode >> 3 & 7) as u16,
            None => self.group_obj &= (mode >> 3 & 7) as u16,
        }
        self.other &= (mode & 7) as u16;
        let mode = self.apply_to(mode);
        (self, mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, allowed, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&allowed.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn full() -> Acl {
        let entries = [
            (USER_OBJ, 7, NO_ID),
            (USER, 6, 1001),
            (GROUP_OBJ, 5, NO_ID),
            (GROUP, 7, 2001),
            (MASK, 6, NO_ID),
            (OTHER, 4, NO_ID),
        ];
        Acl::parse(&value(&entries)).unwrap().unwrap()
    }

    #[test]
    fn a_list_survives_being_stored() {
        let acl = full();
        assert_eq!(Acl::parse(&acl.encode()), Some(Some(acl.clone())));
        assert!(!acl.is_minimal());
        assert_eq!(acl.apply_to(0o102_000), 0o102_764);
    }

    #[test]
    fn what_makes_no_sense_is_not_taken() {
        let minimal = [(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 4, NO_ID)];
        assert!(Acl::parse(&value(&minimal)).unwrap().unwrap().is_minimal());
        assert_eq!(Acl::parse(&value(&[])), Some(None));
        assert_eq!(Acl::parse(b"\x02\0\0"), None);
        assert_eq!(Acl::parse(&value(&minimal[..2])), None, "others are missing");
        let named = [minimal[0], (USER, 7, 5), minimal[1], minimal[2]];
        assert_eq!(Acl::parse(&value(&named)), None, "names need a mask");
        let twice = [minimal[0], minimal[0], minimal[1], minimal[2]];
        assert_eq!(Acl::parse(&value(&twice)), None);
        assert_eq!(Acl::parse(&value(&[(USER_OBJ, 8, NO_ID), minimal[1], minimal[2]])), None);
        assert_eq!(Acl::parse(&value(&[(3, 1, NO_ID), minimal[1], minimal[2]])), None);
    }

    #[test]
    fn chmod_changes_the_mask_and_leaves_the_names() {
        let acl = full().with_mode(0o710);
        assert_eq!(acl.mask, Some(1));
        assert_eq!((acl.group_obj, acl.users[0]), (5, (1001, 6)));
        assert_eq!(acl.apply_to(0), 0o710);
    }

    #[test]
    fn what_is_inherited_is_bounded_by_the_mode() {
        let (acl, mode) = full().inherit(0o100_640);
        assert_eq!(mode, 0o100_640 & 0o100_764);
        assert_eq!((acl.user_obj, acl.mask, acl.other), (6, Some(4), 0));
        assert_eq!(acl.groups, [(2001, 7)]);
    }
}
