//! What a process is started as: E2B's description of it, and the agent's.

use crate::sandbox_plane::envd::connect::ConnectError;
use sandboxvm_protocol::agent::CText;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// As a client states it, and is told it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ProcessConfig {
    pub(super) cmd: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cwd: Option<String>,
}

/// JSON's null is what proto3 has for nothing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ProcessConfig {
    /// Of one that was started by other means.
    pub(super) fn of_argv(argv: Vec<String>) -> Self {
        let mut argv = argv.into_iter();
        Self { cmd: argv.next().unwrap_or_default(), args: argv.collect(), ..Self::default() }
    }

    /// Program and arguments.
    pub(super) fn argv(&self) -> Result<Vec<CText>, ConnectError> {
        let argv = std::iter::once(&self.cmd).chain(&self.args);
        argv.map(|text| CText::try_from(text.as_str()).map_err(|error| ConnectError::invalid(format!("args: {error}"))))
            .collect()
    }

    /// `KEY=VALUE` each.
    pub(super) fn env(&self) -> Result<Vec<CText>, ConnectError> {
        let entry = |(key, value): (&String, &String)| {
            if key.is_empty() || key.contains('=') {
                return Err(ConnectError::invalid(format!("envs: {key:?} is no name of a variable")));
            }
            CText::try_from(format!("{key}={value}").as_str())
                .map_err(|error| ConnectError::invalid(format!("envs: {key}: {error}")))
        };
        self.envs.iter().map(entry).collect()
    }

    /// True for what an agent shows of a process that was started as this; long ones it cuts.
    pub(super) fn is_shown_as(&self, argv: &[String]) -> bool {
        let mut own = std::iter::once(&self.cmd).chain(&self.args);
        !argv.is_empty() && argv.iter().all(|shown| own.next().is_some_and(|text| text.starts_with(shown.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_and_handed_on() {
        let text = r#"{"cmd":"/bin/bash","args":["-l","-c","true"],"envs":{"A":"1=2"},"cwd":"/tmp"}"#;
        let config: ProcessConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
        let texts = |texts: Vec<CText>| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(texts(config.argv().unwrap()), [&b"/bin/bash"[..], b"-l", b"-c", b"true"]);
        assert_eq!(texts(config.env().unwrap()), [b"A=1=2"]);
        let sparse: ProcessConfig = serde_json::from_str(r#"{"cmd":"x","args":null,"envs":null,"cwd":null}"#).unwrap();
        assert_eq!(sparse, ProcessConfig { cmd: "x".into(), ..ProcessConfig::default() });
    }

    #[test]
    fn what_no_process_can_be_given_is_refused() {
        for (key, value) in [("", "x"), ("A=B", "x"), ("A", "x\0")] {
            let config = ProcessConfig { envs: [(key.into(), value.into())].into(), ..ProcessConfig::default() };
            assert!(config.env().is_err(), "{key:?}={value:?}");
        }
        assert!(ProcessConfig { cmd: "a\0b".into(), ..ProcessConfig::default() }.argv().is_err());
    }

    #[test]
    fn a_process_is_known_by_its_arguments() {
        let config = ProcessConfig { cmd: "sh".into(), args: vec!["-c".into(), "long".into()], ..Default::default() };
        let shown = |argv: &[&str]| config.is_shown_as(&argv.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(shown(&["sh", "-c", "long"]) && shown(&["sh", "-c", "lo"]) && shown(&["sh"]));
        assert!(!shown(&["sh", "-x"]) && !shown(&["sh", "-c", "long", "more"]) && !shown(&[]));
    }
}
