//! What a change has done: targets beside those they are judged by.

use std::fmt::Write;

use super::numbers::{Ratio, short};
use super::table::markdown;
use crate::run::Run;
use crate::target::Target;
use crate::workload::Workload;

/// A table in Markdown with a line for each workload and two columns for each target that is judged by another one;
/// empty if there is none.
pub fn against(targets: &[Target], chosen: &[&Workload], run: &Run) -> String {
    let pairs: Vec<(usize, usize)> =
        targets.iter().enumerate().filter_map(|(column, target)| Some((column, target.against?))).collect();
    if pairs.is_empty() {
        return String::new();
    }
    let mut lines = vec![vec!["workload".to_owned()]];
    for (new, _) in &pairs {
        lines[0].extend(["speed", "CPU"].map(|what| format!("{}: {what}", targets[*new].name)));
    }
    for (workload, cells) in chosen.iter().zip(&run.cells) {
        let mut line = vec![workload.name.to_owned()];
        for (new, old) in &pairs {
            let (new, old) = (&cells[*new], &cells[*old]);
            line.push(shown(Ratio::of_speed(new, old, workload.unit)));
            line.push(shown(Ratio::of_cost(new, old, workload.unit)));
        }
        lines.push(line);
    }
    let mut text = String::new();
    let judged: Vec<String> =
        pairs.iter().map(|(new, old)| format!("{} by {}", targets[*new].name, targets[*old].name)).collect();
    let _ = writeln!(
        text,
        "\nWhat has changed: {}; speed as a multiple (above 1 is faster) and CPU per unit as a multiple (below 1 is \
         cheaper), median of the rounds (lowest to highest)\n",
        judged.join(", ")
    );
    text.push_str(&markdown(&lines));
    text
}

fn shown(ratio: Option<Ratio>) -> String {
    ratio.map_or("failed".to_owned(), |ratio| {
        format!("{}× ({}–{})", short(ratio.median), short(ratio.low), short(ratio.high))
    })
}
