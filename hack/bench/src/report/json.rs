//! Results for programs. Times in seconds, CPU in microseconds per unit.

use serde_json::{Map, Value, json};

use super::numbers::{Numbers, rate, speed};
use crate::machine::Facts;
use crate::plan::Plan;
use crate::run::{Cell, Run, Sample};
use crate::target::Target;
use crate::workload::{Unit, Workload};

/// Version of the layout below.
const FORMAT: u32 = 1;

/// Everything, as one object.
pub fn json(facts: &Facts, plan: &Plan, targets: &[Target], chosen: &[&Workload], run: &Run) -> String {
    let described: Vec<Value> = targets
        .iter()
        .zip(&run.memory)
        .zip(&run.rest)
        .map(|((target, memory), rest)| {
            json!({
                "name": target.name,
                "filesystem": target.mount.kind,
                "servers": target.pids.len(),
                "servers_pss_bytes": memory,
                "servers_idle_pss_bytes": rest.and_then(|rest| rest.memory),
                "servers_idle_cores": rest.map(|rest| rest.cores),
                "started_seconds": target.started.iter().map(std::time::Duration::as_secs_f64).collect::<Vec<_>>(),
                "against": target.against.map(|other| &targets[other].name),
            })
        })
        .collect();
    let workloads: Vec<Value> = chosen
        .iter()
        .zip(&run.cells)
        .map(|(workload, cells)| {
            let results: Map<String, Value> = targets
                .iter()
                .zip(cells)
                .map(|(target, cell)| (target.name.clone(), result(cell, workload.unit, targets, cells)))
                .collect();
            json!({
                "name": workload.name,
                "group": workload.group,
                "what": workload.what,
                "unit": workload.unit.name(),
                "targets": results,
            })
        })
        .collect();
    let all = json!({
        "format": FORMAT,
        "machine": facts.json(),
        "rounds": run.rounds,
        "seconds": run.wall.as_secs_f64(),
        "measured": {
            "seconds": run.measured.as_secs_f64(),
            "others_cpu_seconds": run.used.others().as_secs_f64(),
            "stolen_cpu_seconds": run.used.stolen.as_secs_f64(),
        },
        "plan": {
            "stream_bytes": plan.stream_bytes,
            "random_bytes": plan.random_bytes,
            "small_files": plan.files,
            "tree_files_max": plan.tree_files,
            "git_files": plan.git_files,
            "big_files": plan.big_files,
            "rest_seconds": plan.rest.as_secs(),
        },
        "targets": described,
        "workloads": workloads,
        "failures": run.failures,
    });
    format!("{all:#}\n")
}

fn result(cell: &Cell, unit: Unit, targets: &[Target], cells: &[Cell]) -> Value {
    let Some(n) = Numbers::of(cell, unit) else { return Value::Null };
    let against: Map<String, Value> = targets
        .iter()
        .zip(cells)
        .filter(|(_, base)| !std::ptr::eq(*base, cell))
        .filter_map(|(target, base)| Some((target.name.clone(), json!(speed(cell, base, unit)?))))
        .collect();
    let samples: Vec<Value> = cell.samples.iter().map(|sample| one(sample, unit)).collect();
    json!({
        "rate": n.rate,
        "spread": n.spread,
        "operations_timed": cell.latencies.count(),
        "p50_us": n.p50_us,
        "p99_us": n.p99_us,
        "own_cpu_us": n.own_us,
        "servers_cpu_us": n.servers_us,
        "servers_later_cpu_us": n.later_us,
        "kernel_cpu_us": n.kernel_us,
        "times_as_fast_as": against,
        "samples": samples,
    })
}

fn one(sample: &Sample, unit: Unit) -> Value {
    json!({
        "round": sample.round,
        "units": sample.units,
        "seconds": sample.wall.as_secs_f64(),
        "rate": rate(sample, unit),
        "own_cpu_seconds": sample.used.own.as_secs_f64(),
        "servers_cpu_seconds": sample.used.servers.as_secs_f64(),
        "servers_later_cpu_seconds": sample.after.servers.as_secs_f64(),
        "kernel_cpu_seconds": sample.used.kernel.as_secs_f64() + sample.after.kernel.as_secs_f64(),
        "others_cpu_seconds": sample.used.others().as_secs_f64(),
    })
}
