//! A node without Kubernetes: a holder, mount hosts and a node plugin, a cluster of one server of each kind, and programs that use
//! the mount and check everything that they read.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod calls;
pub mod programs;

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_crds::names::VolumeHandle;
use atoll_csi::access::Access;
use atoll_csi::holder;
use atoll_csi::mount_flags::MountFlags;
use atoll_csi::mount_host::client::Finder;
use atoll_csi::mount_host::packet::PacketSocket;
use atoll_csi::mount_host::protocol::{ClientInfo, ClientState, Reply, Request};
use atoll_csi::node::{Credentials, Node, PublishRequest, StageRequest};
use atoll_csi::target_path::NodePath;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A bound on hanging, nothing else.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// The volume.
pub const VOLUME: &str = "v1/test/volume";

/// Waits for something.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The filesystem's program, which cargo compiles beside the driver for the tests of the whole workspace.
fn atoll_fs() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_atoll-csi")).with_file_name("atoll-fs");
    assert!(beside.exists(), "{} is missing: run the tests of the whole workspace", beside.display());
    beside
}

/// What decides about what is random: `ATOLL_SEED`, or chance.
pub fn seed() -> u64 {
    std::env::var("ATOLL_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap())
}

/// A process that ends with the test.
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    fn start(name: &str, command: &mut Command, log: &Path) -> Process {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Process { child, name: name.to_owned() }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, as kubelet sends it.
    pub fn ask_to_end(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let (child, name) = (&mut self.child, &self.name);
        let mut status = None;
        wait_until(&format!("{name} ends"), || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Asks it to end, which it does in order.
    pub fn end(&mut self) {
        self.ask_to_end();
        let status = self.ended();
        assert!(status.success(), "{} ended with {:?}/{:?}", self.name, status.code(), status.signal());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster, a node, and a directory for all that they have.
pub struct Machine {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    id: String,
    metadata: String,
    servers: Vec<Process>,
    node: Arc<Node>,
    /// How the volume is mounted.
    pub flags: MountFlags,
}

/// One that nobody has; below those that the kernel gives to outgoing connections, which would have it a moment later.
fn free_address() -> String {
    let bound = || TcpListener::bind(("127.0.0.1", rand::random_range(10_000..30_000))).ok();
    std::iter::repeat_with(bound).flatten().next().unwrap().local_addr().unwrap().to_string()
}

impl Machine {
    pub fn start() -> Machine {
        assert!(
            nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists(),
            "these tests mount filesystems: run them as root on a machine with /dev/fuse"
        );
        let folder = tempfile::Builder::new().prefix("atoll-node-").tempdir().unwrap();
        // Clients have other user ids, and have to reach the program.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(atoll_fs(), folder.path().join("atoll-fs")).unwrap();
        let output = Command::new(atoll_fs()).arg("keygen").arg(folder.path().join("key")).output().unwrap();
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let metadata = free_address();
        let hosts = ["a", "b"].map(|name| folder.path().join(name)).to_vec();
        let addresses = vec![metadata.clone()];
        let node = Arc::new(Node {
            name: "node-1".to_owned(),
            finder: Finder::folders_of(hosts, folder.path().join("holder")),
            addresses: Arc::new(move |_: &VolumeHandle| addresses.clone()),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let flags = MountFlags::default();
        let mut machine = Machine { folder, runtime, id, metadata, servers: Vec::new(), node, flags };
        let listen = machine.metadata.clone();
        machine.server("metadata", &listen);
        machine.server("storage", &free_address());
        wait_until("bootstrap", || {
            let mut command = machine.command("bootstrap");
            command.args(["--metadata", &machine.metadata, "--capacity", "1Gi", "--copies", "1"]);
            command.output().unwrap().status.success()
        });
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the volume is mounted.
    pub fn place(&self) -> PathBuf {
        self.path("staging")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(atoll_fs());
        command.arg(name).args(["--cluster", &self.id]).arg("--key-file").arg(self.path("key"));
        command
    }

    fn server(&mut self, name: &str, listen: &str) {
        let mut command = self.command(name);
        command.arg("--data").arg(self.path(name)).args(["--listen", listen, "--http", "127.0.0.1:0"]);
        command.args(["--ballast", "1Mi"]);
        if name != "metadata" {
            command.args(["--metadata", &self.metadata]);
        }
        let log = self.path(&format!("{name}.log"));
        self.servers.push(Process::start(name, &mut command, &log));
    }

    pub fn holder(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll-csi"));
        command.args(["holder", "--http", "127.0.0.1:0", "--folder"]).arg(self.path("holder"));
        Process::start("holder", &mut command, &self.path("holder.log"))
    }

    /// A mount host; `name` is one of `a` and `b`.
    pub fn mount_host(&self, name: &str) -> Process {
        self.mount_host_with(name, &self.path("atoll-fs"))
    }

    /// A mount host whose clients are another program.
    pub fn mount_host_with(&self, name: &str, program: &Path) -> Process {
        fs::create_dir_all(self.path(name)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_atoll-csi"));
        command.args([
            "mount-host",
            "--http",
            "127.0.0.1:0",
            "--grace",
            "60",
            "--client-timeout",
            "3",
            "--folder",
        ]);
        command.arg(self.path(name)).arg("--holder").arg(self.path("holder")).arg("--program").arg(program);
        Process::start(name, &mut command, &self.path("mount-host.log"))
    }

    /// Waits until a mount host serves the node's mounts, and the holder has each of them.
    pub fn settled(&self, name: &str) {
        let finder = Finder::folder(self.path(name), self.path("holder"));
        wait_until(&format!("mount host {name} serves the mounts"), || {
            self.runtime.block_on(finder.problem()).is_none()
        });
        wait_until("the holder has the mount", || self.held() == Some(true));
    }

    /// Waits until a mount host serves the node's mounts, and the holder has all that it serves: either may go then.
    pub fn leads(&self, name: &str) {
        let finder = Finder::folder(self.path(name), self.path("holder"));
        wait_until(&format!("mount host {name} and the holder have all mounts"), || {
            self.runtime.block_on(finder.problem()).is_none()
                && self.infos(name).is_some_and(|clients| {
                    let serving = clients.iter().filter(|client| client.state == ClientState::Serving);
                    self.held_volume("") == Some(false)
                        && serving.into_iter().all(|client| self.held_volume(&client.volume) == Some(true))
                })
        });
    }

    /// What a mount host says of its clients, if it leads.
    fn infos(&self, host: &str) -> Option<Vec<ClientInfo>> {
        let socket = PacketSocket::connect(&self.path(host).join("mount-host.sock")).ok()?;
        socket.send(&Request::List).ok()?;
        match socket.receive(Instant::now() + TIMEOUT).ok()? {
            Reply::Clients { clients, leading: true } => Some(clients),
            _ => None,
        }
    }

    /// The processes of a mount host's clients.
    pub fn clients(&self, host: &str) -> Vec<u32> {
        let mut infos = None;
        wait_until(&format!("mount host {host} leads"), || {
            infos = self.infos(host);
            infos.is_some()
        });
        infos.unwrap().iter().map(|client| client.pid).filter(|pid| *pid > 0).collect()
    }

    /// The process of the client that a mount host serves the only volume with.
    pub fn client(&self, host: &str) -> u32 {
        self.clients(host).first().copied().unwrap_or(0)
    }

    /// Kills a client's process, if there is one.
    pub fn kill(&self, pid: u32) {
        if pid > 0 {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    /// The places below this directory where something is mounted.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let places = table.lines().filter_map(|line| line.split(' ').nth(4));
        places.filter(|place| Path::new(place).starts_with(self.folder.path())).map(str::to_owned).collect()
    }

    /// The names in a directory below this one, in order.
    pub fn read_dir(&self, name: &str) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    /// The node, as a driver knows it.
    pub fn node(&self) -> Arc<Node> {
        Arc::clone(&self.node)
    }

    /// The Secret's entries.
    pub fn secrets(&self) -> HashMap<String, String> {
        let key = fs::read_to_string(self.path("key")).unwrap();
        HashMap::from([("cluster".to_owned(), self.id.clone()), ("key".to_owned(), key)])
    }

    /// Whether the holder has a volume's mount; `None` without a holder.
    pub fn held_volume(&self, volume: &str) -> Option<bool> {
        holder::link::has(&self.path("holder"), volume).unwrap_or(None)
    }

    /// Whether a process runs.
    pub fn runs(&self, pid: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
    }

    /// Stops a process, so that it gets nothing done.
    pub fn stop(&self, pid: u32) {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).unwrap();
    }

    /// Waits until the holder has let go of the mount, which nobody needs any more.
    pub fn forgotten(&self) {
        wait_until("the holder has let go of the mount", || self.held() == Some(false));
    }

    /// Whether the holder has the volume's mount; `None` without a holder.
    pub fn held(&self) -> Option<bool> {
        self.held_volume(VOLUME)
    }

    fn credentials(&self) -> Credentials {
        Credentials::parse(&self.secrets()).unwrap()
    }

    fn staging(&self) -> NodePath {
        NodePath::parse("staging_target_path", self.place().to_str().unwrap()).unwrap()
    }

    /// NodeStageVolume, again and again as kubelet does, until it succeeds.
    pub fn stage(&self) {
        let request = StageRequest {
            handle: VOLUME.parse().unwrap(),
            staging: self.staging(),
            flags: self.flags.clone(),
            credentials: self.credentials(),
        };
        self.until_ok("stage", || self.runtime.block_on(self.node.stage(&request)));
    }

    /// NodePublishVolume at a path below the machine's directory.
    pub fn publish(&self, name: &str) {
        let request = self.publish_request(name);
        self.until_ok("publish", || self.runtime.block_on(self.node.publish(&request)));
    }

    /// NodePublishVolume by a node plugin that ends after a while, done or not.
    pub fn publish_and_die(&self, name: &str, after: Duration) {
        let request = self.publish_request(name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let called = async { tokio::time::timeout(after, self.node.publish(&request)).await };
        let _ = runtime.block_on(called);
        runtime.shutdown_background();
    }

    fn publish_request(&self, name: &str) -> PublishRequest {
        PublishRequest {
            handle: VOLUME.parse().unwrap(),
            staging: self.staging(),
            target: NodePath::parse("target_path", self.path(name).to_str().unwrap()).unwrap(),
            access: Access::MultiNode,
            flags: self.flags.clone(),
            read_only: false,
            credentials: Some(self.credentials()),
        }
    }

    /// NodeUnpublishVolume.
    pub fn unpublish(&self, name: &str) {
        let target = NodePath::parse("target_path", self.path(name).to_str().unwrap()).unwrap();
        self.until_ok("unpublish", || self.runtime.block_on(self.node.unpublish(VOLUME, &target)));
    }

    /// NodeUnstageVolume.
    pub fn unstage(&self) {
        let handle: VolumeHandle = VOLUME.parse().unwrap();
        self.until_ok("unstage", || self.runtime.block_on(self.node.unstage(&handle, &self.staging())));
    }

    fn until_ok(&self, what: &str, mut call: impl FnMut() -> Result<(), atoll_csi::error::CsiError>) {
        wait_until(what, || match call() {
            Ok(()) => true,
            Err(error) => {
                eprintln!("{what}: {error}");
                false
            }
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        for place in places.filter(|place| place.starts_with(self.folder.path())).collect::<Vec<_>>() {
            let _ = nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH);
        }
        if std::thread::panicking() {
            for log in ["holder.log", "mount-host.log"] {
                eprintln!("{log}:\n{}", fs::read_to_string(self.path(log)).unwrap_or_default());
            }
        }
    }
}
