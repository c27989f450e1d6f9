//! Real trees: tar, rm, git.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::measure::{Bench, Leaves, Measured};
use super::programs::{self, program, run, succeeded};
use super::small::remove_tree;
use crate::fault::{Context, Fault};
use crate::histogram::Histogram;
use crate::plan::Plan;
use crate::random::Random;

/// Folders over which the repository's files are spread.
const GIT_FOLDERS: usize = 20;
/// Files that each commit changes.
const GIT_CHANGES: usize = 8;

/// What the work needs, on the local filesystem; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    /// Where it lies.
    pub folder: PathBuf,
    /// Files in the archive.
    pub tree_files: usize,
    /// Bytes of these files.
    pub tree_bytes: u64,
    /// Files in the repository's work tree.
    pub git_files: usize,
}

impl Scratch {
    /// Packs a tree and generates a repository in a new folder.
    ///
    /// # Errors
    /// If there is no tree, the folder exists, or a program fails.
    pub fn make(folder: &Path, plan: &Plan, tree: Option<&Path>) -> Result<Self, Fault> {
        let tree = tree.map(Path::to_owned).or_else(|| default_tree(plan.tree_files));
        let tree =
            tree.ok_or_else(|| Fault::Wrong("no source tree found: name one with --tree".to_owned()))?;
        fs::create_dir_all(folder).doing("mkdir", folder)?;
        let mut scratch =
            Self { folder: folder.to_owned(), tree_files: 0, tree_bytes: 0, git_files: plan.git_files };
        let files = choose(&tree, plan)?;
        scratch.tree_files = files.len();
        scratch.tree_bytes = files.iter().map(|(_, bytes)| bytes).sum();
        scratch.pack(&tree, &files)?;
        scratch.generate(plan)?;
        Ok(scratch)
    }

    fn archive(&self) -> PathBuf {
        self.folder.join("tree.tar")
    }

    fn repository(&self) -> PathBuf {
        self.folder.join("repository.git")
    }

    fn pack(&self, tree: &Path, files: &[(PathBuf, u64)]) -> Result<(), Fault> {
        let list = self.folder.join("tree.list");
        let mut names = Vec::new();
        for (file, _) in files {
            names.extend_from_slice(file.as_os_str().as_encoded_bytes());
            names.push(0);
        }
        fs::write(&list, names).doing("write", &list)?;
        let mut tar = program("tar");
        tar.arg("--null")
            .arg("--no-recursion")
            .arg("-C")
            .arg(tree)
            .arg("-T")
            .arg(&list)
            .arg("-cf")
            .arg(self.archive());
        run("tar", &mut tar)
    }

    fn generate(&self, plan: &Plan) -> Result<(), Fault> {
        let repository = self.repository();
        run("git", program("git").args(["init", "-q", "--bare", "-b", "main"]).arg(&repository))?;
        let mut import = program("git");
        import.arg("-C").arg(&repository).args(["fast-import", "--quiet"]).stdin(Stdio::piped());
        let failed = |error: std::io::Error| Fault::Program { name: "git", said: error.to_string() };
        let mut child = import.spawn().map_err(failed)?;
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&history(plan)));
        let output = child.wait_with_output().map_err(failed)?;
        succeeded("git", &output)?;
        written.map_err(failed)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done about a folder that stays, and it is under the caller's eyes.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Unpacks the archive.
pub fn tar_extract(bench: &mut Bench) -> Result<Measured, Fault> {
    let tree = bench.target.folder.join("tree");
    bench.state.tree = false;
    remove_tree(&tree)?;
    fs::create_dir(&tree).doing("mkdir", &tree)?;
    let measured = extract(bench, &tree)?;
    bench.state.tree = true;
    Ok(measured)
}

/// Reads the tree as an archive.
pub fn tar_create(bench: &mut Bench) -> Result<Measured, Fault> {
    let tree = prepare(bench)?;
    let mut files = Vec::new();
    walk(&tree, Path::new(""), usize::MAX, &mut files)?;
    bench.chill(files.iter().map(|(file, _)| tree.join(file)))?;
    let expected = bench.scratch.tree_bytes;
    bench.measure(bench.plan.pass_max, Leaves::Clean, |_| {
        let failed = |error: std::io::Error| Fault::Program { name: "tar", said: error.to_string() };
        // To a pipe: tar reads no file's content when it sees that it writes to /dev/null.
        let mut child = program("tar")
            .arg("-C")
            .arg(&tree)
            .args(["-cf", "-", "."])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut bytes = 0;
        let mut buffer = vec![0; 256 << 10];
        if let Some(mut stdout) = child.stdout.take() {
            loop {
                match stdout.read(&mut buffer).map_err(failed)? {
                    0 => break,
                    got => bytes += got as u64,
                }
            }
        }
        succeeded("tar", &child.wait_with_output().map_err(failed)?)?;
        if bytes < expected {
            return Err(Fault::Wrong(format!("an archive of {bytes} bytes of files of {expected} bytes")));
        }
        Ok((files.len() as u64, Histogram::default()))
    })
}

