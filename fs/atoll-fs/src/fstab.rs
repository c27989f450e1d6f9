//! `mount.atoll` and `umount.fuse.atoll`: what mount(8) and umount(8) call, so that a line of fstab or a unit of systemd is a mount.
//! This program does it when it is called by one of these names.
//!
//! ```text
//! mount -t atoll atoll:<cluster id> /srv/data -o metadata=a:7400,metadata=b:7400,key=/etc/atoll/data.key,noatime
//! ```
//!
//! The mount is served by a process of its own (`atoll-fs mount`), which the first one waits for until the mount can be used.
//! umount(8) returns once that process has written everything out and ended.

mod options;
mod record;

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use atoll_fuse::device::{self, FILESYSTEM_TYPE, MountError, source_name};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cluster;
use crate::exit::{Context, Failure, Outcome};
use crate::mountpoint;
use options::Options;
pub use record::Record;

/// Where processes say how they ended.
const RECORDS: &str = "/run/atoll/mounts";
/// Where processes log that systemd doesn't log for.
const LOGS: &str = "/var/log/atoll";

/// Exit code of mount(8) for a wrong call.
const USAGE: u8 = 1;
/// Exit code of mount(8) for a mount, or its end, that failed.
const MOUNT_FAILURE: u8 = 32;

/// Does what one of the names stands for; `None` if the program was called by another name.
pub fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    let name = Path::new(&name).file_name()?.to_str()?.to_owned();
    let arguments: Vec<OsString> = arguments.collect();
    let result = match name.as_str() {
        "mount.atoll" | "mount.fuse.atoll" => Call::parse(&arguments).and_then(|call| mount_call(&call)),
        "umount.atoll" | "umount.fuse.atoll" => Call::parse(&arguments).and_then(|call| unmount_call(&call)),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Problem { code, message }) => {
            eprintln!("{name}: {message}");
            ExitCode::from(code)
        }
    })
}

/// Why a call didn't succeed.
#[derive(Debug)]
struct Problem {
    code: u8,
    message: String,
}

impl Problem {
    fn usage(message: impl ToString) -> Problem {
        Problem { code: USAGE, message: message.to_string() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        Problem { code: MOUNT_FAILURE, message: failure.message }
    }
}

/// What mount(8) and umount(8) pass on: `SOURCE DIR [-sfnvlr] [-o OPTIONS] [-t TYPE]`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    places: Vec<String>,
    options: String,
    /// Do everything but mount.
    fake: bool,
    /// Leave out options that aren't known.
    sloppy: bool,
    /// Detach at once.
    lazy: bool,
    /// End requests that wait.
    force: bool,
}

impl Call {
    fn parse(arguments: &[OsString]) -> Result<Call, Problem> {
        let mut call = Call::default();
        let mut words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                call.places.push(word);
                continue;
            };
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    'o' | 't' => {
                        let rest: String = letters.by_ref().collect();
                        let value = if rest.is_empty() { words.next() } else { Some(rest) };
                        let value =
                            value.ok_or_else(|| Problem::usage(format!("-{letter} needs a value")))?;
                        if letter == 'o' {
                            call.options = value;
                        }
                    }
                    // Of umount(8), -f ends requests; of mount(8), it is a rehearsal.
                    'f' => (call.fake, call.force) = (true, true),
                    's' => call.sloppy = true,
                    'l' => call.lazy = true,
                    // No mtab, more words, read-only if it can't be unmounted, no canonical paths: nothing to do.
                    'n' | 'v' | 'r' | 'c' | 'i' => {}
                    _ => return Err(Problem::usage(format!("flag -{letter} isn't known"))),
                }
            }
        }
        Ok(call)
    }
}

