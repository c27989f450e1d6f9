//! A set of block numbers below a fixed bound.

use std::ops::Range;

/// One bit per block of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
    bits: u32,
}

impl Bitmap {
    /// The empty set of numbers below `bits`.
    pub fn new(bits: u32) -> Self {
        Self { words: vec![0; bits.div_ceil(64) as usize], bits }
    }

    /// Reads what [`Self::write_to`] wrote. Bits past the bound, which it never sets, count for nothing.
    pub(super) fn read_from(bits: u32, bytes: &[u8]) -> Self {
        let mut map = Self::new(bits);
        for (word, part) in map.words.iter_mut().zip(bytes.chunks(8)) {
            let mut raw = [0; 8];
            raw[..part.len()].copy_from_slice(part);
            *word = u64::from_le_bytes(raw);
        }
        if let (Some(last), rest @ 1..) = (map.words.last_mut(), bits % 64) {
            *last &= (1 << rest) - 1;
        }
        map
    }

    /// Writes the set into `bytes`, block 0 as the lowest bit of the first byte. `bytes` has room for all
    /// bits, rounded up to whole bytes.
    pub(super) fn write_to(&self, bytes: &mut [u8]) {
        for (word, part) in self.words.iter().zip(bytes.chunks_mut(8)) {
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        }
    }

    /// Whether a block is in the set; one past the bound isn't.
    pub fn contains(&self, block: u32) -> bool {
        block < self.bits && self.words[block as usize / 64] & (1 << (block % 64)) != 0
    }

    /// Adds a range.
    pub fn insert(&mut self, blocks: Range<u32>) {
        assert!(blocks.end <= self.bits, "block {} is past the bound {}", blocks.end, self.bits);
        for block in blocks {
            self.words[block as usize / 64] |= 1 << (block % 64);
        }
    }

    /// Whether the whole range is in the set.
    pub fn contains_all(&self, blocks: Range<u32>) -> bool {
        blocks.into_iter().all(|block| self.contains(block))
    }

    /// The members of the set that are in a range, ascending.
    pub fn within(&self, blocks: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        blocks.filter(|block| self.contains(*block))
    }

    /// How many numbers, from 0 on, are in the set without a gap.
    pub fn prefix(&self) -> u32 {
        let mut prefix = 0;
        for word in &self.words {
            prefix += word.trailing_ones();
            if *word != u64::MAX {
                break;
            }
        }
        prefix.min(self.bits)
    }

    /// How many numbers are in the set.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The set as ascending runs without gaps.
    pub fn runs(&self) -> Vec<Range<u32>> {
        runs(self.within(0..self.bits))
    }
}

/// Joins ascending numbers into runs.
pub fn runs(blocks: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_runs_and_prefix() {
        let mut map = Bitmap::new(200);
        assert_eq!(map.prefix(), 0);
        map.insert(0..130);
        map.insert(140..141);
        assert_eq!((map.prefix(), map.count()), (130, 131));
        assert_eq!(map.runs(), vec![0..130, 140..141]);
        assert!(map.contains(140) && !map.contains(141) && !map.contains(5000));
        assert!(map.contains_all(10..130) && !map.contains_all(100..131));
        assert_eq!(map.within(128..200).collect::<Vec<_>>(), vec![128, 129, 140]);
    }

    #[test]
    fn survives_its_bytes() {
        for bits in [1, 8, 63, 64, 65, 100] {
            let mut map = Bitmap::new(bits);
            map.insert(bits - 1..bits);
            map.insert(0..bits / 2);
            let mut bytes = vec![0; bits.div_ceil(8) as usize];
            map.write_to(&mut bytes);
            assert_eq!(Bitmap::read_from(bits, &bytes), map, "{bits}");
        }
    }

    #[test]
    fn bits_past_the_bound_are_no_blocks() {
        for bits in [1, 16, 63, 64, 65, 128] {
            let map = Bitmap::read_from(bits, &[0xff; 24]);
            assert_eq!((map.count(), map.prefix()), (bits, bits), "{bits}");
            assert!(map.runs().into_iter().eq(std::iter::once(0..bits)), "{bits}");
        }
    }
}
