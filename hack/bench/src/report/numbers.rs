//! From samples to the numbers of the tables.

use std::time::Duration;

use crate::run::{Cell, Sample};
use crate::workload::Unit;

/// What the tables say about one workload on one target. Medians over the rounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    /// Units a second.
    pub rate: f64,
    /// Half the distance from the slowest to the fastest round, as a share of the median.
    pub spread: f64,
    /// Microseconds of an operation: half of them are faster, 99 of 100 are faster.
    pub p50_us: Option<f64>,
    /// See `p50_us`.
    pub p99_us: Option<f64>,
    /// CPU microseconds per unit of the workload's own process.
    pub own_us: f64,
    /// The same of the target's servers, meanwhile.
    pub servers_us: f64,
    /// The same of the target's servers, afterwards.
    pub later_us: f64,
    /// The same of the kernel's threads, meanwhile and afterwards. The whole machine's.
    pub kernel_us: f64,
}

impl Numbers {
    /// `None` without a sample.
    pub fn of(cell: &Cell, unit: Unit) -> Option<Self> {
        let of = |f: &dyn Fn(&Sample) -> f64| median(cell.samples.iter().map(f).collect());
        let per =
            |sample: &Sample, time: Duration| time.as_secs_f64() * 1e6 / (sample.units as f64 / unit.size());
        let rates: Vec<f64> = cell.samples.iter().map(|sample| rate(sample, unit)).collect();
        let median_rate = median(rates.clone())?;
        let (low, high) = rates.iter().fold((f64::MAX, 0f64), |(low, high), r| (low.min(*r), high.max(*r)));
        Some(Self {
            rate: median_rate,
            spread: (high - low) / 2.0 / median_rate,
            p50_us: cell.latencies.percentile_us(0.5),
            p99_us: cell.latencies.percentile_us(0.99),
            own_us: of(&|s| per(s, s.used.own))?,
            servers_us: of(&|s| per(s, s.used.servers))?,
            later_us: of(&|s| per(s, s.after.servers))?,
            kernel_us: of(&|s| per(s, s.used.kernel + s.after.kernel))?,
        })
    }

    /// CPU microseconds per unit of everything that belongs to the work for sure.
    pub fn cpu_us(&self) -> f64 {
        self.own_us + self.servers_us + self.later_us
    }
}

/// Units a second of one sample.
pub fn rate(sample: &Sample, unit: Unit) -> f64 {
    sample.units as f64 / unit.size() / sample.wall.as_secs_f64().max(1e-9)
}

/// CPU seconds per unit of one sample, of everything that belongs to the work for sure.
fn cost(sample: &Sample, unit: Unit) -> f64 {
    let time = sample.used.own + sample.used.servers + sample.after.servers;
    time.as_secs_f64() / (sample.units as f64 / unit.size())
}

/// How two targets compare: within each round, since what else the machine did was similar then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The median of all rounds.
    pub median: f64,
    /// The lowest of any round.
    pub low: f64,
    /// The highest of any round.
    pub high: f64,
}

impl Ratio {
    /// `None` without a round that has both.
    fn of(cell: &Cell, base: &Cell, number: impl Fn(&Sample) -> f64) -> Option<Self> {
        let ratio = |sample: &Sample| {
            let other = base.samples.iter().find(|other| other.round == sample.round)?;
            Some(number(sample) / number(other)).filter(|ratio| ratio.is_finite())
        };
        let mut ratios: Vec<f64> = cell.samples.iter().filter_map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (*ratios.first()?, *ratios.last()?);
        Some(Self { median: median(ratios)?, low, high })
    }

    /// How many times as fast as `base` a target is.
    pub fn of_speed(cell: &Cell, base: &Cell, unit: Unit) -> Option<Self> {
        Self::of(cell, base, |sample| rate(sample, unit))
    }

    /// How many times the CPU of `base` a target needs per unit.
    pub fn of_cost(cell: &Cell, base: &Cell, unit: Unit) -> Option<Self> {
        Self::of(cell, base, |sample| cost(sample, unit))
    }
}

/// How many times as fast as `base` a target is: the median of the ratios within each round.
pub fn speed(cell: &Cell, base: &Cell, unit: Unit) -> Option<f64> {
    Ratio::of_speed(cell, base, unit).map(|ratio| ratio.median)
}

/// The one in the middle; `None` of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Two or three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 999_500.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 99_950.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 9_995.0 => format!("{:.1}k", value / 1000.0),
        v if v >= 99.5 => format!("{value:.0}"),
        v if v >= 9.95 => format!("{value:.1}"),
        v if v >= 0.0995 || v == 0.0 => format!("{value:.2}"),
        v if v >= 0.00995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Used;

    fn cell(rates: &[(u32, u64)]) -> Cell {
        let sample = |(round, units): &(u32, u64)| Sample {
            round: *round,
            units: *units,
            wall: Duration::from_secs(2),
            used: Used { own: Duration::from_millis(*units), ..Used::default() },
            after: Used { servers: Duration::from_micros(*units * 500), ..Used::default() },
        };
        Cell { samples: rates.iter().map(sample).collect(), ..Cell::default() }
    }

    #[test]
    fn tables_show_medians_and_spread() {
        let numbers = Numbers::of(&cell(&[(0, 100), (1, 200), (2, 600)]), Unit::Operations).unwrap();
        assert_eq!(numbers.rate, 100.0);
        assert_eq!(numbers.spread, 1.25);
        assert_eq!((numbers.own_us, numbers.later_us, numbers.cpu_us()), (1000.0, 500.0, 1500.0));
        assert_eq!(numbers.p50_us, None);
        assert_eq!(Numbers::of(&cell(&[]), Unit::Operations), None);
    }

    #[test]
    fn speeds_compare_what_was_measured_in_the_same_round() {
        // A machine that was four times slower in the second round.
        let (base, other) = (cell(&[(0, 400), (1, 100), (3, 50)]), cell(&[(0, 200), (1, 50), (2, 1)]));
        assert_eq!(speed(&other, &base, Unit::Operations), Some(0.5));
        assert_eq!(speed(&other, &cell(&[]), Unit::Operations), None);
        let (new, old) = (cell(&[(0, 30), (1, 40), (2, 20)]), cell(&[(0, 10), (1, 10), (2, 10)]));
        let ratio = Ratio::of_speed(&new, &old, Unit::Operations).unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (2.0, 3.0, 4.0));
        // These cells use CPU by the unit.
        assert_eq!(Ratio::of_cost(&new, &old, Unit::Operations).unwrap().median, 1.0);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.123, "0.12"),
            (9.96, "10.0"),
            (99.6, "100"),
            (1234.5, "1234"),
            (12_345.0, "12.3k"),
            (1.2e6, "1200k"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
