//! `atoll-fs mount --control-fd`: serves a mount that another process makes, as Kubernetes' mount host wants it. This
//! process needs no privilege: who started it opens the device and mounts.
//!
//! One socket of packets (SOCK_SEQPACKET) to that process, the *controller*:
//!
//! | direction | packet | when |
//! | --- | --- | --- |
//! | to us | the cluster's key | at once; so it is in no argument, environment or file |
//! | to us | `arena`, with the arena's descriptor | after that, with `--takeover`: the arena is a dead predecessor's |
//! | from us | `connected`, with the arena's descriptor | there is a session and the root is known: only now is it worth while to mount |
//! | to us | the bundle ([`Bundle`]) | the filesystem is mounted |
//! | from us | `serving` | INIT was negotiated: requests are answered |
//! | to us | `flush` | while the mount is served: write out what is buffered |
//! | from us | `flushed` | after that, or `failed <code> <message>`; the mount continues to be served |
//! | to us, from us | `ping`, `pong` | while the mount is served: a client that doesn't answer for long is replaced |
//! | from us | `failed <code> <message>` | instead of either; then the process ends with that exit code |
//!
//! A controller that keeps the bundle and the arena can start a successor (`--takeover`) when this process dies: it continues
//! with the session, with what was written and not committed, and with requests that were not answered, so that no call of
//! an application fails. The process before it must be dead.
//!
//! When the controller closes the socket, this process writes everything out and ends. It also ends when the filesystem
//! was unmounted everywhere; its exit code says whether everything could be written out.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use atoll_fuse::bundle::{Bundle, descriptors};
use atoll_fuse::device;
use atoll_proto::handshake::ClusterKey;

use crate::cli::{MountArgs, Transport};
use crate::cluster::{self, serving_runtime};
use crate::exit::{Code, Context, Failure, Outcome};
use crate::mount::{CLIENT_THREADS, ConnectedClient, Mounted, serve_http};
use crate::signals;

/// What comes with a dead predecessor's arena.
const ARENA_PACKET: &[u8] = b"arena";
/// Asks for everything to be written out.
const FLUSH_PACKET: &[u8] = b"flush";
/// Asks whether we still get things done.
const PING_PACKET: &[u8] = b"ping";
/// Bytes of the packet with the key at most: hexadecimal, with a line's end.
const KEY_PACKET_BYTES: usize = 256;
/// How long writing everything out may take after the filesystem was unmounted, while the cluster can't be reached.
/// Nobody could be told any more; the data was written and not synced.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(600);

/// `atoll-fs mount --control-fd`
///
/// # Errors
/// With a message that says what to do; the controller was told.
pub fn run(args: &MountArgs) -> Outcome {
    let Some(number) = args.control_fd else {
        return Err(Failure::failed("name a mount point or --control-fd"));
    };
    let mut control = control(number)?;
    let result = serve(args, &mut control);
    if let Err(failure) = &result {
        let text = format!("failed {} {failure}", failure.code as u8);
        // A controller that is gone doesn't matter.
        let _ = control.write_all(text.as_bytes());
    }
    result
}

/// The socket, which is checked to be one: everything later would fail in less obvious ways.
fn control(number: i32) -> Result<UnixStream, Failure> {
    if number < 0 {
        return Err(Failure::failed(format_args!("--control-fd {number}: not an open descriptor")));
    }
    // SAFETY: who started us made this descriptor for us, and nobody else here knows of it. One that isn't open gives
    // an error at the first call.
    let descriptor: OwnedFd = unsafe { device::inherited(number) };
    let socket = UnixStream::from(descriptor);
    socket.local_addr().context("--control-fd isn't a socket")?;
    Ok(socket)
}

fn serve(args: &MountArgs, control: &mut UnixStream) -> Outcome {
    if args.behaviour.transport != Transport::Atoll {
        return Err(Failure::failed(
            "--control-fd needs --transport atoll: fuser can't serve a mount of another process",
        ));
    }
    let id = cluster::id(&args.cluster)?;
    let mut packet = [0; KEY_PACKET_BYTES];
    let length = control.read(&mut packet).context("control socket: key")?;
    let key = ClusterKey::parse(&packet[..length]).context("control socket: key")?;
    packet.fill(0);
    end_at_once_after_a_panic();
    let predecessor = if args.takeover { Some(arena(control)?) } else { None };
    let config = args.config(id, key, "mount")?;
    let runtime = serving_runtime(CLIENT_THREADS)?;
    let result = runtime.block_on(run_mount(args, config, predecessor, control));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// A panic of the main thread would drop everything on its way out, and with it what is in the arena for a successor.
fn end_at_once_after_a_panic() {
    let main = std::thread::current().id();
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().id() == main {
            std::process::abort();
        }
    }));
}

