//! The histograms that openraft counts its batches in, in place of the crate of this name.
//!
//! That one makes tables for 16 resolutions when the first histogram is made, 26 MiB, of which openraft uses 2 KiB: four fifths
//! of what a metadata server at rest had in memory. Here the same buckets are computed. This is what openraft calls, and no
//! more.

use std::fmt;
use std::marker::PhantomData;

/// Buckets for each power of two.
const PER_POWER: usize = 4;

/// Counts values in buckets that are a quarter of a power of two wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// Those up to the greatest one in which something was counted.
    counts: Vec<u64>,
    of: PhantomData<T>,
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    if value < PER_POWER as u64 {
        return value as usize;
    }
    let power = value.ilog2() as usize;
    (power - 1) * PER_POWER + ((value >> (power - 2)) as usize) % PER_POWER
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    match bucket / PER_POWER {
        0 => bucket as u64,
        group => ((PER_POWER + bucket % PER_POWER) as u64) << (group - 1),
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Nothing was counted.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: Vec::new(), of: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value so many times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        let bucket = bucket(value);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += times;
        }
    }

    /// How many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What so many thousandths of the values don't exceed, to the width of a bucket; 0 if there are none.
    fn at_permille(&self, permille: u64) -> u64 {
        let mut left = (self.total() * permille).div_ceil(1000).max(1);
        for (bucket, count) in self.counts.iter().enumerate() {
            if *count >= left {
                return least(bucket);
            }
            left -= count;
        }
        0
    }

    /// How the values are distributed.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.at_permille(1),
            p1: self.at_permille(10),
            p5: self.at_permille(50),
            p10: self.at_permille(100),
            p50: self.at_permille(500),
            p90: self.at_permille(900),
            p99: self.at_permille(990),
            p99_9: self.at_permille(999),
        }
    }
}

/// A distribution: so many of a hundred values don't exceed each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} values, 0.1 %: {}, 1 %: {}, 5 %: {}, 10 %: {}, 50 %: {}, 90 %: {}, 99 %: {}, 99.9 %: {}",
            self.samples, self.p0_1, self.p1, self.p5, self.p10, self.p50, self.p90, self.p99, self.p99_9
        )
    }
}

/// Several distributions, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsciiChart<T = ()>(Vec<(String, Histogram<T>)>);

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// With this one, too.
    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.0.push((name.to_owned(), histogram));
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, one)| writeln!(f, "{name}: {}", one.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values below [`PER_POWER`] have a bucket each, and 62 powers of two follow.
    const BUCKETS: usize = PER_POWER * 63;

    #[test]
    fn buckets_cover_all_values_in_order() {
        assert_eq!((bucket(u64::MAX), least(0)), (BUCKETS - 1, 0));
        for number in 1..BUCKETS {
            let first = least(number);
            assert_eq!((bucket(first - 1), bucket(first)), (number - 1, number));
        }
    }

    #[test]
    fn a_distribution_is_told_to_the_width_of_a_bucket() {
        let mut histogram = Histogram::<()>::default();
        assert_eq!(histogram.percentile_stats().p50, 0);
        (1..=1000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p1), (1000, 1, 10));
        assert_eq!((stats.p50, stats.p90, stats.p99_9), (448, 896, 896));
        assert!(stats.to_string().starts_with("1000 values, 0.1 %: 1,"));
        histogram.record_n(7, 3);
        let chart = AsciiChart::default().add("sizes", histogram);
        assert!(chart.to_string().starts_with("sizes: 1003 values, "));
    }
}
