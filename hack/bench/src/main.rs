//! `make bench`: the same work on several filesystems, in turn, in one run.
//!
//! The way of a run: [`cli`] says what to measure; [`machine`] notes where; [`rest`] watches what does nothing; [`run`]
//! goes through rounds of [`workload`]s on [`target`]s, each between two looks at the clocks of [`cpu`]; [`report`]
//! compares.
//! `docs/benchmarks.md` says how to read the results.

mod cli;
mod cpu;
mod fault;
mod histogram;
mod machine;
mod plan;
mod random;
mod report;
mod rest;
mod run;
mod stop;
mod target;
mod watchdog;
mod workload;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use cli::Cli;
use machine::Facts;
use plan::Plan;
use run::Run;
use target::{Mount, Target};
use watchdog::Watchdog;
use workload::{ALL, Scratch, Workload};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for workload in ALL {
            println!("{:<12} {:<22} {}", workload.group, workload.name, workload.what);
        }
        return ExitCode::SUCCESS;
    }
    stop::catch_signals();
    match bench(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<ExitCode, String> {
    let facts = Facts::now();
    let mut plan = if cli.quick { Plan::quick() } else { Plan::full() };
    plan.rounds = cli.rounds.unwrap_or(plan.rounds);
    plan.budget = cli.budget.map_or(plan.budget, Duration::from_secs);
    plan.rest = match cli.rest {
        Some(seconds) => Duration::from_secs(seconds),
        None if cli.only.is_empty() => plan.rest,
        None => Duration::ZERO,
    };
    let chosen = choose(&cli.only)?;
    let scratch = cli.scratch.as_deref().ok_or("--scratch is missing")?;
    let scratch = scratch.join(format!("scratch-{}", std::process::id()));
    let folders = Folders::make(cli)?;
    eprintln!("bench: {facts}");
    let scratch = Scratch::make(&scratch, &plan, cli.tree.as_deref()).map_err(|error| error.to_string())?;
    let watchdog = Watchdog::start(Duration::from_secs(cli.hang));
    let run = Run::all(cli, &plan, &scratch, &folders.targets, &chosen, &watchdog);
    drop(scratch);
    let targets = folders.targets.clone();
    folders.remove(&watchdog);

    report::print(&facts, &plan, &targets, &chosen, &run);
    let summary = report::summary(&facts, &plan, &targets, &chosen, &run);
    println!("\n{summary}");
    let write =
        |path: &Path, text: String| fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
    if let Some(path) = &cli.markdown {
        write(path, summary)?;
    }
    if let Some(path) = &cli.json {
        write(path, report::json(&facts, &plan, &targets, &chosen, &run))?;
    }
    for failure in &run.failures {
        eprintln!("bench: {failure}");
    }
    Ok(match (run.interrupted, run.failures.is_empty()) {
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::from(3),
    })
}

/// The workloads that were asked for, in their own order.
fn choose(only: &[String]) -> Result<Vec<&'static Workload>, String> {
    let called = |w: &Workload, name: &str| w.name == name || w.group == name;
    let begins =
        |w: &Workload, word: &str| w.name.strip_prefix(word).is_some_and(|rest| rest.starts_with('-'));
    let mut wanted = vec![only.is_empty(); ALL.len()];
    for name in only {
        let is_exact = ALL.iter().any(|w| called(w, name));
        let found = ALL.iter().map(|w| if is_exact { called(w, name) } else { begins(w, name) });
        let found: Vec<bool> = found.collect();
        if !found.contains(&true) {
            return Err(format!("there is no workload or group '{name}': --list shows them"));
        }
        wanted.iter_mut().zip(found).for_each(|(wanted, found)| *wanted |= found);
    }
    Ok(ALL.iter().zip(wanted).filter_map(|(workload, wanted)| wanted.then_some(workload)).collect())
}

/// The targets' folders; removed when dropped.
struct Folders {
    targets: Vec<Target>,
}

impl Folders {
    fn make(cli: &Cli) -> Result<Self, String> {
        if cli.targets.is_empty() {
            return Err("no --target".to_owned());
        }
        let mut folders = Self { targets: Vec::new() };
        for (name, path) in &cli.targets {
            if folders.targets.iter().any(|target| target.name == *name) {
                return Err(format!("two targets are called '{name}'"));
            }
            let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
            let mount = Mount::of(&path).ok_or("can't read the mount table")?;
            let mut pids: Vec<i32> =
                cli.pids.iter().filter(|(n, _)| n == name).map(|(_, pid)| *pid).collect();
            if pids.is_empty() {
                pids = target::serving(&mount.point);
            }
            let folder = path.join(format!("atoll-bench-{}", std::process::id()));
            fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            let disposable = cli.disposable.contains(name);
            let started = cli.started.iter().filter(|(n, _)| n == name);
            let started = started.map(|(_, ms)| Duration::from_millis(*ms)).collect();
            folders.targets.push(Target {
                name: name.clone(),
                folder,
                mount,
                pids,
                disposable,
                started,
                against: None,
            });
        }
        let known = |name: &String| {
            let found = folders.targets.iter().position(|target| target.name == *name);
            found.ok_or_else(|| format!("there is no target '{name}'"))
        };
        let started = cli.started.iter().map(|(name, _)| name);
        for name in cli.pids.iter().map(|(name, _)| name).chain(&cli.disposable).chain(started) {
            known(name)?;
        }
        let pairs = cli.against.iter().map(|(name, other)| Ok((known(name)?, known(other)?)));
        for (column, other) in pairs.collect::<Result<Vec<_>, String>>()? {
            folders.targets[column].against = Some(other);
        }
        Ok(folders)
    }

    /// As dropping does, under the eyes of the watchdog.
    fn remove(mut self, watchdog: &Watchdog) {
        for target in std::mem::take(&mut self.targets).into_iter().filter(|target| !target.disposable) {
            let _watch = watchdog.watch(&target, "cleaning up");
            clean(&target);
        }
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.targets.iter().filter(|target| !target.disposable).for_each(clean);
    }
}

fn clean(target: &Target) {
    if let Err(error) = fs::remove_dir_all(&target.folder)
        && error.kind() != std::io::ErrorKind::NotFound
        && !fault::is_disconnect(&error)
    {
        eprintln!("bench: can't remove {}: {error}", target.folder.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(only: &[&str]) -> Vec<&'static str> {
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        choose(&only).expect("known names").into_iter().map(|workload| workload.name).collect()
    }

    #[test]
    fn a_first_word_stands_for_what_has_no_name_like_it() {
        assert_eq!(chosen(&["append"]), ["append-fsync", "append-fsync-4t"]);
        assert_eq!(chosen(&["sqlite"]), ["sqlite"]);
        assert_eq!(chosen(&["sqlite-wal", "rm"]), ["rm-r", "sqlite-wal"]);
        assert!(chosen(&["random"]).contains(&"append-fsync"));
        assert_eq!(chosen(&[]).len(), ALL.len());
        for wrong in ["sqlit", "", "append-"] {
            assert!(choose(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
