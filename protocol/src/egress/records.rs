//! What the egress process reports of a guest's traffic. Names in it are a guest's or a name
//! server's: a reader escapes them before they reach a terminal.

use super::settings::MAX_RULE;
use crate::capped;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decided {
    /// It was allowed, by this rule or by none.
    Allowed(Option<String>),
    /// It was refused.
    Refused {
        /// Why, in words.
        #[serde(with = "capped::Text::<MAX_RULE>")]
        reason: String,
        /// The rule that refused it.
        rule: Option<String>,
    },
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowEnd {
    /// Both sides closed it.
    Closed,
    /// One side reset it, or it failed.
    Reset,
    /// It was never established.
    NotEstablished,
    /// Nothing passed for too long.
    Idle,
    /// New settings do not allow it.
    Cut,
}

/// A flow that has ended, or was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Transport.
    pub transport: Transport,
    /// The name that decided, or that the flow showed.
    pub name: Option<String>,
    /// Address.
    pub address: IpAddr,
    /// Port; 0 for a protocol without ports.
    pub port: u16,
    /// The decision.
    pub decided: Decided,
    /// Bytes that the guest sent.
    pub bytes_out: u64,
    /// Bytes that it received.
    pub bytes_in: u64,
    /// Duration in milliseconds.
    pub millis: u64,
    /// How it ended.
    pub end: FlowEnd,
    /// Number of flows that this record is about; more than one for refusals that are alike.
    pub count: u32,
}

/// A question for a name that was refused or had no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The name.
    #[serde(with = "capped::Text::<MAX_RULE>")]
    pub name: String,
    /// Type of the question.
    pub question: u16,
    /// The decision.
    pub decided: Decided,
    /// Number of questions that this record is about.
    pub count: u32,
}

/// A placeholder of a secret that was found where it may not go. The request was not forwarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedSecret {
    /// Name of the secret.
    #[serde(with = "capped::Text::<MAX_RULE>")]
    pub secret: String,
    /// Host of the request.
    #[serde(with = "capped::Text::<MAX_RULE>")]
    pub host: String,
    /// Why.
    #[serde(with = "capped::Text::<MAX_RULE>")]
    pub reason: String,
}

/// An address that the guest got as the answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPin {
    /// The name that was asked for.
    #[serde(with = "capped::Line::<MAX_RULE>")]
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// Seconds until it expires.
    pub seconds: u32,
}

/// What passed since the egress process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficCounters {
    /// Flows that were allowed.
    pub flows: u64,
    /// Flows and questions that were refused.
    pub refused: u64,
    /// Flows that are open.
    pub open: u32,
    /// Questions that were answered.
    pub queries: u64,
    /// Bytes that the guest sent.
    pub bytes_out: u64,
    /// Bytes that it received.
    pub bytes_in: u64,
}
