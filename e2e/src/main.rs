//! The promises that only a whole Kubernetes can prove, and the disasters that only it can have.
//!
//! ```text
//! atoll-e2e                  all promises, on the cluster that KUBECONFIG names
//! atoll-e2e --short          those that every change has to keep
//! atoll-e2e --list           their names
//! atoll-e2e NAME…            some of them
//! ```
//!
//! Runs on the machine that hosts the nodes (`hack/kube`), as root: `kill -9` of a container is a signal to its
//! processes. Ends with a line `N passed, N failed`.

mod cluster;
mod failure;
mod nodes;
mod processes;
mod promises;
mod workload;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::FutureExt;

use crate::cluster::Cluster;
use crate::failure::{Failure, Outcome};
use crate::promises::Promise;

/// No promise takes longer than this; what takes longer hangs.
const PROMISE_SECONDS_MAX: u64 = 600;

/// Proves Atoll's promises on a real Kubernetes.
#[derive(Parser, Debug)]
#[command(name = "atoll-e2e", version)]
struct Arguments {
    /// Print the promises and do nothing.
    #[arg(long)]
    list: bool,
    /// Only those that every change has to keep.
    #[arg(long)]
    short: bool,
    /// Leave the objects of a promise that failed where they are, and stop.
    #[arg(long)]
    keep: bool,
    /// Their names; default: all.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let all = promises::all();
    if arguments.list {
        for promise in &all {
            let short = if promise.short { "  (short)" } else { "" };
            println!("{:<24} {}{short}", promise.name, promise.says);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) =
        arguments.names.iter().find(|name| all.iter().all(|promise| promise.name != name.as_str()))
    {
        eprintln!("e2e: no promise is called '{unknown}': --list shows them");
        return ExitCode::from(2);
    }
    let chosen: Vec<Promise> = all
        .into_iter()
        .filter(|promise| arguments.names.is_empty() || arguments.names.iter().any(|n| n == promise.name))
        .filter(|promise| !arguments.short || promise.short)
        .collect();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("e2e: there is a provider of cryptography already");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("e2e: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(&chosen, arguments.keep))
}

async fn run(chosen: &[Promise], keep: bool) -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for promise in chosen {
        println!("\n== {}: {}", promise.name, promise.says);
        let began = Instant::now();
        let outcome = prove(promise, keep).await;
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok   {} ({seconds:.1} s)", promise.name);
            }
            Err(failure) => {
                failed += 1;
                println!("FAIL {} ({seconds:.1} s): {failure}", promise.name);
                if keep {
                    println!("its objects are left: namespace {}", Cluster::namespace_of(promise.name));
                    break;
                }
            }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One promise in a namespace of its own, which is gone afterwards with everything in it.
async fn prove(promise: &Promise, keep: bool) -> Outcome {
    let cluster = Cluster::connect(promise.name).await?;
    cluster.make_namespace().await?;
    let work = std::panic::AssertUnwindSafe((promise.run)(&cluster)).catch_unwind();
    let outcome = match tokio::time::timeout(Duration::from_secs(PROMISE_SECONDS_MAX), work).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Failure::new("it panicked, see above")),
        Err(_) => Err(Failure::new(format!("it took more than {PROMISE_SECONDS_MAX} s"))),
    };
    if outcome.is_err() {
        cluster.print_state().await;
        if keep {
            return outcome;
        }
    }
    let cleaned = cluster.remove_namespace().await;
    outcome.and(cleaned)
}
