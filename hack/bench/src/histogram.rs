//! Durations of many operations in little memory.

use std::time::Duration;

/// Each power of two of nanoseconds has this many buckets: percentiles are exact to 1.6 %.
const PARTS: u64 = 64;
const BUCKETS: usize = (64 - 6) * PARTS as usize + PARTS as usize;

/// How often which duration occurred.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < PARTS {
        return nanoseconds as usize;
    }
    let power = u64::from(63 - nanoseconds.leading_zeros()) - 6;
    (power * PARTS + (nanoseconds >> power)) as usize
}

/// The smallest duration of a bucket.
fn floor(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * PARTS {
        return bucket;
    }
    let power = bucket / PARTS - 1;
    (bucket - power * PARTS) << power
}

impl Histogram {
    /// Counts one operation.
    pub fn add(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// How many operations were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The duration in microseconds that this share (0 to 1) of all operations did not exceed; `None` without any.
    pub fn percentile_us(&self, share: f64) -> Option<f64> {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(floor(bucket) as f64 / 1000.0);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_into_a_bucket_close_to_it() {
        let mut last = 0;
        for n in (0..4096).chain((12..63).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + (1 << (p - 1))])) {
            let b = bucket(n);
            assert!(b < BUCKETS && b >= last, "{n}");
            last = b;
            assert!(floor(b) <= n && n - floor(b) <= n / 64, "{n} fell to {}", floor(b));
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_those_of_the_durations() {
        let mut all = Histogram::default();
        assert_eq!(all.percentile_us(0.5), None);
        for n in 1..=1000 {
            all.add(Duration::from_micros(n));
        }
        let near = |share, expected: f64| {
            let got = all.percentile_us(share).unwrap();
            assert!((got - expected).abs() <= expected * 0.02, "{share}: {got}");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        near(1.0, 1000.0);
        let mut twice = all.clone();
        twice.merge(&all);
        assert_eq!(twice.count(), 2000);
        assert_eq!(twice.percentile_us(0.5), all.percentile_us(0.5));
    }
}
