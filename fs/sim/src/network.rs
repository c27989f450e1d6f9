//! The network of a world: streams between nodes that take their time, stall, break and are cut.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use atoll_core::ids::SessionId;
use atoll_proto::Role;
use atoll_proto::transport::SimulatedNetwork;
use futures::FutureExt;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

/// Bytes that a stream holds on its way, in each direction.
const PIPE_BYTES: usize = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: usize = 64;
/// How long a piece is on its way.
const LATENCY: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));
/// And how long one in so many is, as if it was lost and sent again.
const SLOW_ONE_IN: u32 = 200;
const SLOW: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(700));
/// How long it takes to find out that nobody listens, and that nobody answers.
const REFUSED_AFTER: Duration = Duration::from_millis(1);
const UNREACHABLE_AFTER: Duration = Duration::from_secs(5);
/// The pauses after which a connection that didn't come through is tried again until then, as a kernel does (RFC 6298).
const TRIED_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// A node, by its address without the port.
pub type Name = String;

/// Tells the session that a client has now.
type SessionNow = Box<dyn Fn() -> Option<SessionId>>;

/// See the module.
pub struct Network {
    inner: RefCell<Inner>,
}

struct Inner {
    random: StdRng,
    listeners: HashMap<Name, Listening>,
    names: HashMap<Role, Name>,
    /// Clients that are there; their streams end with this.
    clients: HashMap<Name, watch::Sender<bool>>,
    sessions: Vec<(Name, SessionNow)>,
    /// Changes each time the cuts do; streams look at it.
    cuts: watch::Sender<Vec<(Name, Name)>>,
}

impl Inner {
    fn name(&self, role: Role) -> Option<Name> {
        let known = self.names.get(&role).cloned();
        known.or_else(|| {
            let Role::Client(session) = role else { return None };
            self.sessions.iter().find(|(_, now)| now() == Some(session)).map(|(name, _)| name.clone())
        })
    }
}

struct Listening {
    streams: mpsc::Sender<DuplexStream>,
    /// The node's streams end with this.
    alive: watch::Sender<bool>,
}

/// The node behind an address, and the one that knows it by this address (see [`seen_by`]).
fn names_of(address: &str) -> (Name, Option<Name>) {
    let name = address.split(':').next().unwrap_or_default();
    match name.split_once('@') {
        Some((name, by)) => (name.to_owned(), Some(by.to_owned())),
        None => (name.to_owned(), None),
    }
}

/// The address of a node as one client is told it: a client without a session doesn't say who it is.
#[must_use]
pub fn seen_by(name: &str, client: &str) -> String {
    format!("{name}@{client}:1")
}

/// Whoever doesn't say who it is.
const UNKNOWN: &str = "?";

/// An empty name is everybody. Who isn't known could be any client.
fn is_cut(cuts: &[(Name, Name)], a: &str, b: &str) -> bool {
    let matches = |cut: &str, name: &str| {
        let client = name.split('x').next().unwrap_or_default();
        cut == name || cut == client || cut.is_empty() || (name == UNKNOWN && cut.starts_with('c'))
    };
    cuts.iter().any(|(from, to)| {
        let one = |x: &str, y: &str| matches(from, x) && matches(to, y);
        one(a, b) || one(b, a)
    })
}

impl Network {
    /// One whose delays come from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Rc<Network> {
        Rc::new(Network {
            inner: RefCell::new(Inner {
                random: StdRng::seed_from_u64(seed ^ 0x4e37),
                listeners: HashMap::new(),
                names: HashMap::new(),
                clients: HashMap::from([(UNKNOWN.to_owned(), watch::Sender::new(true))]),
                sessions: Vec::new(),
                cuts: watch::Sender::new(Vec::new()),
            }),
        })
    }

    /// Who says to be this is the node of this name.
    pub fn know(&self, role: Role, name: &str) {
        self.inner.borrow_mut().names.insert(role, name.to_owned());
    }

    /// Whoever says to be of the session that this tells is the client of this name.
    pub fn know_session(&self, name: &str, session: impl Fn() -> Option<SessionId> + 'static) {
        self.inner.borrow_mut().sessions.push((name.to_owned(), Box::new(session)));
    }

    /// The client of this name has no session any more.
    pub fn forget_session(&self, name: &str) {
        self.inner.borrow_mut().sessions.retain(|(known, _)| known != name);
    }

    /// Between the nodes of each pair nothing comes through from now on; an empty name is everybody.
    pub fn cut(&self, pairs: Vec<(Name, Name)>) {
        self.inner.borrow_mut().cuts.send_replace(pairs);
    }

    /// A client is there.
    pub fn begin(&self, name: &str) {
        self.inner.borrow_mut().clients.insert(name.to_owned(), watch::Sender::new(true));
    }

    /// A client is dead: its streams break, and it opens no others. The same goes for whoever doesn't say who it is: that
    /// may be this one, and a client that lives has addresses that tell.
    pub fn end(&self, name: &str) {
        let inner = self.inner.borrow();
        for alive in [name, UNKNOWN].iter().filter_map(|name| inner.clients.get(*name)) {
            alive.send_replace(false);
        }
    }

    /// The node is dead: nobody listens, and its streams break.
    pub fn kill(&self, name: &str) {
        if let Some(listening) = self.inner.borrow_mut().listeners.remove(name) {
            listening.alive.send_replace(false);
        }
    }
}

