//! Tables for people.

use std::fmt::Write;

use super::against::against;
use super::numbers::{Numbers, short, speed};
use super::rest::rest;
use crate::machine::Facts;
use crate::plan::Plan;
use crate::run::{Cell, Run};
use crate::target::Target;
use crate::workload::Workload;

/// Prints every number, a block for each workload.
pub fn print(facts: &Facts, plan: &Plan, targets: &[Target], chosen: &[&Workload], run: &Run) {
    print!("\n{}", heading(facts, plan, targets, run));
    let width = targets.iter().map(|target| target.name.len()).max().unwrap_or(0).max(8);
    for (workload, cells) in chosen.iter().zip(&run.cells) {
        let unit = workload.unit.name();
        println!("\n{}: {}", workload.name, workload.what);
        println!(
            "  {:width$} {:>9} {:>5} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8} | {:>7} {:>7} {:>7}",
            "",
            format!("{unit}/s"),
            "±",
            "p50 µs",
            "p99 µs",
            "own",
            "servers",
            "later",
            "kernel",
            "×local",
            "×pass",
            "CPU×loc"
        );
        for (target, cell) in targets.iter().zip(cells) {
            println!("  {:width$} {}", target.name, line(cell, workload, targets, cells));
        }
    }
    println!(
        "\nown, servers, later, kernel: CPU µs per unit, of the workload, of the target's servers meanwhile and \
         afterwards,\nand of all kernel threads of the machine. ×: how many times as fast as that target in the same round."
    );
}

fn line(cell: &Cell, workload: &Workload, targets: &[Target], cells: &[Cell]) -> String {
    let Some(n) = Numbers::of(cell, workload.unit) else { return format!("{:>9}", "failed") };
    let optional = |value: Option<f64>| value.map_or("-".to_owned(), short);
    let [local, passthrough] = ["local", "passthrough"].map(|name| base(name, targets, cells));
    let ratio = |base: Option<&Cell>| optional(base.and_then(|base| speed(cell, base, workload.unit)));
    let cpu = local.and_then(|base| Numbers::of(base, workload.unit)).map(|base| n.cpu_us() / base.cpu_us());
    format!(
        "{:>9} {:>4.0}% {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8} | {:>7} {:>7} {:>7}",
        short(n.rate),
        n.spread * 100.0,
        optional(n.p50_us),
        optional(n.p99_us),
        short(n.own_us),
        short(n.servers_us),
        short(n.later_us),
        short(n.kernel_us),
        ratio(local),
        ratio(passthrough),
        optional(cpu),
    )
}

/// The cells of a target to compare with.
fn base<'a>(name: &str, targets: &[Target], cells: &'a [Cell]) -> Option<&'a Cell> {
    targets.iter().position(|target| target.name == name).map(|column| &cells[column])
}

fn heading(facts: &Facts, plan: &Plan, targets: &[Target], run: &Run) -> String {
    let mut text = format!("{facts}\n");
    let cpus = run.measured.as_secs_f64().max(1e-9) * facts.cores as f64;
    let share = |time: std::time::Duration| 100.0 * time.as_secs_f64() / cpus;
    let _ = writeln!(
        text,
        "{} rounds in {:.0} s; files of {} and {} MiB, {} small files, {} files in tar's tree, {} in the repository",
        run.rounds,
        run.wall.as_secs_f64(),
        plan.stream_bytes >> 20,
        plan.random_bytes >> 20,
        plan.files,
        plan.tree_files,
        plan.git_files
    );
    let _ = writeln!(
        text,
        "while measuring, other programs used {:.0} % of the CPUs, the hypervisor took {:.0} %",
        share(run.used.others()),
        share(run.used.stolen)
    );
    for target in targets {
        let served = if target.pids.is_empty() { "" } else { ", CPU of its servers is counted" };
        let _ = writeln!(text, "{}: {}{served}", target.name, target.mount.kind);
    }
    text
}

/// Tables in Markdown: speed and CPU, a line for each workload, a column for each target; what has changed.
pub fn summary(facts: &Facts, plan: &Plan, targets: &[Target], chosen: &[&Workload], run: &Run) -> String {
    let mut text = String::new();
    for line in heading(facts, plan, targets, run).lines() {
        let _ = writeln!(text, "- {line}");
    }
    let speeds = |workload: &Workload, cell: &Cell, cells: &[Cell]| {
        let n = Numbers::of(cell, workload.unit)?;
        let ratio = base("local", targets, cells)
            .filter(|base| !std::ptr::eq(*base, cell))
            .and_then(|base| speed(cell, base, workload.unit));
        Some(format!(
            "{}{}",
            short(n.rate),
            ratio.map_or(String::new(), |ratio| format!(" ({}×)", short(ratio)))
        ))
    };
    text.push_str("\nSpeed: units a second (as a multiple of the local filesystem)\n\n");
    text.push_str(&matrix(targets, chosen, run, &speeds));
    let cpu = |workload: &Workload, cell: &Cell, _: &[Cell]| {
        let n = Numbers::of(cell, workload.unit)?;
        let servers = n.servers_us + n.later_us;
        Some(format!("{} + {}", short(n.own_us), short(servers)))
    };
    text.push_str("\nCPU: microseconds per unit, of the workload + of the target's servers\n\n");
    text.push_str(&matrix(targets, chosen, run, &cpu));
    text.push_str(&rest(targets, run));
    text.push_str(&against(targets, chosen, run));
    text
}

type CellText<'a> = dyn Fn(&Workload, &Cell, &[Cell]) -> Option<String> + 'a;

fn matrix(targets: &[Target], chosen: &[&Workload], run: &Run, cell_text: &CellText) -> String {
    let mut lines = vec![vec!["workload".to_owned(), "unit".to_owned()]];
    lines[0].extend(targets.iter().map(|target| target.name.clone()));
    for (workload, cells) in chosen.iter().zip(&run.cells) {
        let mut line = vec![workload.name.to_owned(), workload.unit.name().to_owned()];
        line.extend(
            cells.iter().map(|cell| cell_text(workload, cell, cells).unwrap_or_else(|| "failed".to_owned())),
        );
        lines.push(line);
    }
    markdown(&lines)
}

/// A table of lines of equal length; the first one is its head.
pub fn markdown(lines: &[Vec<String>]) -> String {
    let columns = lines[0].len();
    let width = |c: usize| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(text, "| {} ", "-".repeat(*width));
            }
            text.push_str("|\n");
        }
    }
    text
}
