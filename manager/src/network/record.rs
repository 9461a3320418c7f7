//! `network.json`: what a sandbox may reach. Written before others can see the sandbox, and replaced
//! as a whole. A record that this build does not understand lets nothing pass, because no egress
//! process starts with it.
//!
//! `network.pins` is there for a moment: the pins that the next egress process starts with, for a
//! fork and for a machine that replaces another one.

use super::{
    operator::{NetworkOperator, Provided},
    spec::{NetworkSpec, NetworkSpecError},
};
use crate::{
    clock::Deadline,
    home::directory::{DirectoryError, SandboxDirectory},
};
use ipnet::IpNet;
use sandboxvm_protocol::egress::{MAX_SAVED_PINS, Reach, SavedPin};
use serde::{Deserialize, Serialize};
use std::{io, net::IpAddr, path::PathBuf, time::Duration};

const FILE: &str = "network.json";
const PINS: &str = "network.pins";
const FORMAT: u32 = 1;
/// Maximum size in bytes: the settings, which fit a message of half a maximum, as indented JSON.
const MAX_FILE: u64 = 1 << 20;
/// Maximum size in bytes: [`MAX_SAVED_PINS`] names and addresses.
const MAX_PINS: u64 = MAX_SAVED_PINS as u64 * 1024;

/// Why the network of a sandbox is not known.
#[derive(Debug, thiserror::Error)]
pub enum NetworkRecordError {
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The record is not valid, or has a part that this build does not know.
    #[error("cannot read the network settings in {}: {source}", .path.display())]
    Damaged {
        /// Path of the record.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// A newer build wrote the record.
    #[error("{} has unsupported format {found}: this build reads {FORMAT}", .path.display())]
    Format {
        /// Path of the record.
        path: PathBuf,
        /// The format of the record.
        found: u32,
    },
}

/// What a sandbox may reach, with what the operator provides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkRecord {
    format: u32,
    pub(crate) settings: NetworkSpec,
    #[serde(default)]
    pub(crate) operator: Provided,
    /// True if the sandbox is a tenant's: the operator permits it less than everything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_tenants: bool,
}

impl NetworkRecord {
    /// Returns the record of a sandbox that gets what `spec` asks for.
    ///
    /// # Errors
    /// When the operator does not permit it.
    pub(crate) fn of(operator: &NetworkOperator, spec: &NetworkSpec) -> Result<Self, NetworkSpecError> {
        Ok(Self {
            format: FORMAT,
            settings: operator.admit(spec)?,
            operator: operator.provides.clone(),
            is_tenants: operator.permits.is_some(),
        })
    }

    /// Reads the record. Returns `None` for a sandbox without one.
    pub(crate) fn read(directory: &SandboxDirectory) -> Result<Option<Self>, NetworkRecordError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let json = match directory.read(FILE, MAX_FILE) {
            Ok(json) => json,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let path = || directory.path().join(FILE);
        let damaged = |source| NetworkRecordError::Damaged { path: path(), source };
        let Format { format } = serde_json::from_slice(&json).map_err(damaged)?;
        if format != FORMAT {
            return Err(NetworkRecordError::Format { path: path(), found: format });
        }
        serde_json::from_slice(&json).map(Some).map_err(damaged)
    }

    /// Returns true if nothing is allowed by this record that the one in `directory` does not allow.
    pub(crate) fn only_narrows(&self, directory: &SandboxDirectory) -> bool {
        let before = Self::read(directory).ok().flatten();
        let is_within = |before: &Self| {
            let opened = |net: &IpNet| before.operator.opened.iter().any(|other| other.contains(net));
            self.operator.opened.iter().all(opened)
                && self.settings.only_narrows(&before.settings, !self.operator.opened.is_empty())
        };
        self.settings.reach == Reach::Nothing || before.as_ref().is_some_and(is_within)
    }

    /// Returns true if the sandbox in `directory` has a record.
    pub(crate) fn exists(directory: &SandboxDirectory) -> bool {
        directory.has(FILE)
    }

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        directory.replace(FILE, &json(directory, FILE, self)?)
    }
}

/// A pin with the time of its end, which does not depend on when it is read.
#[derive(Debug, Serialize, Deserialize)]
struct KeptPin {
    name: String,
    address: IpAddr,
    until: Deadline,
}

/// Keeps `pins` for the next egress process of the sandbox in `directory`.
pub(crate) fn keep_pins(directory: &SandboxDirectory, pins: &[SavedPin]) -> Result<(), DirectoryError> {
    if pins.is_empty() {
        return directory.unlink(PINS);
    }
    let kept = pins.iter().map(|SavedPin { name, address, seconds }| {
        Ok(KeptPin {
            name: name.clone(),
            address: *address,
            until: Deadline::after(Duration::from_secs(u64::from(*seconds)))?,
        })
    });
    let kept =
        kept.collect::<io::Result<Vec<_>>>().map_err(|error| directory.error("keep the pins in", PINS, error))?;
    directory.replace(PINS, &json(directory, PINS, &kept)?)
}

