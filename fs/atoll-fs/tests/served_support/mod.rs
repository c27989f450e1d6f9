//! A cluster of one server of each kind, and clients that serve mounts which the test makes, as a mount host does.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use atoll_fuse::Layout;
use atoll_fuse::bundle::{Bundle, descriptors};
use atoll_fuse::device::{Device, MountOptions};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;

use crate::common::{TIMEOUT, atoll_fs, detach_all, require_fuse, wait_until};

/// Nobody's.
const UNPRIVILEGED: u32 = 65_534;

/// One at a time: children inherit what the others have open until they exec.
static TURN: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// A cluster of one metadata and one storage server.
pub struct Servers {
    _turn: parking_lot::MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
    program: PathBuf,
    id: String,
    metadata: String,
    processes: Vec<Child>,
}

/// One that nobody has; below those that the kernel gives to outgoing connections, which would have it a moment later.
fn free_address() -> String {
    let bound = || TcpListener::bind(("127.0.0.1", rand::random_range(10_000..30_000))).ok();
    std::iter::repeat_with(bound).flatten().next().unwrap().local_addr().unwrap().to_string()
}

impl Servers {
    pub fn start(flags: &[&str]) -> Servers {
        require_fuse();
        let turn = TURN.lock();
        let folder = tempfile::Builder::new().prefix("atoll-served-").tempdir().unwrap();
        // The clients of other user ids have to reach the program.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("atoll-fs");
        fs::copy(atoll_fs(), &program).unwrap();
        let output = Command::new(atoll_fs()).arg("keygen").arg(folder.path().join("key")).output().unwrap();
        let id = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let metadata = free_address();
        let mut servers = Servers { _turn: turn, folder, program, id, metadata, processes: Vec::new() };
        let listen = servers.metadata.clone();
        servers.start_server("metadata", &listen);
        servers.start_server("storage", &free_address());
        wait_until("bootstrap", || {
            let mut command = servers.command("bootstrap");
            command.args(["--metadata", &servers.metadata, "--capacity", "1Gi", "--copies", "1"]).args(flags);
            command.output().unwrap().status.success()
        });
        servers
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(atoll_fs());
        command.arg(name).args(["--cluster", &self.id]).arg("--key-file").arg(self.path("key"));
        command
    }

    /// What the leader says of the cluster.
    pub fn status(&self) -> serde_json::Value {
        let output =
            self.command("status").args(["--metadata", &self.metadata, "-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn start_server(&mut self, name: &str, listen: &str) {
        let mut command = self.command(name);
        command.arg("--data").arg(self.path(name)).args(["--listen", listen, "--http", "127.0.0.1:0"]);
        command.args(["--ballast", "1Mi"]);
        if name != "metadata" {
            command.args(["--metadata", &self.metadata]);
        }
        let log = fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        self.processes.push(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// The cluster's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The address of the metadata server.
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn key(&self) -> Vec<u8> {
        fs::read(self.path("key")).unwrap()
    }

    /// Starts a client as nobody, and sends it a key.
    pub fn client(&self, host: &str, key: &[u8]) -> Client {
        self.spawn(host, key, &[])
    }

    /// Starts a client that continues for one that is dead.
    pub fn successor(&self, host: &str, kept: &Kept) -> Client {
        let mut client = self.spawn(host, &self.key(), &["--takeover"]);
        descriptors::send(&client.stream(), b"arena", &[kept.arena.as_fd()]).unwrap();
        assert_eq!(client.says(), "connected");
        client.arena = None;
        kept.bundle.send(&client.stream()).unwrap();
        assert_eq!(client.says(), "serving");
        client
    }

    /// Starts a client that would continue for one that is dead, with a key that is refused; what it says.
    pub fn refused_successor(&self, host: &str, kept: &Kept) -> String {
        let mut client = self.spawn(host, "77".repeat(32).as_bytes(), &["--takeover"]);
        descriptors::send(&client.stream(), b"arena", &[kept.arena.as_fd()]).unwrap();
        let said = client.says();
        assert_eq!(client.exit_code(), Some(4));
        said
    }

    fn spawn(&self, host: &str, key: &[u8], flags: &[&str]) -> Client {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0)).unwrap();
        let log =
            fs::File::options().create(true).append(true).open(self.path(&format!("{host}.log"))).unwrap();
        let child = Command::new(&self.program)
            .args(["mount", "--control-fd", "0", "--cluster", &self.id, "--metadata", &self.metadata])
            .args(["--host", host, "--name", "v1/test/volume"])
            .args(flags)
            .stdin(Stdio::from(theirs))
            .stderr(log)
            .env_clear()
            .uid(UNPRIVILEGED)
            .gid(UNPRIVILEGED)
            .spawn()
            .unwrap();
        let client = Client { child, control: Some(ours), arena: None };
        client.send(key);
        client
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        detach_all(self.folder.path());
        if std::thread::panicking() {
            for log in ["node-1.log", "metadata.log"] {
                eprintln!("{log}:\n{}", fs::read_to_string(self.path(log)).unwrap_or_default());
            }
        }
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a mount host keeps for a client's successor.
pub struct Kept {
    bundle: Bundle,
    arena: OwnedFd,
}

pub struct Client {
    pub child: Child,
    pub control: Option<OwnedFd>,
    /// The descriptor that came with its last word.
    arena: Option<OwnedFd>,
}

impl Client {
    fn fd(&self) -> &OwnedFd {
        self.control.as_ref().unwrap()
    }

    /// Sends it a packet.
    pub fn send(&self, packet: &[u8]) {
        send(self.fd().as_raw_fd(), packet, MsgFlags::empty()).unwrap();
    }

    fn stream(&self) -> UnixStream {
        UnixStream::from(self.fd().as_fd().try_clone_to_owned().unwrap())
    }

    pub fn says(&mut self) -> String {
        let mut packet = [0; 4096];
        let (length, mut descriptors) = descriptors::receive(&self.stream(), &mut packet).unwrap();
        self.arena = descriptors.pop();
        String::from_utf8(packet[..length].to_vec()).unwrap()
    }

    /// Mounts, and gives the client the mount. What it returns keeps the mount alive without the client.
    pub fn mount(&mut self, servers: &Servers, place: &Path) -> Kept {
        assert_eq!(self.says(), "connected");
        let options = MountOptions::new(servers.id.parse().unwrap());
        let device = Device::open().unwrap();
        device.mount(place, &options).unwrap();
        let bundle = Bundle::new(device, 2, Layout::default(), &options).unwrap();
        bundle.send(&self.stream()).unwrap();
        let arena = self.arena.take().unwrap();
        assert_eq!(self.says(), "serving");
        Kept { bundle, arena }
    }

    /// Ends it at once, without a chance to do anything.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn folder(servers: &Servers, name: &str) -> PathBuf {
    let path = servers.path(name);
    fs::create_dir(&path).unwrap();
    path
}
