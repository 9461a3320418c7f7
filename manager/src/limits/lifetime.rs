//! The two rules a sandbox can have, as they are written down and shown.

use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// How long a sandbox lives from its start, whether or not anything runs or it is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeToLive {
    /// How long.
    #[serde(rename = "after_ms", with = "milliseconds")]
    pub after: Duration,
    /// What happens then.
    pub then: AtEnd,
}

/// How a sandbox ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtEnd {
    /// In order; its files stay.
    Stop,
    /// In order, and its files go.
    #[serde(rename = "rm")]
    Remove,
}

/// What becomes of a sandbox that nobody used for so long. A use is a connection of the host's: a process that is attended,
/// a published port's connection, any command on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleRule {
    /// How long.
    #[serde(rename = "after_ms", with = "milliseconds")]
    pub after: Duration,
    /// What happens then.
    pub then: WhenIdle,
}

/// See [`IdleRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenIdle {
    /// Its vCPUs stop until the next use.
    Pause,
    /// It ends in order; its files stay.
    Stop,
    /// It ends in order, and its files go.
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
    fn the_json_is_pinned() {
        let rule = IdleRule { after: Duration::from_secs(300), then: WhenIdle::Remove };
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(json, r#"{"after_ms":300000,"then":"rm"}"#);
        assert_eq!(serde_json::from_str::<IdleRule>(&json).unwrap(), rule);
        let ttl = TimeToLive { after: Duration::from_secs(1), then: AtEnd::Stop };
        assert_eq!(serde_json::to_string(&ttl).unwrap(), r#"{"after_ms":1000,"then":"stop"}"#);
    }
}
