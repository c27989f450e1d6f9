//! Client processes: how they are started, spoken to, and end.

use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::super::packet::PacketSocket;
use super::super::protocol::{Failure, Start};
use super::SupervisorConfig;

/// Starts processes from a thread that lives as long as this process: the kernel ends them when the *thread* that started
/// them ends (PR_SET_PDEATHSIG), and none may outlive this process.
pub struct Spawner(mpsc::Sender<Job>);

struct Job {
    command: Command,
    answer: mpsc::SyncSender<io::Result<Child>>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system call's.
    pub fn start() -> io::Result<Spawner> {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("spawn".to_owned()).spawn(move || {
            let parent = nix::unistd::getpid();
            for Job { mut command, answer } in jobs {
                // SAFETY: between fork and exec only system calls that may be made there.
                unsafe { command.pre_exec(move || end_with(parent)) };
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Spawner(sender))
    }

    fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, started) = mpsc::sync_channel(1);
        let gone = || io::Error::other("the thread that starts processes is gone");
        self.0.send(Job { command, answer }).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }

    /// Starts a client and gives it its key. Returns our end of its control socket as well.
    pub fn client(
        &self,
        config: &SupervisorConfig,
        start: &Start,
        uid: u32,
        takeover: bool,
    ) -> io::Result<(Child, Arc<PacketSocket>)> {
        let (control, theirs) = PacketSocket::pair()?;
        let mut command = command(config, start, uid, takeover);
        command.stdin(Stdio::from(theirs));
        let mut child = self.spawn(command)?;
        if let Some(errors) = child.stderr.take() {
            let volume = start.volume.clone();
            let logs = std::thread::Builder::new().name("log".to_owned());
            if let Err(error) = logs.spawn(move || copy_log(&volume, errors)) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        }
        // A client that died at once is seen by whoever reads from it.
        let _ = control.send_bytes(start.key.as_bytes());
        Ok((child, Arc::new(control)))
    }
}

/// Has the kernel end this process at once when the thread that started it has ended, which it may have already.
fn end_with(parent: Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    match nix::unistd::getppid() == parent {
        true => Ok(()),
        false => Err(nix::errno::Errno::ESRCH.into()),
    }
}

/// The command line of a client. The key isn't in it.
pub fn command(config: &SupervisorConfig, start: &Start, uid: u32, takeover: bool) -> Command {
    let mut command = Command::new(&config.program);
    command
        .args(["mount", "--control-fd", "0"])
        .args(["--cluster", &start.cluster, "--metadata", &start.metadata.join(",")])
        .args(["--host", &start.node, "--name", &start.volume]);
    if takeover {
        command.arg("--takeover");
    }
    if start.encrypt {
        command.arg("--encrypt");
    }
    if let Some(bytes) = start.flags.buffer_bytes {
        command.args(["--buffer", &bytes.to_string()]);
    }
    if let Some(seconds) = start.flags.timeout_seconds {
        command.args(["--timeout", &seconds.to_string()]);
    }
    if start.flags.noatime {
        command.arg("--noatime");
    }
    command
        .env_clear()
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .uid(uid)
        .gid(uid);
    command
}

/// Copies a client's log to ours, each line with the volume's name.
fn copy_log(volume: &str, errors: impl io::Read) {
    for line in BufReader::new(errors).lines().map_while(Result::ok) {
        eprintln!("[{volume}] {line}");
    }
}

/// Waits until a process has ended, and leaves its number to it: until it is waited for, nothing else has that number.
pub fn await_end(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {
    }
}

/// Ends a process that was not waited for yet, at once.
pub fn end_at_once(pid: u32) {
    if let Err(error) = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        tracing::warn!(pid, %error, "a client can't be killed");
    }
}

/// Whether a client ended without having had the chance to write everything out.
pub fn died(status: ExitStatus) -> bool {
    // A panic aborts it: what has an exit code has written everything out, or said that it can't.
    status.signal().is_some()
}

/// How a process ended.
pub fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// Why a client doesn't serve.
pub enum Problem {
    /// The client said no, or died.
    Client(Failure, String),
    /// The node plugin is gone, or talks nonsense.
    Peer(io::Error),
}

/// Waits for one word of the client, while the node plugin is still there.
pub fn expect(
    peer: &PacketSocket,
    control: &PacketSocket,
    word: &str,
    deadline: Instant,
) -> Result<Vec<OwnedFd>, Problem> {
    match control.readable_before(peer, deadline) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Problem::Peer(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection",
            )));
        }
        // Said by what comes next.
        Err(_) => {}
    }
    said(control, word, deadline).map_err(|(failure, message)| Problem::Client(failure, message))
}

/// Waits for one word of the client, and returns the descriptors that come with it.
pub fn said(
    control: &PacketSocket,
    word: &str,
    deadline: Instant,
) -> Result<Vec<OwnedFd>, (Failure, String)> {
    let (said, descriptors) = match control.receive_descriptors(deadline) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let message = format!("the client did not report '{word}' within its timeout");
            return Err((Failure::Unreachable, message));
        }
        Err(error) => return Err((Failure::Other, format!("no message from the client: {error}"))),
    };
    let said = String::from_utf8_lossy(&said);
    if said == word {
        return Ok(descriptors);
    }
    let failed = said.strip_prefix("failed ").and_then(|rest| rest.split_once(' '));
    Err(match failed.and_then(|(code, message)| Some((code.parse().ok()?, message))) {
        Some((code, message)) => (Failure::from_exit_code(code), message.to_owned()),
        None if said.is_empty() => {
            (Failure::Other, "the client ended during its start; see the mount host's log".to_owned())
        }
        None => (Failure::Other, format!("the client reported '{said}' instead of '{word}'")),
    })
}

/// As many descriptors as the system lets this process have: each mount takes about ten.
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a pointer to a structure that outlives them.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "the limit of open descriptors can't be raised");
    }
}