/// Takes the pins that were kept, without those that have expired. Pins that cannot be read are
/// dropped: the guest asks for its names again.
pub(crate) fn take_pins(directory: &SandboxDirectory) -> Vec<SavedPin> {
    let Ok(text) = directory.read(PINS, MAX_PINS) else { return Vec::new() };
    // If it stays, the next reader drops what has expired by then.
    let _ = directory.unlink(PINS);
    let kept: Vec<KeptPin> = serde_json::from_slice(&text).unwrap_or_default();
    let alive = kept.into_iter().filter_map(|KeptPin { name, address, until }| {
        let seconds = u32::try_from(until.left().as_secs()).ok().filter(|seconds| *seconds > 0)?;
        Some(SavedPin { name, address, seconds })
    });
    alive.take(MAX_SAVED_PINS).collect()
}

fn json(directory: &SandboxDirectory, name: &str, value: &impl Serialize) -> Result<Vec<u8>, DirectoryError> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|error| directory.error("write", name, error))?;
    json.push(b'\n');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::{super::spec::tests::rules, *};
    use sandboxvm_protocol::egress::HostName;
    use std::os::unix::fs::PermissionsExt;

    fn directory() -> (tempfile::TempDir, SandboxDirectory) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        (home, directory)
    }

    #[test]
    fn network_record_round_trips_and_is_private() {
        let (_home, directory) = directory();
        assert!(NetworkRecord::read(&directory).unwrap().is_none());
        let settings = NetworkSpec {
            reach: Reach::Listed,
            allow: rules(&["*.example:443", "host:5432"]),
            deny: rules(&["ads.example"]),
            dns: vec![IpAddr::from([192, 0, 2, 1])],
            hosts: vec![HostName { name: "db.example".into(), address: IpAddr::from([192, 0, 2, 2]) }],
            ..NetworkSpec::default()
        };
        let provides =
            Provided { opened: vec!["10.0.0.0/8".parse().unwrap()], resolvers: vec!["127.0.0.1:53".parse().unwrap()] };
        let operator = NetworkOperator { provides, ..NetworkOperator::default() };
        let record = NetworkRecord::of(&operator, &settings).unwrap();
        record.write(&directory).unwrap();
        assert_eq!(NetworkRecord::read(&directory).unwrap().unwrap(), record);
        let path = directory.path().join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("\"*.example:443\"") && text.contains("\"listed\""), "{text}");
    }

    #[test]
    fn record_of_a_newer_build_is_refused_with_a_reason() {
        let (_home, directory) = directory();
        let reason = |json: &str| {
            directory.replace(FILE, json.as_bytes()).unwrap();
            NetworkRecord::read(&directory).unwrap_err().to_string()
        };
        let unknown = reason(r#"{"format":1,"settings":{"reach":"listed","secrets":[]}}"#);
        assert!(unknown.contains("unknown field `secrets`"), "{unknown}");
        assert!(reason(r#"{"format":2,"settings":{}}"#).contains("unsupported format 2"));
        let rule = reason(r#"{"format":1,"settings":{"reach":"listed","allow":["a b"]}}"#);
        assert!(rule.contains("invalid rule \"a b\""), "{rule}");
        assert!(reason("{").contains("cannot read the network settings"));
        // A record of an older build lacks what is newer.
        directory.replace(FILE, br#"{"format":1,"settings":{"reach":"public"}}"#).unwrap();
        assert_eq!(NetworkRecord::read(&directory).unwrap().unwrap().settings.reach, Reach::Public);
    }

    #[test]
    fn pins_are_taken_once_and_expire() {
        let (_home, directory) = directory();
        assert!(take_pins(&directory).is_empty());
        let pin = |name: &str, seconds| SavedPin { name: name.into(), address: IpAddr::from([192, 0, 2, 1]), seconds };
        keep_pins(&directory, &[pin("a.example", 60), pin("b.example", 0)]).unwrap();
        let taken = take_pins(&directory);
        assert_eq!(taken.iter().map(|pin| pin.name.as_str()).collect::<Vec<_>>(), ["a.example"]);
        assert!((1..=60).contains(&taken[0].seconds));
        assert!(take_pins(&directory).is_empty());
        directory.replace(PINS, b"[{").unwrap();
        assert!(take_pins(&directory).is_empty() && !directory.has(PINS));
    }
}
