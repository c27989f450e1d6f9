//! A database: each transaction is on disk before the next one begins.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Instant;

use super::measure::{Bench, Leaves, Measured};
use super::programs::{program, succeeded};
use super::small::remove_tree;
use crate::fault::{Context, Fault};
use crate::histogram::Histogram;

/// Rows that are there before the first transaction.
const ROWS: u64 = 2000;

/// Runs transactions for a slice of time; checks the database afterwards.
pub fn transactions(bench: &mut Bench, journal: &str) -> Result<Measured, Fault> {
    let folder = bench.target.folder.join("database");
    remove_tree(&folder)?;
    std::fs::create_dir(&folder).doing("mkdir", &folder)?;
    let mut shell = Shell::start(&folder.join("db"))?;
    shell.run(&format!("PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL;"))?;
    shell.run(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, body BLOB);
         WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS})
         INSERT INTO t SELECT i, 0, randomblob(200) FROM c;"
    ))?;
    let measured = bench.measure(bench.plan.slice, Leaves::Clean, |pace| {
        let mut latencies = Histogram::default();
        let mut done = 0;
        while pace.go(done)? {
            let began = Instant::now();
            let row = done * 7919 % ROWS + 1;
            shell.run(&format!(
                "BEGIN; INSERT INTO t(n, body) VALUES({done}, randomblob(200)); UPDATE t SET n = n + 1 WHERE id = {row}; COMMIT;"
            ))?;
            latencies.add(began.elapsed());
            done += 1;
        }
        // The program's CPU counts once it was waited for.
        shell.end()?;
        Ok((done, latencies))
    })?;
    let mut shell = Shell::start(&folder.join("db"))?;
    let said = shell.run("PRAGMA integrity_check; SELECT count(*), sum(n > 0 AND id <= 2000) FROM t;")?;
    shell.end()?;
    let rows = format!("{}|", ROWS + measured.units);
    if !(said.starts_with("ok\n") && said.contains(&rows)) {
        return Err(Fault::Wrong(format!("the database says {said:?}, expected {rows}")));
    }
    remove_tree(&folder)?;
    Ok(measured)
}

/// The sqlite3 program.
struct Shell {
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn start(database: &std::path::Path) -> Result<Self, Fault> {
        let mut command = program("sqlite3");
        command.arg("-batch").arg("-bail").arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { child: Some(child), stdin, stdout: BufReader::new(stdout) })
    }

    /// Has it run statements to their end, and returns what they print.
    fn run(&mut self, statements: &str) -> Result<String, Fault> {
        let sent = self.stdin.as_mut().map_or(Err(std::io::ErrorKind::BrokenPipe.into()), |stdin| {
            stdin.write_all(format!("{statements}\n.print done\n").as_bytes())
        });
        let mut said = String::new();
        while sent.is_ok() {
            let start = said.len();
            if self.stdout.read_line(&mut said).map_err(failed)? == 0 {
                break;
            }
            if &said[start..] == "done\n" {
                said.truncate(start);
                return Ok(said);
            }
        }
        self.end()?;
        Err(Fault::Program { name: "sqlite3", said: format!("ended early: {said}") })
    }

    /// Waits for it to end.
    fn end(&mut self) -> Result<(), Fault> {
        self.stdin = None;
        match self.child.take() {
            Some(child) => succeeded("sqlite3", &child.wait_with_output().map_err(failed)?),
            None => Ok(()),
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.stdin = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn failed(error: std::io::Error) -> Fault {
    Fault::Program { name: "sqlite3", said: error.to_string() }
}
