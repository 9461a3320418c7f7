//! `supervision.json`: the services that a sandbox is to have, and which of them are in force. Only
//! the holder of the supervisor's lock may write it.

use super::{
    FILE, SuperviseError, SupervisionSpec,
    publish::{MAX_PORTS, PublishedPort},
};
use crate::{
    clock::Deadline,
    home::directory::SandboxDirectory,
    limits::lifetime::{IdleRule, TimeToLive},
};
use serde::{Deserialize, Serialize};

/// Maximum size in bytes: two rules and at most [`MAX_PORTS`] paths.
const MAX_FILE: u64 = MAX_PORTS as u64 * (4 << 10);
const FORMAT: u32 = 1;

/// The record of the services of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Supervision {
    format: u32,
    pub(crate) ttl: Option<RunningTime>,
    pub(crate) idle: Option<IdleRule>,
    pub(crate) ports: Vec<Port>,
    /// The network, if the sandbox has one: what it may reach is in a separate record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<Network>,
    /// True if the sandbox has live shares: its configuration says which.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shares: bool,
}

/// Whether the network ever worked: if it did, a failure does not end the other services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) was_attached: bool,
}

/// A time to live with its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningTime {
    #[serde(flatten)]
    pub(crate) rule: TimeToLive,
    pub(crate) deadline: Deadline,
}

/// A port, and whether a supervisor ever listened on it: then its place on the host belongs to the
/// sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    #[serde(flatten)]
    pub(crate) shown: PublishedPort,
    pub(crate) was_ours: bool,
}

impl Supervision {
    /// Returns the record of the services of `spec` and, if there is one, of a network.
    pub(crate) fn of(spec: &SupervisionSpec, has_network: bool) -> Result<Self, SuperviseError> {
        if spec.ports.len() > MAX_PORTS {
            return Err(SuperviseError::TooMany);
        }
        let ports = spec.ports.iter().map(|publish| Port {
            shown: PublishedPort { guest_port: publish.guest, host: publish.host.clone(), error: None },
            was_ours: false,
        });
        Ok(Self {
            format: FORMAT,
            ttl: spec.ttl.map(running).transpose()?,
            idle: spec.idle,
            ports: ports.collect(),
            network: has_network.then_some(Network { was_attached: false }),
            shares: false,
        })
    }

    /// Reads the record. Returns `None` for a sandbox without one.
    pub(crate) fn read(directory: &SandboxDirectory) -> Result<Option<Self>, SuperviseError> {
        let json = match directory.read(FILE, MAX_FILE) {
            Ok(json) => json,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |source| SuperviseError::Damaged { path: directory.path().join(FILE), source };
        serde_json::from_slice(&json).map(Some).map_err(damaged)
    }

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), SuperviseError> {
        let damaged = |source| SuperviseError::Damaged { path: directory.path().join(FILE), source };
        Ok(directory.replace(FILE, &serde_json::to_vec_pretty(self).map_err(damaged)?)?)
    }

    /// Returns true if there is nothing to maintain.
    pub(crate) fn is_empty(&self) -> bool {
        self.ttl.is_none() && self.idle.is_none() && self.ports.is_empty() && self.network.is_none() && !self.shares
    }

    /// Returns the record with a network.
    pub(crate) fn with_network(self) -> Self {
        Self { network: self.network.or(Some(Network { was_attached: false })), ..self }
    }

    /// Returns the record with shares, if the sandbox has them.
    pub(crate) fn with_shares(self, shares: bool) -> Self {
        Self { shares, ..self }
    }

    /// Starts the time to live again.
    pub(crate) fn restart_time(&mut self) -> Result<(), SuperviseError> {
        if let Some(ttl) = &mut self.ttl {
            *ttl = running(ttl.rule)?;
        }
        Ok(())
    }
}

fn running(rule: TimeToLive) -> Result<RunningTime, SuperviseError> {
    Ok(RunningTime { rule, deadline: Deadline::after(rule.after).map_err(SuperviseError::Clock)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::lifetime::{AtEnd, WhenIdle};
    use std::time::Duration;

    #[test]
    fn supervision_record_round_trips() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        assert!(Supervision::read(&directory).unwrap().is_none());
        let spec = SupervisionSpec {
            ttl: Some(TimeToLive { after: Duration::from_secs(60), then: AtEnd::Remove }),
            idle: Some(IdleRule { after: Duration::from_millis(1500), then: WhenIdle::Pause }),
            ports: vec!["8080:80".parse().unwrap(), "/tmp/x.sock:80".parse().unwrap()],
        };
        let supervision = Supervision::of(&spec, true).unwrap();
        supervision.write(&directory).unwrap();
        assert_eq!(Supervision::read(&directory).unwrap().unwrap(), supervision);
        let text = String::from_utf8(directory.read(FILE, 9999).unwrap()).unwrap();
        assert!(text.contains("\"host\": \"127.0.0.1:8080\"") && text.contains("\"then\": \"rm\""), "{text}");
        let many = SupervisionSpec { ports: vec!["80".parse().unwrap(); MAX_PORTS + 1], ..spec };
        assert!(matches!(Supervision::of(&many, false), Err(SuperviseError::TooMany)));
        directory.replace(FILE, b"{").unwrap();
        assert!(matches!(Supervision::read(&directory), Err(SuperviseError::Damaged { .. })));
    }
}
