//! The protocol between the mounter and the agent, over a socket that only root can reach.
//!
//! One request and one reply per connection. Each is two length-prefixed frames: JSON, which holds nothing secret and
//! may be logged, and the tokens as the kubelet wrote them, which may not.

use super::volume::Volume;
use crate::attest::cgroup::PodUid;
use crate::secret::SecretValue;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// The longest frame. A token has some 1,500 bytes; a pod has one per audience, and a node some hundred pods.
const FRAME_LIMIT: u32 = 4 << 20;

/// How long the agent may take: it may have to ask the API server.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A request to the agent.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Serve this volume, whose directory is ready. The pod's tokens come with it.
    Publish(Volume),
    /// Stop serving the volume with this id.
    Unpublish(String),
    /// Which of these pods does the API server no longer know?
    Departed(Vec<PodUid>),
    /// Which tokens do you hold? Sent by an agent that takes over from another.
    Tokens,
}

/// The agent's reply.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Reply {
    pub(crate) failure: Option<Failure>,
}

/// The agent's reply to [`Ask::Departed`]: those that are gone for certain.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Departed {
    pub(crate) pods: Vec<PodUid>,
}

/// Why the agent refuses or fails. The text goes to the kubelet, and so into an event of the pod.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) text: String,
}

/// What kind of failure.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    /// The pod is not what the kubelet says it is, or may not have a secret.
    Denied,
    /// An attribute of the volume is wrong.
    Invalid,
    /// There is no such secret.
    Missing,
    /// It may succeed later.
    Unavailable,
}

/// A JSON body, and the tokens that go with it.
pub(crate) struct Message<T> {
    pub(crate) body: T,
    pub(crate) tokens: SecretValue,
}

/// The agent as the mounter reaches it, by the path of its socket.
#[derive(Clone, Debug)]
pub(crate) struct ControlSocket {
    socket: PathBuf,
}

// === impl FailureKind ===

impl FailureKind {
    /// The outcome's name in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Missing => "missing",
            Self::Unavailable => "unavailable",
        }
    }
}

// === impl Failure ===

impl Failure {
    pub(crate) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(FailureKind::Unavailable, text)
    }
}

// === impl Message ===

impl<T> Message<T> {
    pub(crate) fn plain(body: T) -> Self {
        Self::with(body, Vec::new())
    }

    pub(crate) fn with(body: T, tokens: Vec<u8>) -> Self {
        Self {
            body,
            tokens: Zeroizing::new(tokens).into(),
        }
    }
}

impl<T: DeserializeOwned> Message<T> {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// If the other side hangs up or sends something else.
    pub(crate) async fn read(stream: &mut UnixStream) -> io::Result<Self> {
        let body = read_frame(stream).await?;
        let tokens = read_frame(stream).await?.into();
        let body = serde_json::from_slice(&body)?;
        Ok(Self { body, tokens })
    }
}

impl<T: Serialize> Message<T> {
    /// Writes the message.
    ///
    /// # Errors
    ///
    /// If the other side has gone.
    pub(crate) async fn write(&self, stream: &mut UnixStream) -> io::Result<()> {
        for frame in [&*serde_json::to_vec(&self.body)?, self.tokens.expose()] {
            let length = u32::try_from(frame.len()).ok();
            let length = length.filter(|length| *length <= FRAME_LIMIT);
            let length = length.ok_or(io::ErrorKind::InvalidInput)?;
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(frame).await?;
        }
        Ok(())
    }
}

async fn read_frame(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let length = stream.read_u32().await?;
    if length > FRAME_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // Allocated at full size: a buffer that grows leaves copies behind.
    let mut frame = Zeroizing::new(vec![0; length as usize]);
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

// === impl ControlSocket ===

impl ControlSocket {
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends the request and waits for the agent's consent.
    ///
    /// # Errors
    ///
    /// If the agent refuses, or cannot be reached now.
    pub(crate) async fn ask(&self, ask: Ask, tokens: Vec<u8>) -> Result<(), Failure> {
        let Reply { failure } = self.exchange(ask, tokens).await?;
        failure.map_or(Ok(()), Err)
    }

    /// Which of these pods the API server no longer knows. An agent that cannot tell names none.
    ///
    /// # Errors
    ///
    /// If the agent cannot be reached now, or does not understand the question.
    pub(crate) async fn departed(&self, pods: Vec<PodUid>) -> Result<Vec<PodUid>, Failure> {
        let Departed { pods } = self.exchange(Ask::Departed(pods), Vec::new()).await?;
        Ok(pods)
    }

    async fn exchange<R: DeserializeOwned>(&self, ask: Ask, tokens: Vec<u8>) -> Result<R, Failure> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            Message::with(ask, tokens).write(&mut stream).await?;
            Message::<R>::read(&mut stream).await
        };
        let away = |why: &dyn std::fmt::Display| {
            Failure::unavailable(format!(
                "the latchkey agent of this node does not answer ({why}); it is tried again"
            ))
        };
        match timeout(REPLY_TIMEOUT, exchange).await {
            Ok(Ok(reply)) => Ok(reply.body),
            Ok(Err(error)) => Err(away(&error)),
            Err(elapsed) => Err(away(&elapsed)),
        }
    }
}
