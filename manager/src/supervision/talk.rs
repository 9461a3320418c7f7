//! The protocol for requests to a supervisor: one request for each connection, and one line of JSON
//! in each direction. Only processes of one user may use it, through a socket in the sandbox's
//! directory.

use super::{
    SOCKET, SuperviseError,
    publish::{HostEnd, MAX_PORTS, Publish, PublishedPort},
};
use crate::{home::directory::SandboxDirectory, network::record::NetworkRecord};
use sandboxvm_protocol::{
    agent::port::PortNumber,
    egress::{SavedPin, TrafficCounters},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// Maximum length of a line in bytes: the settings of a network, or all its pins. [`MAX_PORTS`] paths
/// are shorter.
const MAX_LINE: u64 = 1 << 20;
const _: () = assert!(MAX_PORTS << 10 < MAX_LINE as usize);
/// Maximum time until the supervisor answers. It answers from its event loop in well under a
/// millisecond; the limit allows for a host that swaps.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Publish(Publish),
    /// All ends of a port, or only `host`.
    Unpublish {
        guest: PortNumber,
        host: Option<HostEnd>,
    },
    Network(NetworkRequest),
}

/// A request about the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NetworkRequest {
    /// Answered by [`Reply::Network`].
    Report,
    /// Records these settings and puts them in force.
    Set(Box<NetworkRecord>),
    /// Answered by [`Reply::Pins`]. If the machine is about to be replaced, its network is not started
    /// again before [`Self::Reattach`].
    Pins { is_replaced: bool },
    /// Connects the network to the machine that replaced the one before.
    Reattach,
}

/// The state of a sandbox's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// True while the network card has a link.
    pub attached: bool,
    /// Why it has none.
    pub problem: Option<String>,
    /// How often its processes ended by themselves and were replaced, since the supervisor began.
    pub restarts: u64,
    /// Number of lines that are not in the audit log since the supervisor began, because the guest has
    /// used its part of it.
    #[serde(default)]
    pub unlogged: u64,
    /// What passed since its processes began.
    pub counters: Option<TrafficCounters>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// The ports that the request was about.
    Done(Vec<PublishedPort>),
    Failed(String),
    Network(NetworkReport),
    Pins(Vec<SavedPin>),
}

/// Sends a request. If there is no answer, the error is an [`io::Error`]: the supervisor may be
/// about to end.
pub(super) async fn ask(directory: &SandboxDirectory, request: &Request) -> io::Result<Reply> {
    let answer = async {
        let mut stream = directory.connect(SOCKET).await.map_err(io::Error::other)?;
        say(&mut stream, request).await?;
        hear(&mut stream).await
    };
    timeout(ANSWER_WITHIN, answer).await?
}

pub(super) fn failed(error: &SuperviseError) -> Reply {
    Reply::Failed(error.to_string())
}

pub(super) async fn say(stream: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

pub(super) async fn hear<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
