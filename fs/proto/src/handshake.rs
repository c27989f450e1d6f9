//! The first words of a connection: who is there, of which cluster, and does it know the cluster's key?
//!
//! ```text
//! client                                       server
//!   hello (in the clear)          ─────────▶
//!                                 ◀─────────   hello with a verdict (in the clear)
//!   Noise message 1 (psk, e)      ─────────▶
//!                                 ◀─────────   verdict, Noise message 2 (e, ee)
//!   first record: "confirm"       ─────────▶
//! ```
//!
//! A hello is [`MAGIC`], a u16 with the length of what follows, and fields of fixed size; later versions
//! append fields, and a reader ignores what it doesn't know. The hellos are in the clear so that a process
//! that reached the wrong cluster (addresses of pods are used again), the wrong server or another program
//! can say so; both are the Noise prologue, so nobody can have changed them unseen.
//!
//! The pattern is `NNpsk0`: whoever can speak it knows the cluster's 32-byte key. Message 1 could be a copy of
//! an older one; the record after it can't, so only that one makes the caller believed.
//!
//! After this either plain frames follow, or, where both agree on encryption, Noise records.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use atoll_core::ids::{ClusterId, MemberId, ServerId, SessionId};
use bytes::Buf;
use snow::{Builder, HandshakeState, StatelessTransportState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::secure::{BoxRead, BoxWrite, Sink, Source};
use crate::transport::Stream;
use crate::version::{FEATURE_LEVEL, ProtocolRange};

/// What every connection begins with, in both directions. The first byte is no ASCII and no TLS record type,
/// the line ending shows a peer that treats the stream as text.
pub const MAGIC: [u8; 8] = *b"\x89ATOLL\r\n";
/// How long a handshake may take: machines where everything starts at once are slow.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a hello after magic and length that this version writes.
const HELLO_BYTES: usize = 40;
/// The longest hello (without magic and length) that is read, in bytes.
const HELLO_BYTES_MAX: usize = 1024;
/// The longest handshake message of Noise that is read, in bytes.
const NOISE_BYTES_MAX: usize = 1024;
const NOISE_PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const CONFIRM: &[u8] = b"atoll confirm";
/// Precedes the server's Noise message.
const KEY_PROVEN: u8 = 0;
/// Sent instead of the server's Noise message when the caller's could not be opened.
const KEY_REFUSED: u8 = 1;
const NO_PROOF: HandshakeError = HandshakeError::Malformed("a message of the key proof can't be built");

/// The cluster's key: 32 bytes that all its members and clients know and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; 32]);

impl ClusterKey {
    /// From its bytes.
    pub fn new(bytes: [u8; 32]) -> ClusterKey {
        ClusterKey(bytes)
    }

    /// A new one, from the system's randomness.
    pub fn random() -> ClusterKey {
        ClusterKey(rand::random())
    }

    /// Reads the content of a key file or Secret: 32 raw bytes, or 64 hexadecimal digits (white space
    /// around them is ignored).
    pub fn parse(content: &[u8]) -> Result<ClusterKey, KeyError> {
        if let Ok(bytes) = <[u8; 32]>::try_from(content) {
            return Ok(ClusterKey(bytes));
        }
        let digits = content.trim_ascii();
        if digits.len() != 64 {
            return Err(KeyError { bytes: content.len() });
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16).ok_or(KeyError { bytes: content.len() });
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(ClusterKey(key))
    }

    /// As 64 hexadecimal digits, to be written to a Secret.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(…)")
    }
}

/// A key can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cluster key has 32 bytes or 64 hexadecimal digits, this has neither ({bytes} bytes)")]
pub struct KeyError {
    /// The length of what was given.
    pub bytes: usize,
}

/// Who a process is within its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A metadata server.
    Metadata(MemberId),
    /// A storage server.
    Storage(ServerId),
    /// A mounted client; session 0 when it has none yet.
    Client(SessionId),
    /// An operator or an administrator's tool.
    Admin,
}

impl Role {
    fn to_wire(self) -> (u8, u64) {
        match self {
            Role::Metadata(id) => (1, id.0),
            Role::Storage(id) => (2, id.0),
            Role::Client(id) => (3, id.0),
            Role::Admin => (4, 0),
        }
    }

