//! Facts about the machine that a reader of results needs. No name of the machine: results are published.

use std::fs;

use serde_json::{Value, json};

/// What the machine was when the run began.
#[derive(Clone, Debug)]
pub struct Facts {
    /// CPUs that this process may use.
    pub cores: usize,
    /// Model of the first CPU; empty if unknown.
    pub cpu: String,
    /// Memory in bytes.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Processes that ran or waited to run, on average over 1, 5 and 15 minutes.
    pub load: String,
}

impl Facts {
    /// Reads them.
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            memory: memory.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "cpu": self.cpu,
            "memory_bytes": self.memory,
            "kernel": self.kernel,
            "load_average_before": self.load,
        })
    }
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} cores ({}), {} MiB of memory, Linux {}, load average before: {}",
            self.cores,
            if self.cpu.is_empty() { "unknown" } else { &self.cpu },
            self.memory >> 20,
            self.kernel,
            self.load
        )
    }
}