fn mount_call(call: &Call) -> Result<(), Problem> {
    let [source, place] = &call.places[..] else {
        return Err(Problem::usage("usage: mount.atoll atoll:<cluster id> DIR [-sfnv] [-o OPTIONS]"));
    };
    let options = Options::parse(&call.options, call.sloppy).map_err(Problem::usage)?;
    let id = cluster::id(source.strip_prefix("atoll:").unwrap_or(source)).map_err(|_| {
        Problem::usage(format!("'{source}' isn't 'atoll:' and a cluster's id of 32 hexadecimal digits"))
    })?;
    let place = Path::new(place);
    if options.remount {
        return remount(place, &source_name(id), &options);
    }
    let command = options.command(&id.to_string()).map_err(Problem::usage)?;
    if call.fake {
        return Ok(());
    }
    let place = mountpoint::absolute(place)?;
    start(command, &options, &place)
}

/// Starts the process that serves the mount, and waits for its word over a pipe.
fn start(mut command: Command, options: &Options, place: &Path) -> Result<(), Problem> {
    let (mut reader, writer) = std::io::pipe().context("pipe")?;
    let inherited = writer.as_raw_fd();
    command.args(["--ready-fd", &inherited.to_string()]);
    command.arg("--record").arg(record_of(place)).arg(place);
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    if let Some(log) = log_of(options, place) {
        let folder = log.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).context(folder.display())?;
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).context(log.display())?;
        command.stderr(file);
    }
    // SAFETY: setsid and fcntl are async-signal-safe; the descriptor is open in the child, a copy of ours.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 || libc::fcntl(inherited, libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().context("can't start the process that serves the mount")?;
    drop(writer);
    let mut word = String::new();
    reader.read_to_string(&mut word).context("the process that serves the mount")?;
    if word == "ready\n" {
        return Ok(());
    }
    let status = child.wait().context("the process that serves the mount")?;
    let why = match word.strip_prefix("failed ") {
        Some(why) => why.trim_end().to_owned(),
        None => format!("the process that serves the mount ended before that ({status})"),
    };
    Err(Failure::failed(format_args!("{}: {why}", place.display())).into())
}

/// Where the serving process logs; `None`: where this one does, which is the journal under systemd.
fn log_of(options: &Options, place: &Path) -> Option<PathBuf> {
    match &options.log {
        Some(log) => Some(log.clone()),
        None if std::env::var_os("JOURNAL_STREAM").is_some() => None,
        None => Some(Path::new(LOGS).join(format!("{}.log", file_name(place)))),
    }
}

fn record_of(place: &Path) -> PathBuf {
    Path::new(RECORDS).join(file_name(place))
}

/// A path as the name of a file, as systemd-escape(1) makes it.
fn file_name(place: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let trimmed = place.as_os_str().as_bytes();
    let trimmed = trimmed.strip_prefix(b"/").unwrap_or(trimmed);
    let mut name = String::new();
    for (at, byte) in trimmed.iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at > 0 => name.push('.'),
            b'_' | b':' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(*byte)),
            other => {
                // Writing to a String can't fail.
                let _ = write!(name, "\\x{other:02x}");
            }
        }
    }
    if name.is_empty() { "-".to_owned() } else { name }
}

/// Changes how a mount can be used; what its process does stays as it is.
fn remount(place: &Path, source: &str, options: &Options) -> Result<(), Problem> {
    let place = mountpoint::absolute(place)?;
    let found = device::find_mount(&place).context("mount table")?;
    let Some(found) = found.filter(|found| found.filesystem == FILESYSTEM_TYPE && found.source == source)
    else {
        let text = format!("{} is no mount of {source}", place.display());
        return Err(Problem { code: MOUNT_FAILURE, message: text });
    };
    if found.has_option("noatime") != options.noatime {
        return Err(Problem::usage(
            "noatime and relatime can't be changed while the volume is mounted: unmount it first",
        ));
    }
    let flags = [
        (options.read_only, MsFlags::MS_RDONLY),
        (options.nosuid, MsFlags::MS_NOSUID),
        (options.nodev, MsFlags::MS_NODEV),
        (options.noexec, MsFlags::MS_NOEXEC),
    ];
    let flags =
        flags.into_iter().filter(|(set, _)| *set).fold(MsFlags::MS_REMOUNT, |all, (_, flag)| all | flag);
    let nothing: Option<&str> = None;
    mount(nothing, &place, nothing, flags, nothing)
        .context(format_args!("remounting {}", place.display()))
        .map_err(Problem::from)
}

