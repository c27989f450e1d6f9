//! Where connections come from: TCP, Unix sockets, and pipes inside one process.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;

use futures::future::BoxFuture;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::handshake::Role;
use crate::secure::{BoxRead, BoxWrite};

/// Bytes that an in-process pipe holds in each direction.
const MEMORY_PIPE_BYTES: usize = 256 << 10;
/// Connections to an in-process listener that wait to be accepted.
const MEMORY_BACKLOG_MAX: usize = 64;

/// What stands in for TCP in a simulation: everything in one thread, without sockets.
pub trait SimulatedNetwork {
    /// Opens a stream from who says to be `from` to the server that listens at `to`.
    fn dial(&self, from: Role, to: &str) -> BoxFuture<'static, io::Result<DuplexStream>>;

    /// Begins to listen at `at`, in the place of who listened there.
    fn listen(&self, at: &str) -> mpsc::Receiver<DuplexStream>;
}

thread_local! {
    static NETWORK: RefCell<Option<Rc<dyn SimulatedNetwork>>> = const { RefCell::new(None) };
}

/// Has this thread use `network` instead of TCP, from now on; `None`: TCP again.
pub fn simulate_network(network: Option<Rc<dyn SimulatedNetwork>>) {
    NETWORK.with(|current| *current.borrow_mut() = network);
}

fn simulated_network() -> Option<Rc<dyn SimulatedNetwork>> {
    NETWORK.with(|current| current.borrow().clone())
}

/// Where a server can be reached.
#[derive(Debug, Clone)]
pub enum Address {
    /// `host:port`; the name is looked up anew for every attempt, since pods change their addresses.
    Tcp(String),
    /// A Unix socket.
    Unix(PathBuf),
    /// A listener in this process, made by [`memory`].
    Memory(MemoryAddress),
}

/// The dialling end of [`memory`].
#[derive(Debug, Clone)]
pub struct MemoryAddress {
    name: String,
    streams: mpsc::Sender<DuplexStream>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host_and_port) => f.write_str(host_and_port),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Memory(memory) => write!(f, "memory:{}", memory.name),
        }
    }
}

/// A text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: expected host:port or unix:/path")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(AddressError(text.into()))
            } else {
                Ok(Address::Unix(path.into()))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError(text.into()))?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(AddressError(text.into()));
        }
        Ok(Address::Tcp(text.into()))
    }
}

impl Address {
    /// As [`dial`](Self::dial), for who says to be `from`.
    pub(crate) async fn dial_from(&self, from: Role) -> io::Result<Stream> {
        let simulated = match self {
            Address::Tcp(host_and_port) => {
                simulated_network().map(|network| network.dial(from, host_and_port))
            }
            _ => None,
        };
        match simulated {
            Some(dialling) => Ok(Stream::memory(dialling.await?, self.to_string())),
            None => self.dial().await,
        }
    }

    /// Opens a stream. A name with several addresses is tried in order.
    pub async fn dial(&self) -> io::Result<Stream> {
        match self {
            Address::Tcp(host_and_port) => Stream::tcp(TcpStream::connect(host_and_port).await?),
            Address::Unix(path) => Ok(Stream::unix(UnixStream::connect(path).await?, self.to_string())),
            Address::Memory(memory) => {
                let (here, there) = tokio::io::duplex(MEMORY_PIPE_BYTES);
                memory
                    .streams
                    .send(there)
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok(Stream::memory(here, self.to_string()))
            }
        }
    }
}

/// An open stream, its two directions apart.
pub struct Stream {
    /// What the peer sends.
    pub read: BoxRead,
    /// What the peer gets.
    pub write: BoxWrite,
    /// Where the peer is, for messages to humans.
    pub remote: String,
}

impl Stream {
    /// A TCP connection, with the delay of small segments turned off.
    pub fn tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        let remote = stream.peer_addr()?.to_string();
        let (read, write) = stream.into_split();
        Ok(Stream { read: Box::new(read), write: Box::new(write), remote })
    }

    fn unix(stream: UnixStream, remote: String) -> Stream {
        let (read, write) = stream.into_split();
        Stream { read: Box::new(read), write: Box::new(write), remote }
    }

    /// One end of an in-process pipe.
    pub fn memory(stream: DuplexStream, remote: String) -> Stream {
        let (read, write) = tokio::io::split(stream);
        Stream { read: Box::new(read), write: Box::new(write), remote }
    }
}

