//! Which units of the arena's data area are in use. Pure: no memory is touched here.

use std::ops::Range;

const WORD: usize = u64::BITS as usize;

/// A set of units.
#[derive(Clone, Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(units: usize) -> Self {
        Bits(vec![0; units.div_ceil(WORD)])
    }

    fn get(&self, unit: usize) -> bool {
        self.0[unit / WORD] & (1 << (unit % WORD)) != 0
    }

    /// Sets the units of `range` to `value`; returns how many changed.
    fn set(&mut self, range: Range<usize>, value: bool) -> usize {
        let mut changed = 0;
        let mut unit = range.start;
        while unit < range.end {
            let bit = unit % WORD;
            let count = (WORD - bit).min(range.end - unit);
            let mask = if count == WORD { u64::MAX } else { ((1 << count) - 1) << bit };
            let word = &mut self.0[unit / WORD];
            let different = if value { !*word & mask } else { *word & mask };
            changed += different.count_ones() as usize;
            *word ^= different;
            unit += count;
        }
        changed
    }

    /// The first unit at or after `from` whose bit is `value`, or `end` if there is none before it.
    fn find(&self, from: usize, end: usize, value: bool) -> usize {
        let mut unit = from;
        while unit < end {
            let word = self.0[unit / WORD];
            let word = if value { word } else { !word } & (u64::MAX << (unit % WORD));
            if word != 0 {
                return (unit / WORD * WORD + word.trailing_zeros() as usize).min(end);
            }
            unit = (unit / WORD + 1) * WORD;
        }
        end
    }
}

/// Units in use, and units that hold memory.
#[derive(Clone, Debug)]
pub struct Allocator {
    units: usize,
    used: Bits,
    /// Units that were used since their memory was given back.
    resident: Bits,
    used_count: usize,
    resident_count: usize,
}

impl Allocator {
    /// All free, none with memory.
    #[must_use]
    pub fn new(units: usize) -> Self {
        Allocator {
            units,
            used: Bits::new(units),
            resident: Bits::new(units),
            used_count: 0,
            resident_count: 0,
        }
    }

    /// Takes a run of `wanted` units, the lowest there is, so that memory that was used before is used again;
    /// if no run is that long, the longest. `None` if everything is in use.
    pub fn allocate(&mut self, wanted: usize) -> Option<Range<usize>> {
        let mut best = 0..0;
        let mut at = 0;
        while at < self.units && best.len() < wanted {
            let start = self.used.find(at, self.units, false);
            let end = self.used.find(start, self.units.min(start + wanted), true);
            if end - start > best.len() {
                best = start..end;
            }
            at = end.max(start + 1);
        }
        if best.is_empty() || wanted == 0 {
            return None;
        }
        self.take(best.clone());
        Some(best)
    }

    /// Marks units as used, as an adopter finds them.
    pub fn take(&mut self, range: Range<usize>) {
        self.used_count += self.used.set(range.clone(), true);
        self.resident_count += self.resident.set(range, true);
    }

    /// True if none of the units is in use.
    #[must_use]
    pub fn is_free(&self, range: Range<usize>) -> bool {
        self.used.find(range.start, range.end, true) == range.end
    }

    /// Frees a run.
    pub fn free(&mut self, range: Range<usize>) {
        self.used_count -= self.used.set(range, false);
    }

    /// The memory of these units was given back.
    pub fn evicted(&mut self, range: Range<usize>) {
        self.resident_count -= self.resident.set(range, false);
    }

    /// The first run at or after `from` of free units that still have memory.
    #[must_use]
    pub fn idle(&self, from: usize) -> Option<Range<usize>> {
        let mut start = from;
        loop {
            start = self.resident.find(start, self.units, true);
            if start == self.units {
                return None;
            }
            if self.used.get(start) {
                start += 1;
                continue;
            }
            let end = self.resident.find(start, self.units, false);
            return Some(start..self.used.find(start, end, true));
        }
    }

    /// Units in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used_count
    }

    /// Free units that still have memory.
    #[must_use]
    pub fn idle_count(&self) -> usize {
        self.resident_count - self.used_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_lowest_run_that_is_long_enough_else_the_longest() {
        let mut units = Allocator::new(200);
        assert_eq!(units.allocate(100), Some(0..100));
        assert_eq!(units.allocate(50), Some(100..150));
        units.free(10..20);
        units.free(60..90);
        assert_eq!(units.allocate(5), Some(10..15));
        assert_eq!(units.allocate(30), Some(60..90));
        assert_eq!(units.allocate(60), Some(150..200));
        assert_eq!(units.allocate(60), Some(15..20));
        assert_eq!(units.allocate(1), None);
        assert_eq!(units.used(), 200);
    }

    #[test]
    fn knows_which_free_units_hold_memory() {
        let mut units = Allocator::new(130);
        let run = units.allocate(130).unwrap();
        assert_eq!(units.idle(0), None);
        units.free(run.clone());
        let again = units.allocate(2).unwrap();
        assert_eq!(again, 0..2);
        assert_eq!(units.idle_count(), 128);
        assert_eq!(units.idle(0), Some(2..130));
        units.evicted(2..130);
        assert_eq!(units.idle_count(), 0);
        assert_eq!(units.idle(0), None);
        assert!(units.is_free(2..130) && !units.is_free(1..3));
    }

    #[test]
    fn random_use_agrees_with_a_list() {
        let mut units = Allocator::new(300);
        let mut model = vec![false; 300];
        let mut held: Vec<Range<usize>> = Vec::new();
        let mut random: u64 = 42;
        for _ in 0..5000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (random >> 33) as usize;
            if number.is_multiple_of(3) && !held.is_empty() {
                let run = held.swap_remove(number % held.len());
                model[run.clone()].fill(false);
                units.free(run);
            } else if let Some(run) = units.allocate(number % 20 + 1) {
                assert!(model[run.clone()].iter().all(|used| !used));
                model[run.clone()].fill(true);
                held.push(run);
            }
            assert_eq!(units.used(), model.iter().filter(|used| **used).count());
        }
    }
}
