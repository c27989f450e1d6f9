//! How many bytes of log lie after an entry: for deciding when to flush and what to drop.

use std::collections::VecDeque;

use crate::types::LogPosition;

/// Distance between two remembered points, in bytes of log; answers are exact to about this much,
/// rounded up.
const POINT_BYTES: u64 = 1 << 20;

/// A running count of bytes written to the log, with the positions where it passed certain values.
#[derive(Debug, Default)]
pub(crate) struct Account {
    total: u64,
    last: Option<LogPosition>,
    points: VecDeque<(LogPosition, u64)>,
}

impl Account {
    /// An entry was written, with a record of `bytes`.
    pub(crate) fn add(&mut self, position: LogPosition, bytes: u64) {
        self.total += bytes;
        self.last = Some(position);
        if self.points.back().map_or(0, |(_, at)| *at) + POINT_BYTES <= self.total {
            self.points.push_back((position, self.total));
        }
    }

    /// The entries after `position` are void; their bytes stay counted until a flush.
    pub(crate) fn truncate(&mut self, position: Option<LogPosition>) {
        let kept = position.map_or(0, |p| p.index + 1);
        while self.points.back().is_some_and(|(point, _)| point.index >= kept) {
            self.points.pop_back();
        }
        self.last = position;
    }

    /// Everything up to `position` is elsewhere, and nothing comes after it.
    pub(crate) fn jump(&mut self, position: LogPosition) {
        self.points.clear();
        self.last = Some(position);
    }

    /// The entries up to `index` are dropped.
    pub(crate) fn purge(&mut self, index: u64) {
        // One point at or before the index is kept, as the floor of what comes after.
        while self.points.get(1).is_some_and(|(point, _)| point.index <= index) {
            self.points.pop_front();
        }
    }

    /// Bytes written in all.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The count when the entry at `index` had been written (or somewhat less).
    pub(crate) fn at(&self, index: u64) -> u64 {
        if self.last.is_none_or(|last| last.index <= index) {
            return self.total;
        }
        let after = self.points.partition_point(|(point, _)| point.index <= index);
        after.checked_sub(1).map_or(0, |i| self.points[i].1)
    }

    /// The last remembered position, not after `upto`, with at least `keep` bytes between the two.
    pub(crate) fn position_before(&self, upto: LogPosition, keep: u64) -> Option<LogPosition> {
        if keep == 0 {
            return Some(upto);
        }
        let end = self.at(upto.index);
        let fits = |&&(point, at): &&(LogPosition, u64)| point.index <= upto.index && at + keep <= end;
        self.points.iter().take_while(fits).last().map(|(point, _)| *point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pos(index: u64) -> LogPosition {
        LogPosition { term: 1, index }
    }

    #[test]
    fn counts_after_a_position() {
        let mut account = Account::default();
        assert_eq!(account.at(5), 0);
        for index in 0..1000 {
            account.add(pos(index), 10_000);
        }
        assert_eq!(account.total(), 10_000_000);
        assert_eq!(account.at(999), 10_000_000);
        for index in [0, 1, 104, 105, 500, 998] {
            let exact = (index + 1) * 10_000;
            let found = account.at(index);
            assert!(found <= exact && exact - found < POINT_BYTES + 10_000, "{index}: {found}");
        }
        assert_eq!(account.position_before(pos(900), 0), Some(pos(900)));
        let kept = account.position_before(pos(900), 4_000_000).unwrap();
        assert!(kept.index <= 500 && kept.index > 250, "{kept}");
        assert_eq!(account.position_before(pos(900), 40_000_000), None);
        account.purge(500);
        assert!(account.at(998) > 8_000_000);
        account.truncate(Some(pos(700)));
        assert_eq!(account.at(700), 10_000_000, "void bytes are counted");
        account.add(pos(701), 10_000);
        assert!(account.at(700) < 8_000_000);
        account.jump(pos(5000));
        assert_eq!(account.at(5000), account.total());
    }
}
