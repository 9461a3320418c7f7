//! `network.json`: what a sandbox may reach. Written before others can see the sandbox, and replaced
//! as a whole. A record that this build does not understand lets nothing pass, because no egress
//! process starts with it.
//!
//! `network.pins` is there for a moment: the pins that the next egress process starts with, for a
//! fork and for a machine that replaces another one.

use super::{
    error::{FORMAT, NetworkRecordError},
    operator::Provided,
    secrets::{Kept, Parts, SecretsError},
    spec::NetworkSpec,
};
use crate::{
    clock::Deadline,
    home::directory::{DirectoryError, SandboxDirectory},
};
use sandboxvm_protocol::egress::{MAX_SAVED_PINS, NetworkSettings, SavedPin};
use serde::{Deserialize, Serialize};
use std::{io, net::IpAddr, time::Duration};

const FILE: &str = "network.json";
const PINS: &str = "network.pins";
/// Maximum size in bytes: the settings, which fit a message of half a maximum, as indented JSON.
const MAX_FILE: u64 = 1 << 20;
/// Maximum size in bytes: [`MAX_SAVED_PINS`] names and addresses.
const MAX_PINS: u64 = MAX_SAVED_PINS as u64 * 1024;

/// What a sandbox may reach, with what the operator provides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkRecord {
    format: u32,
    pub(crate) settings: NetworkSpec,
    #[serde(default)]
    pub(crate) operator: Provided,
}

impl NetworkRecord {
    pub(crate) fn new(settings: NetworkSpec, operator: Provided) -> Self {
        Self { format: FORMAT, settings, operator }
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

    /// Returns true if the sandbox in `directory` has a record.
    pub(crate) fn exists(directory: &SandboxDirectory) -> bool {
        directory.has(FILE)
    }

    pub(crate) fn write(&self, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
        directory.replace(FILE, &json(directory, FILE, self)?)
    }

    /// Keeps the values that the settings give, which the record then only refers to. Values that the
    /// settings do not refer to stay until [`Self::drop_values`], so that the record before this one
    /// remains valid.
    pub(crate) fn keep_values(&mut self, directory: &SandboxDirectory) -> Result<(), SecretsError> {
        let mut kept = Kept::read(directory)?;
        let NetworkSpec { secrets, header_rules, .. } = &mut self.settings;
        let before = Self::read(directory)?.map(|record| record.settings.secrets).unwrap_or_default();
        for secret in secrets.iter_mut().filter(|secret| secret.placeholder.is_empty()) {
            // Processes that run have the placeholder of before.
            if let Some(before) = before.iter().find(|before| before.name == secret.name) {
                secret.placeholder.clone_from(&before.placeholder);
            }
        }
        kept.take(Parts { secrets, header_rules })?;
        kept.write(directory)?;
        Ok(())
    }

    /// Drops the kept values that the settings do not refer to.
    pub(crate) fn drop_values(&self, directory: &SandboxDirectory) -> Result<(), NetworkRecordError> {
        let mut kept = Kept::read(directory)?;
        kept.retain(&self.settings.secrets, &self.settings.header_rules);
        Ok(kept.write(directory)?)
    }

    /// Returns the settings of an egress process.
    pub(crate) fn egress_settings(&self, directory: &SandboxDirectory) -> Result<NetworkSettings, NetworkRecordError> {
        let opened: Vec<String> = self.operator.opened.iter().map(ToString::to_string).collect();
        Ok(self.settings.settings(&opened, &Kept::read(directory)?))
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
    use sandboxvm_protocol::egress::{HostName, Reach};
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
        let operator = Provided {
            opened: vec!["10.0.0.0/8".parse().unwrap()],
            resolvers: vec!["127.0.0.1:53".parse().unwrap()],
            trust: None,
        };
        let record = NetworkRecord::new(settings, operator);
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
        let unknown = reason(r#"{"format":1,"settings":{"reach":"listed","proxies":[]}}"#);
        assert!(unknown.contains("unknown field `proxies`"), "{unknown}");
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