    fn from_wire(role: u8, id: u64) -> Option<Role> {
        Some(match role {
            1 => Role::Metadata(MemberId(id)),
            2 => Role::Storage(ServerId(id)),
            3 => Role::Client(SessionId(id)),
            4 => Role::Admin,
            _ => return None,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Metadata(id) => write!(f, "metadata server {id}"),
            Role::Storage(id) => write!(f, "storage server {id}"),
            Role::Client(id) => write!(f, "client session {id}"),
            Role::Admin => f.write_str("administrator"),
        }
    }
}

/// Whether what follows the handshake is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// Never: a peer that requires it is refused.
    Off,
    /// Only if the peer requires it. With this a cluster can be moved from one policy to the other without
    /// a moment in which its members refuse each other.
    #[default]
    Accepted,
    /// Always: a peer that has it off is refused.
    Required,
}

impl Encryption {
    fn from_wire(value: u8) -> Option<Encryption> {
        Some(match value {
            0 => Encryption::Off,
            1 => Encryption::Accepted,
            2 => Encryption::Required,
            _ => return None,
        })
    }

    /// What two peers do; `None` when they can't agree.
    pub fn agree(self, other: Encryption) -> Option<bool> {
        match (self, other) {
            (Encryption::Required, Encryption::Off) | (Encryption::Off, Encryption::Required) => None,
            (a, b) => Some(a == Encryption::Required || b == Encryption::Required),
        }
    }
}

/// What a process says about itself on every connection, and the key that it proves it with.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Who it is.
    pub role: Role,
    /// The cluster's key.
    pub key: ClusterKey,
    /// Its policy.
    pub encryption: Encryption,
}

/// What a handshake found out about the peer and agreed with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Who it says it is. It knows the cluster's key, so it is one of us; the id is its word.
    pub role: Role,
    /// Where it is, for messages to humans.
    pub address: String,
    /// The protocol version that is spoken.
    pub protocol: u16,
    /// The highest feature level that the peer knows.
    pub feature_level: u32,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
}

/// A connection couldn't be agreed upon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The stream failed or ended.
    #[error("the connection failed during the handshake: {0}")]
    Io(#[from] io::Error),
    /// It took longer than [`HANDSHAKE_DEADLINE`].
    #[error("the peer did not finish the handshake within {} s", .0.as_secs())]
    Deadline(Duration),
    /// Something else answers or calls there.
    #[error("the peer doesn't speak Atoll's protocol (it began with {began:02x?}): is this the right port?")]
    NotAtoll {
        /// Its first bytes.
        began: Vec<u8>,
    },
    /// A hello has contents that make no sense.
    #[error("the peer's handshake is invalid: {0}")]
    Malformed(&'static str),
    /// The peer is too old or too new.
    #[error(
        "the peer speaks protocol versions {theirs}, this process {ours}: upgrade the older one (its feature level is {theirs_level})"
    )]
    Protocol {
        /// What we speak.
        ours: ProtocolRange,
        /// What it speaks.
        theirs: ProtocolRange,
        /// The feature level that it knows.
        theirs_level: u32,
    },
    /// The peer belongs to another cluster.
    #[error("cluster {there} answers here, not {asked}: the address belongs to another volume now")]
    WrongCluster {
        /// The caller's.
        asked: ClusterId,
        /// The one that was reached.
        there: ClusterId,
    },
    /// The peer is another member than the one that was asked for.
    #[error("{there} answers here, not {asked}: the address belongs to another member now")]
    WrongPeer {
        /// Who was wanted.
        asked: Role,
        /// Who answered.
        there: Role,
    },
    /// The two have different keys.
    #[error(
        "the cluster keys differ: this process and its peer both claim to belong to cluster {cluster}, but \
         have different keys; compare the key file or Secret of each with the cluster's own"
    )]
    WrongKey {
        /// The cluster.
        cluster: ClusterId,
    },
    /// The policies contradict each other.
    #[error("encryption is {ours:?} here and {theirs:?} at the peer: set the same policy on both")]
    Encryption {
        /// Our policy.
        ours: Encryption,
        /// The peer's.
        theirs: Encryption,
    },
    /// The server has as many connections as it takes.
    #[error("the server has reached its limit of connections: try again later")]
    Busy,
}

