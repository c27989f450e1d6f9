//! The supervisor with clients that are shell scripts: `dd` reads one packet from the control socket, which is standard
//! input, and `>&0` writes one.

use std::ffi::OsStr;

use atoll_fuse::bundle::Bundle;
use atoll_fuse::{Layout, RequestMemory};

use std::os::unix::fs::PermissionsExt;

use super::super::SOCKET;
use super::super::client::Finder;
use super::super::protocol::Key;
use super::process::command;
use super::succession::{BACKOFF_MAX, BACKOFF_MIN, Kept, SETTLED_AFTER};
use super::*;
use crate::error::{CsiError, Pending};
use crate::holder::Keeper;
use crate::holder::protocol::{FromHolder, ToHolder};
use crate::mount_flags::MountFlags;

const VOLUME: &str = "v1/atoll-volumes/pvc-1";
/// Memory of a mount host: room for three clients as [`start`] wants them, and not for a fourth.
const MEMORY: u64 = crate::budget::HOST_BYTES + 3 * (crate::budget::CLIENT_BYTES + (1 << 23));
const READ_KEY: &str = "key=$(dd bs=256 count=1 2>/dev/null); [ \"$key\" = 5ec4e7 ] || exit 9";

struct Rig {
    folder: tempfile::TempDir,
    supervisor: Supervisor,
    finder: Finder,
    keeper: Keeper,
}

impl Rig {
    /// A supervisor whose clients run this script.
    fn new(script: &str, clients_max: usize) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        // Clients have other user ids.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = folder.path().join("client");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let socket = folder.path().join(SOCKET);
        let config = SupervisorConfig {
            socket,
            holder: folder.path().join("holder"),
            program,
            clients_max,
            memory: Some(MEMORY),
            client_timeout: Duration::from_secs(600),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        };
        let keeper = Keeper::start(&config.holder).unwrap();
        let supervisor = Supervisor::start(config).unwrap();
        let finder = Finder::folder(folder.path().to_owned(), folder.path().join("holder"));
        Rig { folder, supervisor, finder, keeper }
    }
}

fn start(volume: &str) -> Start {
    Start {
        volume: volume.to_owned(),
        cluster: "0123456789abcdef0123456789abcdef".to_owned(),
        key: Key::new("5ec4e7".to_owned()),
        encrypt: true,
        metadata: vec!["a:1".to_owned(), "b:2".to_owned()],
        node: "node-1".to_owned(),
        flags: MountFlags { buffer_bytes: Some(1 << 23), ..MountFlags::default() },
    }
}

/// A bundle whose device is none.
fn bundle() -> Bundle {
    let device = std::fs::File::open("/dev/null").unwrap();
    let memory = RequestMemory::create(Layout { slots: 2, buffers: 1 }).unwrap();
    Bundle::from_parts(vec![device.into()], memory.file().try_clone_to_owned().unwrap(), true)
}

#[test]
fn a_client_s_command_line_and_environment_hold_no_key() {
    let config = SupervisorConfig {
        socket: "/s".into(),
        holder: "/h".into(),
        program: "/usr/bin/atoll-fs".into(),
        clients_max: 1,
        memory: None,
        client_timeout: Duration::from_secs(600),
        environment: vec![("ATOLL_LOG".into(), "info".into())],
    };
    let command = command(&config, &start(VOLUME), 7, false);
    let line: Vec<&OsStr> = command.get_args().collect();
    let line = line.join(OsStr::new(" ")).into_string().unwrap();
    assert_eq!(
        line,
        "mount --control-fd 0 --cluster 0123456789abcdef0123456789abcdef --metadata a:1,b:2 --host node-1 \
         --name v1/atoll-volumes/pvc-1 --encrypt --buffer 8388608"
    );
    assert!(!format!("{command:?}").contains("5ec4e7"));
    assert_eq!(command.get_envs().count(), 1);
}