/// The memory of a dead predecessor.
fn arena(control: &UnixStream) -> Result<OwnedFd, Failure> {
    let mut packet = [0; ARENA_PACKET.len() + 1];
    let (length, mut descriptors) =
        descriptors::receive(control, &mut packet).context("control socket: arena")?;
    match descriptors.pop() {
        Some(arena) if packet[..length] == *ARENA_PACKET && descriptors.is_empty() => Ok(arena),
        _ => Err(Failure::failed("control socket: --takeover needs the arena of the client that died")),
    }
}

async fn run_mount(
    args: &MountArgs,
    config: crate::mount::MountConfig,
    predecessor: Option<OwnedFd>,
    control: &mut UnixStream,
) -> Outcome {
    let asked_to_end = signals::listen()?;
    tokio::pin!(asked_to_end);
    let name = config.name.clone();
    let connected = tokio::select! {
        signal = &mut asked_to_end => return Err(Failure::failed(format_args!(
            "{signal} before the session was opened"))),
        connected = ConnectedClient::connect(config, predecessor) => connected?,
    };
    let bundle = match exchange(&connected, control, &mut asked_to_end).await {
        Ok(bundle) => bundle,
        Err(failure) => {
            connected.give_up().await;
            return Err(failure);
        }
    };
    let mounted = Arc::new(connected.serve(bundle).await?);
    serve_http(args, &mounted).await?;
    control.write_all(b"serving").context("control socket")?;
    tracing::info!(name, "serving");
    let controller = watch(control.try_clone().context("control socket")?, Arc::clone(&mounted));
    tokio::select! {
        signal = &mut asked_to_end => tracing::info!(signal, "stopping"),
        () = mounted.ended() => tracing::info!("the filesystem was unmounted, stopping"),
        () = controller => tracing::warn!("the controlling process has ended, stopping"),
    }
    // The thread that watches the socket ends with it.
    let _ = control.shutdown(Shutdown::Read);
    end(&mounted).await
}

/// Says that there is a session, and waits for the mount.
async fn exchange(
    connected: &ConnectedClient,
    control: &mut UnixStream,
    asked_to_end: &mut (impl Future<Output = &'static str> + Unpin),
) -> Result<Bundle, Failure> {
    descriptors::send(control, b"connected", &[connected.arena()]).context("control socket")?;
    let socket = control.try_clone().context("control socket")?;
    let received = atoll_blocking::spawn(move || Bundle::receive(&socket));
    tokio::select! {
        signal = asked_to_end => {
            let _ = control.shutdown(Shutdown::Read);
            Err(Failure::failed(format_args!("{signal} before the mount existed")))
        }
        received = received => received.context("control socket")?.context("no mount was received"),
    }
}

/// What the controller asks for while the mount is served.
enum Wish {
    Flush,
    Ping,
}

/// Does what the controller asks for. Completes when the other end of the socket is closed.
async fn watch(control: UnixStream, mounted: Arc<Mounted>) {
    let control = Arc::new(control);
    // A thread of its own, since nothing else reads there.
    let (asked, mut wait) = tokio::sync::mpsc::channel(8);
    let reading = Arc::clone(&control);
    std::thread::spawn(move || {
        let mut packet = [0; FLUSH_PACKET.len() + 1];
        while let Ok(length) = (&*reading).read(&mut packet) {
            let wish = match &packet[..length] {
                FLUSH_PACKET => Wish::Flush,
                PING_PACKET => Wish::Ping,
                [] => break,
                // What a later controller may ask for isn't answered.
                _ => continue,
            };
            if asked.blocking_send(wish).is_err() {
                break;
            }
        }
    });
    // A controller that is gone doesn't matter for answers: that ends this loop.
    while let Some(wish) = wait.recv().await {
        match wish {
            Wish::Ping => drop((&*control).write_all(b"pong")),
            // Beside the others, since the cluster may be away.
            Wish::Flush => {
                let (control, mounted) = (Arc::clone(&control), Arc::clone(&mounted));
                tokio::spawn(async move {
                    let answer = match mounted.flush().await {
                        Ok(()) => "flushed".to_owned(),
                        Err(failure) => format!("failed {} {failure}", failure.code as u8),
                    };
                    let _ = (&*control).write_all(answer.as_bytes());
                });
            }
        }
    }
}

async fn end(mounted: &Mounted) -> Outcome {
    match tokio::time::timeout(FLUSH_TIMEOUT, mounted.shutdown()).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(
            Code::Unreachable,
            format_args!(
                "buffered data that was not synced is lost: {} within {} s of writing it out",
                mounted.problem().unwrap_or_else(|| "the cluster did not accept it".to_owned()),
                FLUSH_TIMEOUT.as_secs()
            ),
        )),
    }
}
