//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Measures the same work on several folders, in turn, and compares them.
///
/// `hack/bench.sh` starts the filesystems and calls this program; by hand it measures any folders:
/// `atoll-bench --target local=/var/tmp/a --target other=/mnt/b --scratch /var/tmp/s --quick`.
/// A target called `local` and one called `passthrough` are what the others are compared with.
#[derive(Parser, Debug)]
#[command(name = "atoll-bench", version)]
pub struct Cli {
    /// A folder to measure and its name. The work is done in a new folder below it, which is removed again.
    #[arg(long = "target", value_name = "NAME=DIR", value_parser = named::<PathBuf>)]
    pub targets: Vec<(String, PathBuf)>,
    /// A process that serves a target, to count its CPU. Atoll's own local clusters are found without.
    #[arg(long = "pid", value_name = "NAME=PID", value_parser = named::<i32>)]
    pub pids: Vec<(String, i32)>,
    /// What a target is judged by: another one, in the same rounds. Two versions of one program, as a rule.
    #[arg(long = "against", value_name = "NAME=NAME", value_parser = named::<String>)]
    pub against: Vec<(String, String)>,
    /// Milliseconds from starting a target's processes until its mount was usable: the first time, then again.
    #[arg(long = "started", value_name = "NAME=MS", value_parser = named::<u64>)]
    pub started: Vec<(String, u64)>,
    /// A target that is made for this run: its FUSE connection may be aborted if it hangs, and its caller removes its
    /// data.
    #[arg(long = "disposable", value_name = "NAME")]
    pub disposable: Vec<String>,
    /// Folder on the local filesystem for what the work needs: archive, repository. Made, and removed again.
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    pub scratch: Option<PathBuf>,
    /// Smaller files and fewer rounds.
    #[arg(long)]
    pub quick: bool,
    /// Rounds at most. Default: 5, with --quick 2.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// Seconds for the whole run; no round is begun that would last longer. Default: 3600, with --quick 180.
    #[arg(long, value_name = "SECONDS")]
    pub budget: Option<u64>,
    /// Seconds for which idle servers are watched before the first round. Default: 60, with --quick 5, with --only none.
    #[arg(long, value_name = "SECONDS")]
    pub rest: Option<u64>,
    /// Only these workloads or groups of workloads; the first word of a name is enough where nothing else is called so.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Print the workloads and what they do.
    #[arg(long)]
    pub list: bool,
    /// Write all results to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the summary to this file as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// How caches are emptied before cold reads: `drop` empties those of the whole machine (needs root),
    /// `advise` asks for the files' pages only.
    #[arg(long, default_value = "drop")]
    pub cold: ColdMode,
    /// The tree for tar. Default: sources of crates, or /usr/include, or /usr/share.
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,
    /// Seconds after which a measurement counts as hung.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub hang: u64,
    /// Seed of sizes, offsets and contents.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How caches are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColdMode {
    /// All clean caches of the machine.
    Drop,
    /// The pages of the files that are about to be read; names and attributes stay warm.
    Advise,
}

fn named<T: std::str::FromStr>(text: &str) -> Result<(String, T), String>
where
    T::Err: std::fmt::Display,
{
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+@".contains(&b)) {
        return Err(format!("'{name}' is no name: letters, digits and '-_.+@' only"));
    }
    Ok((name.to_owned(), value.parse().map_err(|error: T::Err| error.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_a_name_and_a_folder() {
        let cli = Cli::parse_from([
            "b",
            "--target",
            "a=/x=y",
            "--pid",
            "a=12",
            "--scratch",
            "/s",
            "--only",
            "tar-x,stat",
        ]);
        assert_eq!(cli.targets, [("a".to_owned(), PathBuf::from("/x=y"))]);
        assert_eq!(cli.pids, [("a".to_owned(), 12)]);
        assert_eq!(cli.only, ["tar-x", "stat"]);
        for wrong in ["a", "=/x", "a b=/x"] {
            assert!(Cli::try_parse_from(["b", "--scratch", "/s", "--target", wrong]).is_err(), "{wrong}");
        }
    }
}
