//! The two rules for the lifetime of a sandbox, as they are stored and shown.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// The time to live of a sandbox, which runs from its start, whether or not a process runs in it or
/// it is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeToLive {
    /// The time to live.
    #[serde(rename = "after_ms", with = "milliseconds")]
    pub after: Duration,
    /// What happens when it is over.
    pub then: AtEnd,
}

/// How a sandbox ends when its time to live is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtEnd {
    /// It is stopped gracefully, and its files stay.
    Stop,
    /// It is stopped gracefully, and its files are removed.
    #[serde(rename = "rm")]
    Remove,
}

/// What happens to a sandbox that was not used for a time. A use is a connection from the host: to
/// a process that a client is attached to, to a published port, or for any command on the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleRule {
    /// The time without a use.
    #[serde(rename = "after_ms", with = "milliseconds")]
    pub after: Duration,
    /// What happens then.
    pub then: WhenIdle,
}

/// What an [`IdleRule`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenIdle {
    /// The vCPUs stop until the next use.
    Pause,
    /// The sandbox is stopped gracefully, and its files stay.
    Stop,
    /// The sandbox is stopped gracefully, and its files are removed.
    #[serde(rename = "rm")]
    Remove,
}

impl fmt::Display for AtEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Remove => "rm",
        })
    }
}

impl fmt::Display for WhenIdle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Stop => "stop",
            Self::Remove => "rm",
        })
    }
}

mod milliseconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_rules_have_stable_json() {
        let rule = IdleRule { after: Duration::from_secs(300), then: WhenIdle::Remove };
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(json, r#"{"after_ms":300000,"then":"rm"}"#);
        assert_eq!(serde_json::from_str::<IdleRule>(&json).unwrap(), rule);
        let ttl = TimeToLive { after: Duration::from_secs(1), then: AtEnd::Stop };
        assert_eq!(serde_json::to_string(&ttl).unwrap(), r#"{"after_ms":1000,"then":"stop"}"#);
    }
}
