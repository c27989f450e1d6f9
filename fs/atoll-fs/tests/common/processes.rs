//! A cluster of separate processes: servers, and as many mounts as a test wants.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::mount::MsFlags;

use super::{atoll_fs, detach_all, kill_and_wait, require_fuse, wait_until};

/// One test at a time. A test's children inherit what the others have open until they exec, and to close a file
/// of a mount waits for its servers: a server that is to be started could wait for itself.
static TURN: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// Runs a server again and again, each time it dies, half a second later. A test whose threads are blocked on the
/// mount can't start the server that they wait for, for the reason above.
const KEEP_RUNNING: &str = r#"while :; do "$@" & echo $! > "$0"; wait $!; sleep 0.5; done"#;

/// Address of the near end of a [`Link`].
const NEAR: &str = "10.99.0.1";

/// Two network namespaces with a cable between them and no other way out. They are gone with this.
pub struct Link {
    /// What keeps the namespaces, the near one first.
    holders: [Child; 2],
    /// Carries out commands on the near side. It was started before the test had any file open on a mount that may be cut off:
    /// a program that is started later would wait for that mount, to close what it inherits.
    shell: Child,
    answers: BufReader<ChildStdout>,
}

impl Link {
    pub fn new() -> Link {
        let hold = || {
            let mut command = Command::new("unshare");
            // It ends with the pipe, and so with this process, however that ends.
            command.args(["--net", "cat"]);
            let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("unshare");
            let ours = fs::read_link("/proc/self/ns/net").expect("a namespace");
            let theirs = format!("/proc/{}/ns/net", child.id());
            wait_until("the namespace is there", || fs::read_link(&theirs).is_ok_and(|found| found != ours));
            child
        };
        let holders = [hold(), hold()];
        let mut shell = Command::new("nsenter");
        shell.arg(format!("--net=/proc/{}/ns/net", holders[0].id())).arg("sh");
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("nsenter");
        let answers = BufReader::new(shell.stdout.take().expect("a pipe"));
        let mut link = Link { holders, shell, answers };
        let far = link.holders[1].id();
        let there = format!("nsenter --net=/proc/{far}/ns/net");
        link.run(&format!("ip link add near type veth peer name far netns {far}"));
        link.run(&format!("ip address add {NEAR}/30 dev near && ip link set lo up && ip link set near up"));
        link.run(&format!("{there} ip address add 10.99.0.2/30 dev far"));
        link.run(&format!("{there} ip link set lo up && {there} ip link set far up"));
        link
    }

    pub fn near(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holders[0].id()))
    }

    pub fn far(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holders[1].id()))
    }

    /// Nothing passes any more.
    pub fn cut(&mut self) {
        self.run("ip link set near down");
    }

    /// Everything passes again.
    pub fn mend(&mut self) {
        self.run("ip link set near up");
    }

    fn run(&mut self, command: &str) {
        let stdin = self.shell.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "if {command}; then echo done; else echo failed; fi").expect("the shell listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the shell answers");
        assert_eq!(answer.trim(), "done", "{command}");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for child in self.holders.iter_mut().chain([&mut self.shell]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A cluster of separate processes on loopback.
pub struct Processes {
    _turn: parking_lot::MutexGuard<'static, ()>,
    keep_running: bool,
    pub folder: tempfile::TempDir,
    /// Where the servers' folders are.
    data: PathBuf,
    pub id: String,
    pub metadata: Vec<(Option<Child>, String)>,
    metadata_flags: &'static [&'static str],
    /// Further flags of storage servers that are started from now on.
    pub storage_flags: &'static [&'static str],
    pub storage: Vec<(Option<Child>, String)>,
    pub mounts: Vec<(Child, PathBuf)>,
    /// The network namespace that everything is started in.
    network: Option<PathBuf>,
}

