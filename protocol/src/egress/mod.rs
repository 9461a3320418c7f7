//! The wires of a sandbox's network: its supervisor and the egress process ([`EgressRequest`],
//! [`EgressEvent`]), its supervisor and the dialer ([`DialerSetup`]), and the egress process and the
//! dialer ([`dial`]).
//!
//! Each is a `SOCK_SEQPACKET` Unix socket. One packet is one frame of [`crate::frame`] with a message
//! of at most [`MAX_MESSAGE`] bytes, and the descriptors that it names; packets between egress
//! process and dialer have a fixed size and no frame. The egress process handles what a guest sends,
//! so its supervisor and its dialer hold everything that it says for hostile.
//!
//! ```text
//! VMM <── Ethernet frames ──> egress process ──[DialRequest]──> dialer ──> the network
//!                                ^      └──[EgressEvent]──> supervisor ──> audit log
//!                                └───────[EgressRequest]───────┘ └──[DialerSetup]──> dialer
//! ```
//! Supervisor, egress process and dialer are of one build, apart from a bundle that is replaced while
//! a sandbox runs; so there is one version, and a process that finds another ends.

pub mod dial;
pub mod proxy;
pub mod records;
pub mod settings;

pub use dial::{Dial, DialAnswer, DialFailure, DialRequest, ResolverTransport};
pub use proxy::{ProxyLogin, ProxyProtocol, UpstreamProxy};
pub use records::{BlockedSecret, Decided, FlowEnd, FlowRecord, NameRecord, SavedPin, TrafficCounters, Transport};
pub use settings::{
    AuthorityKey, EgressLimits, HeaderRule, HeaderTemplate, HostName, NetworkSettings, Precedence, Reach, SecretValue,
    TrustAnchors,
};

use crate::{
    capped,
    frame::{Message, Wire},
    vmm::FdIndex,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The wire between the supervisor and the egress process, and between the supervisor and the dialer.
pub const WIRE: Wire = Wire { magic: *b"SE", version: 1, oldest: 1 };

/// Largest message in bytes. A packet must fit the send buffer of a Unix socket, which is 212,992
/// bytes by default.
pub const MAX_MESSAGE: usize = 160 * 1024;

/// Maximum number of pins that are handed to the egress process of a copy.
pub const MAX_SAVED_PINS: usize = 1024;

/// A request to the egress process. The first is [`Self::Begin`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EgressRequest {
    /// Begins to serve the guest. Answered by [`EgressEvent::Ready`].
    Begin(Box<EgressSetup>),
    /// Replaces the settings by these, immediately and as a whole. Flows that they do not allow are cut.
    /// Answered by [`EgressEvent::Configured`].
    Configure(Box<NetworkSettings>),
    /// Asks for the pins that are alive, for a copy. Answered by [`EgressEvent::Pins`].
    Pins,
    /// Asks for [`EgressEvent::Counters`].
    Counters,
}

/// What an egress process begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressSetup {
    /// Socket on which the guest's frames come and go.
    pub frames: FdIndex,
    /// Socket of its dialer.
    pub dialer: FdIndex,
    /// What the sandbox may reach.
    pub settings: NetworkSettings,
    /// Number of resolvers that the dialer knows ([`Dial::Resolver`]).
    pub resolvers: u8,
    /// Pins of the machine that this one is a copy of.
    #[serde(with = "capped::List::<MAX_SAVED_PINS>")]
    pub pins: Vec<SavedPin>,
    /// Whom it trusts where it ends TLS.
    pub trust: TrustAnchors,
}

/// What the egress process says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EgressEvent {
    /// It is confined and serves the guest.
    Ready,
    /// The answer to [`EgressRequest::Configure`]. After a failure everything is refused until valid
    /// settings come.
    Configured(Result<(), String>),
    /// The answer to [`EgressRequest::Pins`].
    Pins(#[serde(with = "capped::List::<MAX_SAVED_PINS>")] Vec<SavedPin>),
    /// The answer to [`EgressRequest::Counters`].
    Counters(TrafficCounters),
    /// A flow has ended, or was refused. Refusals that are alike and close to each other come as one,
    /// with their number.
    Flow(FlowRecord),
    /// A name was refused or could not be resolved.
    Name(NameRecord),
    /// A placeholder of a secret was found where it may not go.
    Blocked(BlockedSecret),
    /// Records were left out because there were too many.
    Omitted(u64),
}

/// What a dialer begins with; sent once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DialerRequest {
    /// Begins to dial. Answered by [`DialerEvent::Ready`].
    Begin(DialerSetup),
    /// Replaces the services of the host and the tenant's resolvers. Answered by
    /// [`DialerEvent::Ready`].
    Configure(DialerSettings),
}

/// What a dialer begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialerSetup {
    /// Socket on which [`DialRequest`]s come.
    pub requests: FdIndex,
    /// Networks that the operator opened although they are below the floor, each as `address/length`.
    #[serde(with = "capped::List::<MAX_LIST>")]
    pub opened: Vec<String>,
    /// The operator's resolvers. They may be below the floor: only names go to them.
    #[serde(with = "capped::List::<MAX_RESOLVERS>")]
    pub resolvers: Vec<SocketAddr>,
    /// The proxy that carries all connections but those to resolvers and to services of the host.
    /// Another one needs another dialer, so that no connection around it stays open.
    pub proxy: Option<UpstreamProxy>,
    /// What can change later.
    pub settings: DialerSettings,
}

/// The part of a dialer's settings that can change while it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DialerSettings {
    /// TCP ports on the host's loopback address that rules name.
    #[serde(with = "capped::List::<MAX_LIST>")]
    pub host_ports: Vec<u16>,
    /// The tenant's resolvers in place of the operator's. They are held to the floor.
    #[serde(with = "capped::List::<MAX_RESOLVERS>")]
    pub tenant_resolvers: Vec<IpAddr>,
}

/// What a dialer says to its supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DialerEvent {
    /// It is confined and dials.
    Ready,
}

/// Maximum length of a list of rules, networks or ports.
pub const MAX_LIST: usize = 1024;

/// Maximum number of resolvers.
pub const MAX_RESOLVERS: usize = 10;

impl Message for EgressRequest {}
impl Message for EgressEvent {}
impl Message for DialerRequest {}
impl Message for DialerEvent {}