fn unmount_call(call: &Call) -> Result<(), Problem> {
    let [place] = &call.places[..] else {
        return Err(Problem::usage("usage: umount.fuse.atoll DIR [-flnrv] [-t TYPE]"));
    };
    let place = mountpoint::absolute(Path::new(place))?;
    let found = device::find_mount(&place).context("mount table")?;
    if found.is_none_or(|found| found.filesystem != FILESYSTEM_TYPE) {
        let message = format!("{} is no mount of an Atoll volume", place.display());
        return Err(Problem { code: MOUNT_FAILURE, message });
    }
    // Before it is unmounted: the process takes its record away when it ends.
    let record = record::Waiting::open(&record_of(&place))?;
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, call.lazy);
    flags.set(MntFlags::MNT_FORCE, call.force);
    umount2(&place, flags).map_err(|error| {
        let error = MountError::System { what: "unmount", path: place.clone(), error: error.into() };
        Problem { code: MOUNT_FAILURE, message: error.to_string() }
    })?;
    match record {
        // One that is detached ends when nobody uses it any more.
        Some(record) if !call.lazy => Ok(record.wait()?),
        _ => Ok(()),
    }
}

/// Tells the process that waits for the mount what came of it.
pub struct Ready(Option<fs::File>);

impl Ready {
    /// Over a descriptor that the process has inherited, if there is one.
    pub fn new(descriptor: Option<i32>) -> Ready {
        // SAFETY: who started us made this descriptor for us, and nobody else here knows of it.
        Ready(descriptor.map(|descriptor| unsafe { device::inherited(descriptor) }.into()))
    }

    /// The mount can be used.
    pub fn ready(&mut self) {
        self.say("ready\n");
    }

    /// It won't be, or is over: of no account if it was said to be ready.
    pub fn ended(&mut self, outcome: &Outcome) {
        if let Err(failure) = outcome {
            self.say(&format!("failed {failure}\n"));
        }
    }

    fn say(&mut self, text: &str) {
        use std::io::Write;
        // One that is gone doesn't matter.
        self.0.take().map(|mut waiting| waiting.write_all(text.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Call, Problem> {
        Call::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn calls_are_those_of_mount_and_umount() {
        let call = parse(&["atoll:00", "/srv/data", "-o", "rw,noatime", "-v", "-t", "fuse.atoll"]).unwrap();
        assert_eq!((call.places.len(), call.options.as_str(), call.fake), (2, "rw,noatime", false));
        let call = parse(&["atoll:00", "/srv/data", "-sfnv", "-oro"]).unwrap();
        assert!(call.fake && call.sloppy && call.options == "ro");
        let call = parse(&["/srv/data", "-l", "-f", "-c"]).unwrap();
        assert!(call.lazy && call.force && call.places == ["/srv/data"]);
        for wrong in [&["-o"][..], &["-N", "5"]] {
            assert_eq!(parse(wrong).unwrap_err().code, USAGE, "{wrong:?}");
        }
    }

    #[test]
    fn every_place_has_a_file_name_of_its_own() {
        let name = |path: &str| file_name(Path::new(path));
        assert_eq!(name("/srv/data"), "srv-data");
        assert_eq!(name("/srv-data"), "srv\\x2ddata");
        assert_eq!(name("/srv/a b"), "srv-a\\x20b");
        assert_eq!(name("/"), "-");
        assert_eq!(name("/.hidden"), "\\x2ehidden");
    }
}