impl SimulatedNetwork for Network {
    fn dial(&self, from: Role, to: &str) -> BoxFuture<'static, io::Result<DuplexStream>> {
        let mut inner = self.inner.borrow_mut();
        let (to, by) = names_of(to);
        let from = inner.name(from).or(by).unwrap_or_else(|| UNKNOWN.to_owned());
        let seed = inner.random.random();
        let cuts = inner.cuts.subscribe();
        let ends_with = |name: &str| inner.listeners.get(name).map(|listening| listening.alive.subscribe());
        let (mine, theirs) = (ends_with(&from), ends_with(&to));
        let mine = mine.or_else(|| inner.clients.get(&from).map(watch::Sender::subscribe));
        if mine.as_ref().is_some_and(|alive| !*alive.borrow()) {
            return async { Err(io::ErrorKind::NetworkUnreachable.into()) }.boxed();
        }
        let (Some(listening), Some(theirs)) = (inner.listeners.get(&to), theirs) else {
            let cut = is_cut(&cuts.borrow(), &from, &to);
            let (after, error) = match cut {
                true => (UNREACHABLE_AFTER, io::ErrorKind::TimedOut),
                false => (REFUSED_AFTER, io::ErrorKind::ConnectionRefused),
            };
            return async move {
                tokio::time::sleep(after).await;
                Err(error.into())
            }
            .boxed();
        };
        let streams = listening.streams.clone();
        async move {
            for pause in TRIED_AGAIN_AFTER {
                if is_cut(&cuts.borrow(), &from, &to) {
                    tokio::time::sleep(pause).await;
                }
            }
            if is_cut(&cuts.borrow(), &from, &to) {
                tokio::time::sleep(UNREACHABLE_AFTER - TRIED_AGAIN_AFTER.into_iter().sum()).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (here, left) = tokio::io::duplex(PIPE_BYTES);
            let (right, there) = tokio::io::duplex(PIPE_BYTES);
            let mut random = StdRng::seed_from_u64(seed);
            tokio::time::sleep(random.random_range(LATENCY.0..LATENCY.1)).await;
            streams.send(there).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let (left_read, left_write) = tokio::io::split(left);
            let (right_read, right_write) = tokio::io::split(right);
            let second = StdRng::seed_from_u64(random.random());
            let link = Link { from, to, cuts, mine, theirs };
            tokio::spawn(async move {
                let there = carry(left_read, right_write, random, link.clone());
                let back = carry(right_read, left_write, second, link.clone());
                // Both ends with either: a connection is broken as a whole.
                tokio::select! {
                    biased;
                    () = link.broken() => {}
                    () = there => {}
                    () = back => {}
                }
            });
            Ok(here)
        }
        .boxed()
    }

    fn listen(&self, at: &str) -> mpsc::Receiver<DuplexStream> {
        let (streams, listener) = mpsc::channel(BACKLOG);
        let listening = Listening { streams, alive: watch::Sender::new(true) };
        self.inner.borrow_mut().listeners.insert(names_of(at).0, listening);
        listener
    }
}

/// What a stream is subject to.
#[derive(Clone)]
struct Link {
    from: Name,
    to: Name,
    cuts: watch::Receiver<Vec<(Name, Name)>>,
    mine: Option<watch::Receiver<bool>>,
    theirs: watch::Receiver<bool>,
}

impl Link {
    /// Waits until one end is dead.
    async fn broken(&self) {
        let dead = |alive: Option<watch::Receiver<bool>>| async move {
            match alive {
                // An end that is closed is dead, too.
                Some(mut alive) => drop(alive.wait_for(|alive| !alive).await),
                None => std::future::pending().await,
            }
        };
        let (mine, theirs) = (self.mine.clone(), Some(self.theirs.clone()));
        tokio::select! {
            biased;
            () = dead(mine) => {}
            () = dead(theirs) => {}
        }
    }

    /// Waits while it is cut.
    async fn passes(&mut self) {
        let (from, to) = (self.from.clone(), self.to.clone());
        // The network outlives its streams.
        let _ = self.cuts.wait_for(|cuts| !is_cut(cuts, &from, &to)).await;
    }
}

async fn carry(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut random: StdRng,
    mut link: Link,
) {
    let mut piece = vec![0; 16 << 10];
    loop {
        let length = match from.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        let delay = if random.random_ratio(1, SLOW_ONE_IN) { SLOW } else { LATENCY };
        tokio::time::sleep(random.random_range(delay.0..delay.1)).await;
        link.passes().await;
        if to.write_all(&piece[..length]).await.is_err() {
            break;
        }
    }
}