/// Addresses that nobody listens at, each another one.
fn free_addresses(count: usize) -> Vec<String> {
    // None that the system gives to outgoing connections: between here and the server one could have it.
    let mut listeners: Vec<TcpListener> = Vec::new();
    while listeners.len() < count {
        listeners.extend(TcpListener::bind(("127.0.0.1", rand::random_range(10_000..30_000))));
    }
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

impl Processes {
    pub fn start(storage: usize, copies: u8) -> Processes {
        Processes::start_with(storage, copies, false)
    }

    pub fn start_with(storage: usize, copies: u8, keep_running: bool) -> Processes {
        Processes::start_group(1, storage, copies, keep_running)
    }

    /// With several metadata servers.
    pub fn start_group(metadata: usize, storage: usize, copies: u8, keep_running: bool) -> Processes {
        Processes::start_all(metadata, storage, copies, keep_running, &[])
    }

    /// With further flags for the metadata servers.
    pub fn start_all(
        metadata: usize,
        storage: usize,
        copies: u8,
        keep_running: bool,
        metadata_flags: &'static [&'static str],
    ) -> Processes {
        Processes::start_on((metadata, None), (storage, None), copies, keep_running, metadata_flags)
    }

    /// The servers' folders are in `data` instead of the test's own folder.
    pub fn start_at(data: &Path, metadata: usize, storage: usize, copies: u8) -> Processes {
        let mut cluster = Processes::new(metadata, storage, false, &[]);
        cluster.data = data.to_owned();
        cluster.begin((None, None), copies);
        cluster
    }

    /// So many servers of each kind, on disks of so many MiB of their own.
    pub fn start_on(
        (metadata, metadata_mib): (usize, Option<u64>),
        (storage, storage_mib): (usize, Option<u64>),
        copies: u8,
        keep_running: bool,
        metadata_flags: &'static [&'static str],
    ) -> Processes {
        let mut cluster = Processes::new(metadata, storage, keep_running, metadata_flags);
        cluster.begin((metadata_mib, storage_mib), copies);
        cluster
    }

    fn new(
        metadata: usize,
        storage: usize,
        keep_running: bool,
        metadata_flags: &'static [&'static str],
    ) -> Processes {
        require_fuse();
        let turn = TURN.lock();
        let folder = tempfile::Builder::new().prefix("atoll-processes-").tempdir().unwrap();
        let key = folder.path().join("key");
        let output = Command::new(atoll_fs()).arg("keygen").arg(&key).output().unwrap();
        assert!(output.status.success());
        let mut addresses = free_addresses(metadata + storage).into_iter().map(|address| (None, address));
        Processes {
            _turn: turn,
            keep_running,
            data: folder.path().to_owned(),
            id: String::from_utf8(output.stdout).unwrap().trim().to_owned(),
            folder,
            metadata: addresses.by_ref().take(metadata).collect(),
            metadata_flags,
            storage_flags: &[],
            storage: addresses.collect(),
            mounts: Vec::new(),
            network: None,
        }
    }

    /// On the near side of a link.
    pub fn start_near(link: &Link, metadata: usize, storage: usize, copies: u8) -> Processes {
        let mut cluster = Processes::new(metadata, storage, false, &[]);
        cluster.network = Some(link.near());
        let servers = cluster.metadata.iter_mut().chain(&mut cluster.storage);
        for (number, (_, address)) in servers.enumerate() {
            *address = format!("{NEAR}:{}", 7400 + number);
        }
        cluster.begin((None, None), copies);
        cluster
    }

    /// Starts what follows in another network namespace; returns the one before.
    pub fn go_to(&mut self, network: PathBuf) -> Option<PathBuf> {
        self.network.replace(network)
    }

    fn program(&self) -> Command {
        let Some(network) = &self.network else { return Command::new(atoll_fs()) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.display())).arg(atoll_fs());
        command
    }

    fn begin(&mut self, (metadata_mib, storage_mib): (Option<u64>, Option<u64>), copies: u8) {
        let cluster = self;
        let storage = cluster.storage.len();
        for number in 0..cluster.metadata.len() {
            if let Some(mib) = metadata_mib {
                cluster.disk(&Processes::metadata_name(number), mib);
            }
            cluster.start_metadata(number);
        }
        let copies = copies.to_string();
        wait_until("bootstrap", || {
            let arguments = ["--capacity", "2Gi", "--copies", &copies, "--copies-min", "1"];
            cluster.command("bootstrap").args(arguments).output().unwrap().status.success()
        });
        for number in 0..storage {
            if let Some(mib) = storage_mib {
                cluster.disk(&format!("storage-{number}"), mib);
            }
            cluster.start_storage(number);
        }
        wait_until("all storage servers are alive", || cluster.alive_servers() == storage);
    }

    /// Every process dies, as when the machine goes dark.
    pub fn die(&mut self) {
        for (child, _) in self.metadata.iter_mut().chain(&mut self.storage) {
            Processes::kill(child);
        }
        for (mut child, path) in self.mounts.drain(..) {
            kill_and_wait(child.id() as i32);
            let _ = child.wait();
            detach_all(&path);
        }
    }

    /// All servers start again.
    pub fn start_again(&mut self) {
        for number in 0..self.metadata.len() {
            self.start_metadata(number);
        }
        for number in 0..self.storage.len() {
            self.start_storage(number);
        }
    }

    /// A command with the cluster's flags.
    pub fn command(&self, name: &str) -> Command {
        let mut command = self.program();
        command.arg(name).args(["--cluster", &self.id]).arg("--key-file").arg(self.folder.path().join("key"));
        if name != "metadata" {
            let addresses: Vec<&str> = self.metadata.iter().map(|(_, address)| address.as_str()).collect();
            command.args(["--metadata", &addresses.join(",")]);
        }
        command
    }

    fn spawn(&self, mut command: Command, log: &str) -> Child {
        let pid_file = self.folder.path().join(log.replace(".log", ".pid"));
        let log = OpenOptions::new().create(true).append(true).open(self.folder.path().join(log)).unwrap();
        if self.keep_running && !log_is_of_a_mount(&pid_file) {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", KEEP_RUNNING])
                .arg(pid_file)
                .arg(command.get_program())
                .args(command.get_args());
            command = shell;
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Name of a metadata server, of its folder and its log.
    pub fn metadata_name(number: usize) -> String {
        if number == 0 { "metadata".into() } else { format!("metadata-{number}") }
    }

    pub fn start_metadata(&mut self, number: usize) {
        let name = Processes::metadata_name(number);
        let mut command = self.command("metadata");
        command.arg("--data").arg(self.data.join(&name));
        command.args([
            "--listen",
            &self.metadata[number].1,
            "--http",
            "127.0.0.1:0",
            "--session-lifetime",
            "5",
        ]);
        command.args(self.metadata_flags);
        self.metadata[number].0 = Some(self.spawn(command, &format!("{name}.log")));
    }

    /// Another metadata server, which belongs to no group yet; its number.
    pub fn add_metadata(&mut self) -> usize {
        let address = free_addresses(1).remove(0);
        self.metadata.push((None, address));
        self.start_metadata(self.metadata.len() - 1);
        self.metadata.len() - 1
    }

    /// Another storage server, on a disk of `mib` MiB of its own; its number.
    pub fn add_storage(&mut self, mib: u64) -> usize {
        let (number, address) = (self.storage.len(), free_addresses(1).remove(0));
        self.storage.push((None, address));
        self.disk(&format!("storage-{number}"), mib);
        self.start_storage(number);
        number
    }

    /// Which metadata server leads, as the group says.
    pub fn leader(&self) -> Option<usize> {
        let status = self.status();
        let address = status["metadata"]["leader"]["address"].as_str()?;
        self.metadata.iter().position(|(_, known)| known == address)
    }

    /// Sends a signal to a metadata server.
    pub fn signal_metadata(&self, number: usize, signal: nix::sys::signal::Signal) {
        let child = self.metadata[number].0.as_ref().expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).expect("a signal");
    }

    /// Sends a signal to a storage server.
    pub fn signal_storage(&self, number: usize, signal: nix::sys::signal::Signal) {
        let child = self.storage[number].0.as_ref().expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).expect("a signal");
    }

    /// A disk of `mib` MiB for a server's folder: one of its own, or another size for the one it has.
    pub fn disk(&self, name: &str, mib: u64) {
        let path = self.folder.path().join(name);
        let again = if path.exists() { MsFlags::MS_REMOUNT } else { MsFlags::empty() };
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={mib}m");
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), again, Some(&*size)).expect("a tmpfs");
    }

    pub fn start_storage(&mut self, number: usize) {
        let mut command = self.command("storage");
        command.arg("--data").arg(self.data.join(format!("storage-{number}")));
        command.args(["--listen", &self.storage[number].1, "--http", "127.0.0.1:0"]);
        command.args(["--labels", &format!("host={number}")]);
        command.args(self.storage_flags);
        self.storage[number].0 = Some(self.spawn(command, &format!("storage-{number}.log")));
    }

    pub fn mount(&mut self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        let mut command = self.command("mount");
        command.arg(&path);
        let child = self.spawn(command, &format!("{name}.log"));
        self.mounts.push((child, path.clone()));
        wait_until("mounted", || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.lines().any(|line| line.split(' ').nth(4) == path.to_str()) && fs::metadata(&path).is_ok()
        });
        path
    }

    /// Unmounts as an administrator does, and waits until all was written out.
    pub fn unmount(&mut self, path: &Path) {
        let at = self.mounts.iter().position(|(_, mounted)| mounted == path).expect("a mount");
        let (mut child, _) = self.mounts.remove(at);
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        )
        .expect("a signal");
        assert!(child.wait().unwrap().success(), "the mount didn't end in order");
    }

    /// `atoll-fs admin …`: the words of the command, then its arguments.
    pub fn admin(&self, words: &[&str], arguments: &[&str]) -> std::process::Output {
        let addresses: Vec<&str> = self.metadata.iter().map(|(_, address)| address.as_str()).collect();
        let mut command = self.program();
        command.arg("admin").args(words).args(["--cluster", &self.id]);
        command.arg("--key-file").arg(self.folder.path().join("key"));
        command.args(["--metadata", &addresses.join(",")]).args(arguments);
        command.output().unwrap()
    }

    pub fn status(&self) -> serde_json::Value {
        let output = self.command("status").args(["-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null)
    }

    pub fn alive_servers(&self) -> usize {
        let status = self.status();
        let servers = status["storage"].as_array().cloned().unwrap_or_default();
        servers.iter().filter(|server| server["alive"] == true).count()
    }

    /// kill -9 of a server that is started again by itself.
    pub fn kill_kept(&self, name: &str) {
        let pid = fs::read_to_string(self.folder.path().join(format!("{name}.pid"))).unwrap();
        kill_and_wait(pid.trim().parse().unwrap());
    }

    pub fn kill(child: &mut Option<Child>) {
        if let Some(mut child) = child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn chunk_files(&self, number: usize) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().join(format!("storage-{number}"))];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().filter_map(Result::ok) {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else if entry.metadata().unwrap().len() > 1 << 20
                    && !entry.file_name().to_string_lossy().contains("ballast")
                {
                    found.push(entry.path());
                }
            }
        }
        found
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in fs::read_dir(self.folder.path()).unwrap().filter_map(Result::ok) {
                if entry.path().extension().is_some_and(|extension| extension == "log") {
                    let log = fs::read_to_string(entry.path()).unwrap_or_default();
                    let lines: Vec<&str> = log.lines().collect();
                    eprintln!(
                        "--- {}\n{}",
                        entry.path().display(),
                        lines[lines.len().saturating_sub(12)..].join("\n")
                    );
                }
            }
        }
        for (mut child, _) in self.mounts.drain(..) {
            kill_and_wait(child.id() as i32);
            let _ = child.wait();
        }
        detach_all(self.folder.path());
        for (child, _) in &mut self.storage {
            Processes::kill(child);
        }
        for (child, _) in &mut self.metadata {
            Processes::kill(child);
        }
        // The shells are gone; now what they started.
        for entry in fs::read_dir(self.folder.path()).unwrap().filter_map(Result::ok) {
            if entry.path().extension().is_some_and(|extension| extension == "pid")
                && let Ok(pid) = fs::read_to_string(entry.path()).unwrap_or_default().trim().parse()
                && fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.starts_with(atoll_fs().as_bytes()))
            {
                kill_and_wait(pid);
            }
        }
    }
}

fn log_is_of_a_mount(pid_file: &Path) -> bool {
    let name = pid_file.file_name().unwrap().to_string_lossy();
    !name.starts_with("metadata") && !name.starts_with("storage")
}
