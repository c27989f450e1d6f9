//! Mounts that another process makes: the client is an unprivileged process that gets key and mount over a socket.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use atoll_fuse::Layout;
use atoll_fuse::bundle::Bundle;
use atoll_fuse::device::{self, Device, MountOptions};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

use common::{TIMEOUT, atoll_fs, detach_all, require_fuse, wait_until};

/// Nobody's.
const UNPRIVILEGED: u32 = 65_534;

/// One at a time: children inherit what the others have open until they exec.
static TURN: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// A cluster of one metadata and one storage server.
struct Servers {
    _turn: parking_lot::MutexGuard<'static, ()>,
    folder: tempfile::TempDir,
    program: PathBuf,
    id: String,
    metadata: String,
    processes: Vec<Child>,
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Servers {
    fn start(flags: &[&str]) -> Servers {
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

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn key(&self) -> Vec<u8> {
        fs::read(self.path("key")).unwrap()
    }

    /// Starts a client as nobody, and sends it a key.
    fn client(&self, host: &str, key: &[u8]) -> Client {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0)).unwrap();
        let log = fs::File::create(self.path(&format!("{host}.log"))).unwrap();
        let child = Command::new(&self.program)
            .args(["mount", "--control-fd", "0", "--cluster", &self.id, "--metadata", &self.metadata])
            .args(["--host", host, "--name", "v1/test/volume"])
            .stdin(Stdio::from(theirs))
            .stderr(log)
            .env_clear()
            .uid(UNPRIVILEGED)
            .gid(UNPRIVILEGED)
            .spawn()
            .unwrap();
        let client = Client { child, control: Some(ours) };
        client.send(key);
        client
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        detach_all(self.folder.path());
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

struct Client {
    child: Child,
    control: Option<OwnedFd>,
}

impl Client {
    fn fd(&self) -> &OwnedFd {
        self.control.as_ref().unwrap()
    }

    fn send(&self, packet: &[u8]) {
        send(self.fd().as_raw_fd(), packet, MsgFlags::empty()).unwrap();
    }

    fn says(&self) -> String {
        let mut packet = [0; 4096];
        let length = recv(self.fd().as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        String::from_utf8(packet[..length].to_vec()).unwrap()
    }

    /// Mounts, and gives the client the mount.
    fn mount(&self, servers: &Servers, place: &Path) {
        assert_eq!(self.says(), "connected");
        let options = MountOptions::new(servers.id.parse().unwrap());
        let device = Device::open().unwrap();
        device.mount(place, &options).unwrap();
        let bundle = Bundle::new(device, 2, Layout::default(), &options).unwrap();
        bundle.send(&UnixStream::from(self.fd().as_fd().try_clone_to_owned().unwrap())).unwrap();
        drop(bundle);
        assert_eq!(self.says(), "serving");
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder(servers: &Servers, name: &str) -> PathBuf {
    let path = servers.path(name);
    fs::create_dir(&path).unwrap();
    path
}

#[test]
fn an_unprivileged_process_serves_a_mount_that_another_one_made() {
    let servers = Servers::start(&[]);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    client.mount(&servers, &place);
    let status = fs::read_to_string(format!("/proc/{}/status", client.child.id())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("Uid:\t65534"), "{status}");
    let environment = fs::read(format!("/proc/{}/environ", client.child.id())).unwrap();
    let line = fs::read(format!("/proc/{}/cmdline", client.child.id())).unwrap();
    let key = servers.key().trim_ascii().to_vec();
    assert!(![environment, line].iter().any(|place| place.windows(key.len()).any(|part| part == key)));
    fs::write(place.join("file"), b"written as root, served by nobody").unwrap();
    // Unmounting is the sign to write everything out and end.
    device::unmount(&place, false).unwrap();
    assert_eq!(client.exit_code(), Some(0));

    let again = servers.client("node-1", &servers.key());
    again.mount(&servers, &place);
    assert_eq!(fs::read(place.join("file")).unwrap(), b"written as root, served by nobody");
    device::unmount(&place, false).unwrap();
}

#[test]
fn a_client_ends_with_who_controls_it_and_what_was_written_stays() {
    let servers = Servers::start(&[]);
    let place = folder(&servers, "mount");
    let mut client = servers.client("node-1", &servers.key());
    client.mount(&servers, &place);
    fs::write(place.join("file"), b"not synced").unwrap();
    client.control = None;
    assert_eq!(client.exit_code(), Some(0));
    let dead = fs::metadata(&place).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(nix::libc::ENOTCONN));
    device::unmount(&place, true).unwrap();
    let next = servers.client("node-1", &servers.key());
    next.mount(&servers, &place);
    assert_eq!(fs::read(place.join("file")).unwrap(), b"not synced");
    device::unmount(&place, false).unwrap();
    // Before there is a mount, too.
    let mut waiting = servers.client("node-2", &servers.key());
    assert_eq!(waiting.says(), "connected");
    waiting.control = None;
    assert_eq!(waiting.exit_code(), Some(1));
}

#[test]
fn what_a_client_refuses_it_says_with_its_exit_code() {
    let servers = Servers::start(&[]);
    let mut wrong_key = servers.client("node-1", "77".repeat(32).as_bytes());
    let said = wrong_key.says();
    assert!(said.starts_with("failed 4 "), "{said}");
    assert_eq!(wrong_key.exit_code(), Some(4));
    let mut no_key = servers.client("node-1", b"short");
    let said = no_key.says();
    assert!(said.starts_with("failed 1 ") && !said.contains("short"), "{said}");
    assert_eq!(no_key.exit_code(), Some(1));
}

#[test]
fn a_volume_for_one_machine_is_refused_to_a_second_one_until_it_is_free() {
    let servers = Servers::start(&["--exclusive"]);
    let place = folder(&servers, "mount");
    let mut first = servers.client("node-1", &servers.key());
    first.mount(&servers, &place);
    let mut second = servers.client("node-2", &servers.key());
    let said = second.says();
    assert!(said.starts_with("failed 7 ") && said.contains("'node-1'"), "{said}");
    assert_eq!(second.exit_code(), Some(7));
    fs::write(place.join("file"), b"undisturbed").unwrap();

    // The machine that has it begins again after a crash, at once.
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    wait_until("the mount is dead", || {
        fs::metadata(&place).err().and_then(|error: io::Error| error.raw_os_error())
            == Some(nix::libc::ENOTCONN)
    });
    device::unmount(&place, true).unwrap();
    let mut again = servers.client("node-1", &servers.key());
    again.mount(&servers, &place);
    device::unmount(&place, false).unwrap();
    assert_eq!(again.exit_code(), Some(0));

    let second = servers.client("node-2", &servers.key());
    second.mount(&servers, &place);
    device::unmount(&place, false).unwrap();
}