/// What a hello says about the other's hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Verdict {
    Proceed = 0,
    WrongCluster = 1,
    Protocol = 2,
    Encryption = 3,
    Busy = 4,
}

impl Verdict {
    fn from_wire(value: u8) -> Option<Verdict> {
        Some(match value {
            0 => Verdict::Proceed,
            1 => Verdict::WrongCluster,
            2 => Verdict::Protocol,
            3 => Verdict::Encryption,
            4 => Verdict::Busy,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Hello {
    protocols: ProtocolRange,
    feature_level: u32,
    cluster: ClusterId,
    role: Role,
    encryption: Encryption,
    verdict: Verdict,
}

impl Hello {
    fn ours(identity: &Identity, verdict: Verdict) -> Hello {
        Hello {
            protocols: ProtocolRange::OURS,
            feature_level: FEATURE_LEVEL,
            cluster: identity.cluster,
            role: identity.role,
            encryption: identity.encryption,
            verdict,
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        let (role, id) = self.role.to_wire();
        let mut bytes = Vec::with_capacity(MAGIC.len() + 2 + HELLO_BYTES);
        bytes.extend(MAGIC);
        bytes.extend((HELLO_BYTES as u16).to_le_bytes());
        bytes.extend(self.protocols.min.to_le_bytes());
        bytes.extend(self.protocols.max.to_le_bytes());
        bytes.extend(self.feature_level.to_le_bytes());
        bytes.extend(self.cluster.0.to_le_bytes());
        bytes.extend([role, self.encryption as u8, self.verdict as u8, 0]);
        bytes.extend(id.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    /// Reads the fields after magic and length.
    fn parse(mut fields: &[u8]) -> Result<Hello, HandshakeError> {
        if fields.len() < HELLO_BYTES {
            return Err(HandshakeError::Malformed("its hello is too short"));
        }
        let protocols = ProtocolRange { min: fields.get_u16_le(), max: fields.get_u16_le() };
        let feature_level = fields.get_u32_le();
        let cluster = ClusterId(fields.get_u128_le());
        let (role, encryption, verdict, _) =
            (fields.get_u8(), fields.get_u8(), fields.get_u8(), fields.get_u8());
        let id = fields.get_u64_le();
        if protocols.agree(ProtocolRange::OURS).is_none() {
            // What the other fields mean is not for us to say.
            return Err(HandshakeError::Protocol {
                ours: ProtocolRange::OURS,
                theirs: protocols,
                theirs_level: feature_level,
            });
        }
        Ok(Hello {
            protocols,
            feature_level,
            cluster,
            role: Role::from_wire(role, id).ok_or(HandshakeError::Malformed("it has an unknown role"))?,
            encryption: Encryption::from_wire(encryption)
                .ok_or(HandshakeError::Malformed("it has an unknown encryption policy"))?,
            verdict: Verdict::from_wire(verdict)
                .ok_or(HandshakeError::Malformed("it has an unknown verdict"))?,
        })
    }
}

/// Reads a hello; also returns its bytes, for the prologue.
async fn read_hello(read: &mut BoxRead) -> Result<(Vec<u8>, Result<Hello, HandshakeError>), HandshakeError> {
    let mut bytes = vec![0; MAGIC.len()];
    let mut have = 0;
    while have < bytes.len() {
        let now = read.read(&mut bytes[have..]).await?;
        if now == 0 && have == 0 {
            return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        have += now;
        if now == 0 || bytes[..have] != MAGIC[..have] {
            bytes.truncate(have);
            return Err(HandshakeError::NotAtoll { began: bytes });
        }
    }
    let length = usize::from(read.read_u16_le().await?);
    if length > HELLO_BYTES_MAX {
        return Err(HandshakeError::Malformed("its hello is too long"));
    }
    bytes.extend((length as u16).to_le_bytes());
    let start = bytes.len();
    bytes.resize(start + length, 0);
    read.read_exact(&mut bytes[start..]).await?;
    let hello = Hello::parse(&bytes[start..]);
    Ok((bytes, hello))
}

async fn write_noise(write: &mut BoxWrite, before: &[u8], message: &[u8]) -> io::Result<()> {
    let mut bytes = before.to_vec();
    bytes.extend((message.len() as u16).to_le_bytes());
    bytes.extend(message);
    write.write_all(&bytes).await?;
    write.flush().await
}

async fn read_noise(read: &mut BoxRead) -> Result<Vec<u8>, HandshakeError> {
    let length = usize::from(read.read_u16_le().await?);
    if length > NOISE_BYTES_MAX {
        return Err(HandshakeError::Malformed("a message of its key proof is too long"));
    }
    let mut message = vec![0; length];
    read.read_exact(&mut message).await?;
    Ok(message)
}

fn noise(identity: &Identity, hellos: [&[u8]; 2], initiator: bool) -> Result<HandshakeState, HandshakeError> {
    let prologue = hellos.concat();
    let build = || {
        let builder = Builder::new(NOISE_PATTERN.parse()?).prologue(&prologue)?.psk(0, &identity.key.0)?;
        if initiator { builder.build_initiator() } else { builder.build_responder() }
    };
    build().map_err(|_| HandshakeError::Malformed("the key proof can't be set up"))
}

/// Turns the stream into the two halves of a connection. `records` are the numbers of the first record to
/// read and to write.
fn finish(
    stream: Stream,
    cipher: StatelessTransportState,
    theirs: &Hello,
    encrypted: bool,
    records: (u64, u64),
) -> Result<Established, HandshakeError> {
    let protocol = theirs.protocols.agree(ProtocolRange::OURS);
    let remote = Remote {
        role: theirs.role,
        address: stream.remote,
        protocol: protocol.ok_or(HandshakeError::Malformed("no common protocol version"))?,
        feature_level: theirs.feature_level,
        encrypted,
    };
    let (source, sink) = if encrypted {
        let cipher = Arc::new(cipher);
        (
            Source::sealed(stream.read, cipher.clone(), records.0),
            Sink::sealed(stream.write, cipher, records.1),
        )
    } else {
        (Source::plain(stream.read), Sink::plain(stream.write))
    };
    Ok(Established { source, sink, remote })
}

/// A connection whose ends believe each other.
pub struct Established {
    /// What the peer sends.
    pub source: Source,
    /// What the peer gets.
    pub sink: Sink,
    /// Who the peer is.
    pub remote: Remote,
}

/// The caller's part, within [`HANDSHAKE_DEADLINE`]. `expect` is who must answer.
pub async fn connect(
    stream: Stream,
    identity: &Identity,
    expect: Option<Role>,
) -> Result<Established, HandshakeError> {
    let agreed = tokio::time::timeout(HANDSHAKE_DEADLINE, connect_inner(stream, identity, expect)).await;
    agreed.map_err(|_| HandshakeError::Deadline(HANDSHAKE_DEADLINE))?
}

async fn connect_inner(
    mut stream: Stream,
    identity: &Identity,
    expect: Option<Role>,
) -> Result<Established, HandshakeError> {
    let ours = Hello::ours(identity, Verdict::Proceed).to_bytes();
    stream.write.write_all(&ours).await?;
    stream.write.flush().await?;
    let (their_bytes, theirs) = read_hello(&mut stream.read).await?;
    let theirs = theirs?;
    let encrypted = judge_server(identity, expect, &theirs)?;

    let wrong_key = || HandshakeError::WrongKey { cluster: identity.cluster };
    let mut state = noise(identity, [&ours, &their_bytes], true)?;
    let mut message = [0; NOISE_BYTES_MAX];
    let length = state.write_message(&[], &mut message).map_err(|_| NO_PROOF)?;
    write_noise(&mut stream.write, &[], &message[..length]).await?;
    if stream.read.read_u8().await? != KEY_PROVEN {
        return Err(wrong_key());
    }
    let answer = read_noise(&mut stream.read).await?;
    state.read_message(&answer, &mut message).map_err(|_| wrong_key())?;

    let cipher = state.into_stateless_transport_mode().map_err(|_| NO_PROOF)?;
    let length = cipher.write_message(0, CONFIRM, &mut message).map_err(|_| NO_PROOF)?;
    write_noise(&mut stream.write, &[], &message[..length]).await?;
    finish(stream, cipher, &theirs, encrypted, (0, 1))
}

/// What the caller makes of the server's hello: whether to encrypt.
fn judge_server(identity: &Identity, expect: Option<Role>, theirs: &Hello) -> Result<bool, HandshakeError> {
    if theirs.cluster != identity.cluster {
        return Err(HandshakeError::WrongCluster { asked: identity.cluster, there: theirs.cluster });
    }
    if let Some(asked) = expect.filter(|asked| *asked != theirs.role) {
        return Err(HandshakeError::WrongPeer { asked, there: theirs.role });
    }
    let disagree = HandshakeError::Encryption { ours: identity.encryption, theirs: theirs.encryption };
    match theirs.verdict {
        Verdict::Proceed => identity.encryption.agree(theirs.encryption).ok_or(disagree),
        Verdict::Busy => Err(HandshakeError::Busy),
        Verdict::Encryption => Err(disagree),
        Verdict::WrongCluster | Verdict::Protocol => {
            Err(HandshakeError::Malformed("it refuses this process without a reason that its hello shows"))
        }
    }
}

/// The server's part, within [`HANDSHAKE_DEADLINE`]. With `busy` the caller is told to come back later.
pub async fn accept(stream: Stream, identity: &Identity, busy: bool) -> Result<Established, HandshakeError> {
    let agreed = tokio::time::timeout(HANDSHAKE_DEADLINE, accept_inner(stream, identity, busy)).await;
    agreed.map_err(|_| HandshakeError::Deadline(HANDSHAKE_DEADLINE))?
}

async fn accept_inner(
    mut stream: Stream,
    identity: &Identity,
    busy: bool,
) -> Result<Established, HandshakeError> {
    let (their_bytes, theirs) = read_hello(&mut stream.read).await?;
    let judged =
        theirs.and_then(|theirs| judge_client(identity, busy, &theirs).map(|encrypted| (theirs, encrypted)));
    let verdict = match &judged {
        Ok(_) => Verdict::Proceed,
        Err(HandshakeError::WrongCluster { .. }) => Verdict::WrongCluster,
        Err(HandshakeError::Encryption { .. }) => Verdict::Encryption,
        Err(HandshakeError::Busy) => Verdict::Busy,
        Err(_) => Verdict::Protocol,
    };
    // The caller gets our hello in any case: it shows what is wrong.
    let ours = Hello::ours(identity, verdict).to_bytes();
    stream.write.write_all(&ours).await?;
    stream.write.flush().await?;
    let (theirs, encrypted) = judged?;

    let wrong_key = || HandshakeError::WrongKey { cluster: identity.cluster };
    let mut state = noise(identity, [&their_bytes, &ours], false)?;
    let mut message = [0; NOISE_BYTES_MAX];
    let opening = read_noise(&mut stream.read).await?;
    if state.read_message(&opening, &mut message).is_err() {
        stream.write.write_all(&[KEY_REFUSED]).await?;
        stream.write.flush().await?;
        return Err(wrong_key());
    }
    let length = state.write_message(&[], &mut message).map_err(|_| NO_PROOF)?;
    write_noise(&mut stream.write, &[KEY_PROVEN], &message[..length]).await?;

    let cipher = state.into_stateless_transport_mode().map_err(|_| NO_PROOF)?;
    let confirm = read_noise(&mut stream.read).await?;
    let length = cipher.read_message(0, &confirm, &mut message).map_err(|_| wrong_key())?;
    if &message[..length] != CONFIRM {
        return Err(HandshakeError::Malformed("its key proof ends with the wrong message"));
    }
    finish(stream, cipher, &theirs, encrypted, (1, 0))
}

/// What the server makes of the caller's hello: whether to encrypt.
fn judge_client(identity: &Identity, busy: bool, theirs: &Hello) -> Result<bool, HandshakeError> {
    if theirs.cluster != identity.cluster {
        return Err(HandshakeError::WrongCluster { asked: theirs.cluster, there: identity.cluster });
    }
    if busy {
        return Err(HandshakeError::Busy);
    }
    let disagree = HandshakeError::Encryption { ours: identity.encryption, theirs: theirs.encryption };
    identity.encryption.agree(theirs.encryption).ok_or(disagree)
}
