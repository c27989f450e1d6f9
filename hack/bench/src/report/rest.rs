//! What a volume costs while nobody uses it, and until it is usable.

use std::time::Duration;

use super::numbers::{median, short};
use super::table::markdown;
use crate::run::Run;
use crate::target::Target;

/// A table in Markdown with a line for each target that has servers; empty if nothing is known of any.
pub fn rest(targets: &[Target], run: &Run) -> String {
    let mut lines = vec![
        [
            "target",
            "processes",
            "start-up, new (ms)",
            "again (ms)",
            "idle CPU (% of a core)",
            "idle memory (MiB)",
            "memory after the work (MiB)",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (column, target) in targets.iter().enumerate().filter(|(_, target)| !target.pids.is_empty()) {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let first = target.started.first().map(|time| ms(*time));
        let again = median(target.started.iter().skip(1).map(|time| ms(*time)).collect());
        let rest = run.rest.get(column).copied().flatten();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let known = |value: Option<f64>| value.map_or("-".to_owned(), short);
        lines.push(vec![
            target.name.clone(),
            target.pids.len().to_string(),
            known(first),
            known(again),
            known(rest.map(|rest| rest.cores * 100.0)),
            known(rest.and_then(|rest| rest.memory).map(mib)),
            known(run.memory.get(column).copied().flatten().map(mib)),
        ]);
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!("\nAt rest: all processes of a volume together; memory as Pss\n\n{}", markdown(&lines))
}