/// An address can't be listened at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody listens there.
    #[error("{address} is in use: another process listens there (is this server running already?)")]
    InUse {
        /// The address.
        address: String,
    },
    /// The address isn't this machine's, or the path's folder doesn't exist.
    #[error("{address} is not an address of this machine: {source}")]
    NotHere {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// An in-process address is made together with its listener, by [`memory`].
    #[error("{address} can't be bound again")]
    Memory {
        /// The address.
        address: String,
    },
    /// Anything else.
    #[error("can't listen at {address}: {source}")]
    Other {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

impl BindError {
    fn new(address: &Address, source: io::Error) -> BindError {
        let address = address.to_string();
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::NotFound => {
                BindError::NotHere { address, source }
            }
            _ => BindError::Other { address, source },
        }
    }
}

/// Where a server waits for connections.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a Unix socket, whose file is removed in the end.
    Unix(UnixListener, SocketFile),
    /// In this process.
    Memory(MemoryListener),
}

/// A socket's file, removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the socket's file can't be removed");
        }
    }
}

/// The accepting end of [`memory`].
#[derive(Debug)]
pub struct MemoryListener {
    address: String,
    streams: mpsc::Receiver<DuplexStream>,
}

/// A listener in this process and its address, for tests and for processes that are several things at once.
pub fn memory(name: impl Into<String>) -> (Listener, Address) {
    let name = name.into();
    let (dial, streams) = mpsc::channel(MEMORY_BACKLOG_MAX);
    let listener = MemoryListener { address: format!("memory:{name}"), streams };
    (Listener::Memory(listener), Address::Memory(MemoryAddress { name, streams: dial }))
}

impl Listener {
    /// Listens at `address`. Port 0 means any free one: see [`Listener::local_address`]. A Unix socket's file
    /// that nobody listens at is replaced.
    pub async fn bind(address: &Address) -> Result<Listener, BindError> {
        match address {
            Address::Tcp(host_and_port) => {
                if let Some(network) = simulated_network() {
                    let streams = network.listen(host_and_port);
                    return Ok(Listener::Memory(MemoryListener { address: host_and_port.clone(), streams }));
                }
                let bound = TcpListener::bind(host_and_port).await;
                bound.map(Listener::Tcp).map_err(|source| BindError::new(address, source))
            }
            Address::Unix(path) => bind_unix(address, path).await,
            Address::Memory(_) => Err(BindError::Memory { address: address.to_string() }),
        }
    }

    /// Where this listens, with the port that the system chose.
    pub fn local_address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|error| format!("unknown: {error}"), |address| address.to_string()),
            Listener::Unix(_, file) => format!("unix:{}", file.0.display()),
            Listener::Memory(memory) => memory.address.clone(),
        }
    }

    /// The next connection. An error is about that connection or about the process's resources; the listener
    /// goes on.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => Stream::tcp(listener.accept().await?.0),
            Listener::Unix(listener, file) => {
                let (stream, _) = listener.accept().await?;
                Ok(Stream::unix(stream, format!("peer at unix:{}", file.0.display())))
            }
            Listener::Memory(memory) => match memory.streams.recv().await {
                Some(stream) => Ok(Stream::memory(stream, format!("peer at {}", memory.address))),
                // Every address is gone, so nobody can come any more.
                None => std::future::pending().await,
            },
        }
    }
}

async fn bind_unix(address: &Address, path: &Path) -> Result<Listener, BindError> {
    let first = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let left_over = match UnixStream::connect(path).await {
                Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
                Ok(_) => false,
            };
            if left_over {
                // A process that was killed leaves its socket's file; the next one takes the place.
                std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
            } else {
                Err(error)
            }
        }
        other => other,
    };
    match first {
        Ok(listener) => Ok(Listener::Unix(listener, SocketFile(path.to_path_buf()))),
        Err(source) => Err(BindError::new(address, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for text in ["host:80", "[::1]:7000", "a.b.c:65535", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
        }
        for text in ["", "host", ":80", "host:", "host:70000", "unix:"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).await.expect("a free port");
        let taken = first.local_address();
        let error = Listener::bind(&Address::Tcp(taken.clone())).await.expect_err("it is taken");
        assert!(matches!(&error, BindError::InUse { address } if *address == taken), "{error}");
        assert!(error.to_string().contains(&taken));
    }

    #[tokio::test]
    async fn a_dead_sockets_file_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        let address = Address::Unix(path.clone());
        let living = Listener::bind(&address).await.expect("replaces the file");
        let error = Listener::bind(&address).await.expect_err("somebody listens");
        assert!(matches!(error, BindError::InUse { .. }), "{error}");
        drop(living);
        assert!(!path.exists());
    }
}