/// Looks at every file and folder of the tree: by size, so that names alone aren't enough.
pub fn find(bench: &mut Bench) -> Result<Measured, Fault> {
    let tree = prepare(bench)?;
    let mut files = Vec::new();
    walk(&tree, Path::new(""), usize::MAX, &mut files)?;
    bench.chill(files.iter().map(|(file, _)| tree.join(file)))?;
    bench.measure(bench.plan.pass_max, Leaves::Clean, |_| {
        let mut find = program("find");
        // A dot for each, whatever it is, and a line for each file with content.
        find.arg(&tree).args(["-printf", "."]).args(["-type", "f", "-size", "+0c", "-printf", "\\n"]);
        let output = find.stdout(Stdio::piped()).output();
        let output = output.map_err(|error| Fault::Program { name: "find", said: error.to_string() })?;
        succeeded("find", &output)?;
        let count = |wanted: u8| output.stdout.iter().filter(|byte| **byte == wanted).count();
        let expected = files.iter().filter(|(_, size)| *size > 0).count();
        if count(b'\n') != expected {
            return Err(Fault::Wrong(format!("{} files with content instead of {expected}", count(b'\n'))));
        }
        Ok((count(b'.') as u64, Histogram::default()))
    })
}

/// Removes the tree.
pub fn remove(bench: &mut Bench) -> Result<Measured, Fault> {
    let tree = prepare(bench)?;
    if bench.is_chilled("tree") {
        walk(&tree, Path::new(""), usize::MAX, &mut Vec::new())?;
    }
    bench.state.tree = false;
    programs::warm("rm")?;
    let files = bench.scratch.tree_files as u64;
    bench.measure(bench.plan.pass_max, Leaves::Dirty, |_| {
        run("rm", program("rm").arg("-r").arg(&tree))?;
        Ok((files, Histogram::default()))
    })
}

/// Clones the repository, with its work tree.
pub fn git_clone(bench: &mut Bench) -> Result<Measured, Fault> {
    let clone = bench.target.folder.join("clone");
    bench.state.clone = false;
    remove_tree(&clone)?;
    let repository = bench.scratch.repository();
    warm(&repository)?;
    programs::warm("git")?;
    let files = bench.scratch.git_files as u64;
    let measured = bench.measure(bench.plan.pass_max, Leaves::Dirty, |_| {
        // As a URL: from a path git would link the objects instead of writing them.
        let url = format!("file://{}", repository.display());
        run("git", program("git").args(["clone", "-q", &url]).arg(&clone))?;
        Ok((files, Histogram::default()))
    })?;
    let mut found = Vec::new();
    walk(&clone, Path::new(""), usize::MAX, &mut found)?;
    let found = found.iter().filter(|(file, _)| !file.starts_with(".git")).count() as u64;
    if found != files {
        return Err(Fault::Wrong(format!("a clone of {found} files instead of {files}")));
    }
    bench.state.clone = true;
    Ok(measured)
}

/// Asks what has changed in the clone: nothing.
pub fn git_status(bench: &mut Bench) -> Result<Measured, Fault> {
    if !bench.state.clone {
        git_clone(bench)?;
    }
    let clone = bench.target.folder.join("clone");
    let files = bench.scratch.git_files as u64;
    let status = || {
        let mut git = program("git");
        git.arg("-C").arg(&clone).args(["status", "--porcelain"]);
        let output = git.stdout(Stdio::piped()).output();
        let output = output.map_err(|error| Fault::Program { name: "git", said: error.to_string() })?;
        succeeded("git", &output)?;
        if output.stdout.is_empty() {
            Ok(())
        } else {
            Err(Fault::Wrong(format!(
                "a fresh clone has changed: {}",
                String::from_utf8_lossy(&output.stdout)
            )))
        }
    };
    // The first one after a clone reads files that are as new as git's index, and notes that they are the same.
    status()?;
    let mut found = Vec::new();
    walk(&clone, Path::new(""), usize::MAX, &mut found)?;
    programs::warm("git")?;
    bench.chill(found.iter().map(|(file, _)| clone.join(file)))?;
    bench.measure(bench.plan.pass_max, Leaves::Clean, |_| {
        status()?;
        Ok((files, Histogram::default()))
    })
}

