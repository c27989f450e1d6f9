//! Sets of half-open ranges of numbers.

/// A set of numbers as sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals(Vec<(u64, u64)>);

impl Intervals {
    /// Adds `start..end`.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|(_, e)| *e < start);
        let last = self.0.partition_point(|(s, _)| *s <= end);
        let merged = self.0[first..last]
            .iter()
            .fold((start, end), |(s, e), (other_s, other_e)| (s.min(*other_s), e.max(*other_e)));
        self.0.splice(first..last, [merged]);
    }

    /// Adds every range of `other`.
    pub fn add_all(&mut self, other: &Intervals) {
        for (start, end) in other.iter() {
            self.add(start, end);
        }
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Intervals) -> Intervals {
        let mut left = Vec::new();
        let mut others = other.0.iter().copied().peekable();
        for (start, end) in self.iter() {
            let mut at = start;
            while others.next_if(|(_, e)| *e <= start).is_some() {}
            let mut rest = others.clone();
            while let Some((s, e)) = rest.next_if(|(s, _)| *s < end) {
                if s > at {
                    left.push((at, s));
                }
                at = at.max(e);
            }
            if at < end {
                left.push((at, end));
            }
        }
        Intervals(left)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(start, end)| end - start).sum()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u64, u64)]) -> (Intervals, BTreeSet<u64>) {
        let mut intervals = Intervals::default();
        let mut numbers = BTreeSet::new();
        for (start, length) in ranges {
            intervals.add(*start, start + length);
            numbers.extend(*start..start + length);
        }
        (intervals, numbers)
    }

    proptest! {
        #[test]
        fn they_behave_as_sets_of_numbers(
            a in proptest::collection::vec((0u64..60, 0u64..9), 0..12),
            b in proptest::collection::vec((0u64..60, 0u64..9), 0..12),
        ) {
            let (a, a_set) = set(&a);
            let (b, b_set) = set(&b);
            let numbers = |i: &Intervals| i.iter().flat_map(|(s, e)| s..e).collect::<BTreeSet<_>>();
            prop_assert_eq!(numbers(&a), a_set.clone());
            prop_assert_eq!(a.total(), a_set.len() as u64);
            prop_assert_eq!(numbers(&a.without(&b)), a_set.difference(&b_set).copied().collect());
            for pair in a.0.windows(2) {
                prop_assert!(pair[0].1 < pair[1].0);
            }
        }
    }
}