#[tokio::test]
async fn a_client_lives_as_long_as_its_mount() {
    let serves = format!(
        "{READ_KEY}; printf connected >&0; dd bs=64 count=1 >/dev/null 2>&1; printf serving >&0; dd bs=64 count=1 >/dev/null 2>&1; exit 0"
    );
    let rig = Rig::new(&serves, 2);
    let starting = rig.finder.start(start(VOLUME)).await.unwrap();
    starting.serve(bundle(), VOLUME).await.unwrap();
    let clients = rig.supervisor.clients();
    assert_eq!((clients.len(), clients[0].state, clients[0].uid), (1, ClientState::Serving, UID_FIRST));
    let status = std::fs::read_to_string(format!("/proc/{}/status", clients[0].pid)).unwrap();
    let ids = format!("{UID_FIRST}\t{UID_FIRST}\t{UID_FIRST}\t{UID_FIRST}");
    assert!(status.contains(&format!("Uid:\t{ids}")) && status.contains(&format!("Gid:\t{ids}")), "{status}");

    let again = rig.finder.start(start(VOLUME)).await.err();
    assert!(matches!(again, Some(CsiError::Pending(Pending::NotYet(_)))), "one client a volume: {again:?}");
    let second = rig.finder.start(start("v1/a/b")).await.unwrap();
    assert_ne!(rig.supervisor.clients()[0].uid, rig.supervisor.clients()[1].uid, "an id of its own");
    let full = rig.finder.start(start("v1/a/c")).await.err();
    assert!(matches!(full, Some(CsiError::Exhausted(_))), "{full:?}");

    let still = rig.finder.ended(VOLUME, Duration::ZERO).await;
    assert!(matches!(still, Err(CsiError::Pending(Pending::NotYet(_)))), "{still:?}");
    // The caller goes away before there is a mount.
    drop(second);
    rig.finder.ended("v1/a/b", Duration::from_secs(60)).await.unwrap();
    let supervisor = rig.supervisor.clone();
    tokio::task::spawn_blocking(move || supervisor.stop(Duration::ZERO)).await.unwrap();
    assert!(rig.supervisor.clients().is_empty());
    assert!(!rig.folder.path().join(SOCKET).exists());
}

/// A client that serves, and a successor that does as `successor` says.
fn serves_and(successor: &str) -> String {
    let packet = "dd bs=64 count=1 >/dev/null 2>&1";
    format!(
        "{READ_KEY}; case \"$*\" in *--takeover*) {packet}; {successor};; esac
        printf connected >&0; {packet}; printf serving >&0; {packet}; exit 0"
    )
}

impl Rig {
    /// A client that serves, and that has given its arena.
    async fn serving(&self) -> u32 {
        let starting = self.finder.start(start(VOLUME)).await.unwrap();
        starting.serve(bundle(), VOLUME).await.unwrap();
        // Shell scripts can't send descriptors.
        let arena = std::fs::File::open("/dev/null").unwrap().into();
        let control = self.supervisor.0.table.lock().clients[VOLUME].control.clone().unwrap();
        let kept = Kept::new(start(VOLUME), bundle(), arena, control);
        kept.serves(Instant::now());
        let mut table = self.supervisor.0.table.lock();
        let entry = table.clients.get_mut(VOLUME).unwrap();
        entry.kept = Some(Arc::new(kept));
        match entry.process {
            Process::Running(pid) => pid,
            other => panic!("the client is {other:?}"),
        }
    }