fn extract(bench: &Bench, tree: &Path) -> Result<Measured, Fault> {
    let archive = bench.scratch.archive();
    warm(&archive)?;
    programs::warm("tar")?;
    let files = bench.scratch.tree_files as u64;
    bench.measure(bench.plan.pass_max, Leaves::Dirty, |_| {
        run("tar", program("tar").arg("-C").arg(tree).arg("-xf").arg(&archive))?;
        Ok((files, Histogram::default()))
    })
}

fn prepare(bench: &mut Bench) -> Result<PathBuf, Fault> {
    if !bench.state.tree {
        tar_extract(bench)?;
    }
    Ok(bench.target.folder.join("tree"))
}

/// Reads everything once, so that no target pays for a cold source.
fn warm(path: &Path) -> Result<(), Fault> {
    let mut files = Vec::new();
    if path.is_dir() {
        walk(path, Path::new(""), usize::MAX, &mut files)?;
    } else {
        files.push((PathBuf::new(), 0));
    }
    for (file, _) in files {
        let file = if file.as_os_str().is_empty() { path.to_owned() } else { path.join(file) };
        std::io::copy(&mut File::open(&file).doing("open", &file)?, &mut std::io::sink())
            .doing("read", &file)?;
    }
    Ok(())
}

/// The first tree that has enough files.
fn default_tree(files: usize) -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let crates = home.map(|home| home.join("registry/src"));
    let enough = |tree: &PathBuf| {
        let mut found = Vec::new();
        walk(tree, Path::new(""), files, &mut found).is_ok() && found.len() >= files
    };
    crates.into_iter().chain(["/usr/include", "/usr/share"].map(PathBuf::from)).find(enough)
}

/// Files of a tree, as many as the plan allows, always the same ones.
fn choose(tree: &Path, plan: &Plan) -> Result<Vec<(PathBuf, u64)>, Fault> {
    let mut files = Vec::new();
    // More than enough to find some that fit into the bytes.
    walk(tree, Path::new(""), plan.tree_files * 2, &mut files)?;
    let mut bytes = 0;
    files.retain(|(_, size)| {
        let fits = bytes + size <= plan.tree_bytes;
        bytes += if fits { *size } else { 0 };
        fits
    });
    files.truncate(plan.tree_files);
    if files.is_empty() { Err(Fault::Wrong(format!("no files in {}", tree.display()))) } else { Ok(files) }
}

/// Collects regular files with their sizes in the order of their names, until there are `limit` of them.
fn walk(root: &Path, below: &Path, limit: usize, files: &mut Vec<(PathBuf, u64)>) -> Result<(), Fault> {
    let folder = root.join(below);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound && below.as_os_str().is_empty() => return Ok(()),
        other => other.doing("opendir", &folder)?,
    };
    let mut entries = entries.collect::<Result<Vec<_>, _>>().doing("readdir", &folder)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if files.len() >= limit {
            return Ok(());
        }
        let metadata = entry.metadata().doing("stat", &entry.path())?;
        let path = below.join(entry.file_name());
        if metadata.is_dir() {
            walk(root, &path, limit, files)?;
        } else if metadata.is_file() {
            files.push((path, metadata.len()));
        }
    }
    Ok(())
}

/// A history for git fast-import: all files in the first commit, some changed in each of the others.
fn history(plan: &Plan) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut random = Random::new(42);
    for commit in 0..plan.git_commits.max(1) {
        let time = 1_700_000_000 + commit * 60;
        stream.extend_from_slice(
            format!(
                "commit refs/heads/main\ncommitter Bench <bench@localhost> {time} +0000\ndata 6\nchange\n"
            )
            .as_bytes(),
        );
        let numbers: Vec<usize> = if commit == 0 {
            (0..plan.git_files).collect()
        } else {
            (0..GIT_CHANGES).map(|_| random.below(plan.git_files as u64) as usize).collect()
        };
        for number in numbers {
            let text = text(&mut random);
            let folder = number % GIT_FOLDERS;
            stream.extend_from_slice(
                format!("M 100644 inline src/part{folder}/file{number}.txt\ndata {}\n{text}\n", text.len())
                    .as_bytes(),
            );
        }
        stream.push(b'\n');
    }
    stream.extend_from_slice(b"done\n");
    stream
}

/// Something that compresses like source text.
fn text(random: &mut Random) -> String {
    const WORDS: [&str; 12] = [
        "let ", "chunk", " = ", "self.", "write(", ");\n", "// why", " the ", "extent", "match ", "{\n",
        "}\n",
    ];
    let words = 100 + random.below(900);
    (0..words)
        .map(|_| match random.below(4) {
            0 => format!("{:x}", random.below(1 << 20)),
            _ => WORDS[random.below(WORDS.len() as u64) as usize].to_owned(),
        })
        .collect()
}