    fn kill(pid: u32) {
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// Waits until another client than this one serves; none if the volume has no client any more.
    async fn successor_of(&self, pid: u32) -> Option<u32> {
        loop {
            match self.supervisor.clients().first() {
                None => return None,
                Some(client) if client.pid != pid && client.state == ClientState::Serving => {
                    return Some(client.pid);
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_dies_is_succeeded_again_and_again() {
    let rig = Rig::new(&serves_and(":"), 1);
    let mut pid = rig.serving().await;
    for _ in 0..3 {
        Rig::kill(pid);
        pid = rig.successor_of(pid).await.expect("a successor serves");
        let again = rig.finder.start(start(VOLUME)).await.err();
        assert!(matches!(again, Some(CsiError::Pending(Pending::NotYet(_)))), "{again:?}");
    }
    assert_eq!((rig.supervisor.0.succeeded.get(), rig.supervisor.0.failed.get()), (3, 3));
    assert_eq!(rig.keeper.volumes(), [VOLUME], "each successor is kept");
    // It ends as the first one would have.
    rig.supervisor.0.table.lock().clients[VOLUME].control.clone().unwrap().end();
    rig.finder.ended(VOLUME, Duration::from_secs(60)).await.unwrap();
    assert_eq!(rig.supervisor.0.failed.get(), 3);
    while !rig.keeper.volumes().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_mount_whose_successor_is_refused_is_given_up() {
    let rig = Rig::new(&serves_and("printf 'failed 4 another key' >&0; exit 4"), 1);
    let pid = rig.serving().await;
    Rig::kill(pid);
    assert_eq!(rig.successor_of(pid).await, None);
    rig.finder.ended(VOLUME, Duration::ZERO).await.unwrap();
    // And one that says that it failed had nothing more to write: it is not succeeded.
    let rig = Rig::new(
        &format!(
            "{READ_KEY}; printf connected >&0; dd bs=64 count=1 >/dev/null 2>&1; printf serving >&0; sleep 0.1; exit 5"
        ),
        1,
    );
    let pid = rig.serving().await;
    assert_eq!(rig.successor_of(pid).await, None);
}

#[test]
fn clients_that_die_one_after_the_other_are_succeeded_more_slowly() {
    let began = Instant::now();
    let arena = std::fs::File::open("/dev/null").unwrap().into();
    let (control, _theirs) = PacketSocket::pair().unwrap();
    let kept = Kept::new(start(VOLUME), bundle(), arena, Arc::new(control));
    assert_eq!(kept.backoff(began, 0), Duration::ZERO, "another mount host's client");
    kept.serves(began);
    let settled = began + SETTLED_AFTER;
    assert_eq!(kept.backoff(settled, 0), Duration::ZERO);
    let pauses: Vec<Duration> = (0..30).map(|_| kept.backoff(began, 0)).collect();
    assert_eq!(pauses[..3], [BACKOFF_MIN, BACKOFF_MIN * 2, BACKOFF_MIN * 4]);
    assert_eq!(pauses[29], BACKOFF_MAX);
    assert_eq!(kept.backoff(settled, 0), Duration::ZERO, "it has served for a while");
    // And so are successors that don't come to serve, however long ago one did.
    let pauses: Vec<Duration> = (1..30).map(|failed| kept.backoff(settled, failed)).collect();
    assert_eq!((pauses[0], pauses[1], pauses[28]), (BACKOFF_MIN, BACKOFF_MIN * 2, BACKOFF_MAX));
}

#[tokio::test]
async fn a_mount_of_another_mount_host_is_taken_over_when_its_client_is_dead() {
    let rig = Rig::new(&serves_and(":"), 1);
    // What another mount host left with the holder; its client lives as long as the other end is open.
    let (control, client) = PacketSocket::pair().unwrap();
    let arena = std::fs::File::open("/dev/null").unwrap().into();
    let left = Kept::new(start(VOLUME), bundle(), arena, Arc::new(control));
    let host = PacketSocket::connect(&rig.folder.path().join("holder").join(crate::holder::SOCKET)).unwrap();
    left.with(|mount| {
        let descriptors = mount.descriptors();
        let (volume, record) = (VOLUME.to_owned(), mount.record().unwrap());
        let keep = ToHolder::Keep { volume, record, descriptors: descriptors.len() };
        host.send_with(&keep, &descriptors).unwrap();
    });
    let kept: FromHolder = host.receive(Instant::now() + Duration::from_secs(60)).unwrap();
    assert_eq!(kept, FromHolder::Kept { volume: VOLUME.to_owned() });

    let second = rig.folder.path().join("second");
    std::fs::create_dir(&second).unwrap();
    let config = SupervisorConfig { socket: second.join(SOCKET), ..rig.supervisor.0.config.clone() };
    let next = Supervisor::start(config).unwrap();
    while next.clients().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        assert_eq!((next.clients()[0].pid, next.clients()[0].state), (0, ClientState::Starting));
        assert!(next.problem().is_some_and(|problem| problem.contains(VOLUME)), "not ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(client);
    while next.0.adopted.get() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((next.problem(), next.clients()[0].state), (None, ClientState::Serving));
    assert!(rig.supervisor.problem().is_some_and(|problem| problem.contains("another mount host")));
    assert_eq!(rig.keeper.volumes(), [VOLUME], "its new client is kept");
}

#[tokio::test]
async fn what_a_client_says_is_what_the_caller_hears() {
    let unreachable = format!("{READ_KEY}; printf 'failed 5 nobody answers' >&0; exit 5");
    let taken = format!("{READ_KEY}; printf \"failed 7 'node-2' has it\" >&0; exit 7");
    let refused = format!("{READ_KEY}; printf 'failed 4 another key' >&0; exit 4");
    let dies = "exit 3".to_owned();
    let garbage = format!("{READ_KEY}; printf hello >&0");
    for (script, expected) in [
        (unreachable, CsiError::Pending(Pending::Unavailable("nobody answers".into()))),
        (taken, CsiError::Pending(Pending::Elsewhere("'node-2' has it".into()))),
        (refused, CsiError::Precondition("another key".into())),
        (dies, CsiError::Internal("the client ended during its start; see the mount host's log".into())),
        (garbage, CsiError::Internal("the client reported 'hello' instead of 'connected'".into())),
    ] {
        let rig = Rig::new(&script, 1);
        let heard = rig.finder.start(start(VOLUME)).await.err();
        assert_eq!(heard, Some(expected));
        // It is gone, so the next call may try again at once.
        rig.finder.ended(VOLUME, Duration::ZERO).await.unwrap();
    }
}

#[tokio::test]
async fn a_mount_that_its_client_does_not_take_is_an_error() {
    let dies_late = format!("{READ_KEY}; printf connected >&0; dd bs=64 count=1 >/dev/null 2>&1; exit 1");
    let rig = Rig::new(&dies_late, 1);
    let starting = rig.finder.start(start(VOLUME)).await.unwrap();
    let error = starting.serve(bundle(), VOLUME).await.unwrap_err();
    assert!(matches!(error, CsiError::Internal(_)), "{error}");
}

#[tokio::test]
async fn without_a_mount_host_the_caller_is_told_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let finder = Finder::folder(folder.path().to_owned(), folder.path().join("holder"))
        .with_leader_timeout(Duration::ZERO);
    let error = finder.start(start(VOLUME)).await.err();
    assert!(matches!(error, Some(CsiError::Pending(Pending::Unavailable(_)))), "{error:?}");
    assert!(finder.problem().await.is_some());
    finder.ended(VOLUME, Duration::ZERO).await.unwrap();
}

#[test]
fn only_a_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join(SOCKET);
    std::fs::write(&socket, b"somebody's").unwrap();
    let program = "/bin/true".into();
    let config = SupervisorConfig {
        socket: socket.clone(),
        holder: folder.path().join("holder"),
        program,
        clients_max: 1,
        memory: None,
        client_timeout: Duration::from_secs(600),
        environment: Vec::new(),
    };
    assert!(matches!(Supervisor::start(config.clone()), Err(SupervisorError::Socket { .. })));
    assert!(socket.exists());
    let missing = SupervisorConfig { program: "/no/such/program".into(), ..config };
    assert!(matches!(Supervisor::start(missing), Err(SupervisorError::Program(_))));
}

#[tokio::test]
async fn volumes_are_taken_as_long_as_there_is_memory() {
    let rig =
        Rig::new(&format!("{READ_KEY}; printf connected >&0; dd bs=64 count=1 >/dev/null 2>&1; exit 0"), 64);
    let mut starting = Vec::new();
    for volume in ["a", "b", "c"] {
        starting.push(rig.finder.start(start(volume)).await.unwrap());
    }
    let refused = rig.finder.start(start("d")).await.err().unwrap();
    assert!(matches!(&refused, CsiError::Exhausted(why) if why.contains("buffer=")), "{refused}");
    let mut registry = Registry::with_prefix("atoll");
    rig.supervisor.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let taken = format!("atoll_mount_host_memory_budgets {}", (MEMORY - crate::budget::HOST_BYTES) as f64);
    assert!(text.contains(&taken), "{taken}: {text}");
    // One that goes gives its room back.
    drop(starting.pop());
    rig.finder.ended("c", Duration::from_secs(60)).await.unwrap();
    rig.finder.start(start("d")).await.unwrap();
}
