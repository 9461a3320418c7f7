//! What a process is started as: E2B's description of it, and the agent's.

use crate::sandbox_plane::envd::connect::ConnectError;
use sandboxvm_manager::{ProcessSpec, ProcessSpecBuilder, ProcessSpecError};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// E2B's description of a process, as clients send it and get it back.
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

    /// The process as the manager takes it, without user and directory.
    pub(super) fn spec(&self) -> ProcessSpecBuilder {
        let spec = ProcessSpec::builder(std::iter::once(&self.cmd).chain(&self.args));
        self.envs.iter().fold(spec, |spec, (key, value)| spec.variable(key, value))
    }

    /// True for what an agent shows of a process that was started as this; long ones it cuts.
    pub(super) fn is_shown_as(&self, argv: &[String]) -> bool {
        let mut own = std::iter::once(&self.cmd).chain(&self.args);
        !argv.is_empty() && argv.iter().all(|shown| own.next().is_some_and(|text| text.starts_with(shown.as_str())))
    }
}

/// The error of a process that cannot be described, with E2B's name of the field.
pub(super) fn refused(error: &ProcessSpecError) -> ConnectError {
    ConnectError::invalid(match error {
        ProcessSpecError::NoProgram | ProcessSpecError::TooMany(_) | ProcessSpecError::TooLong(_) => error.to_string(),
        ProcessSpecError::Argument { source, .. } => format!("args: {source}"),
        ProcessSpecError::Variable { name, problem } => format!("envs: {name:?}: {problem}"),
        ProcessSpecError::WorkingDirectory(source) => format!("cwd: {source}"),
        ProcessSpecError::User(source) => format!("user: {source}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_configs_round_trip() {
        let text = r#"{"cmd":"/bin/bash","args":["-l","-c","true"],"envs":{"A":"1=2"},"cwd":"/tmp"}"#;
        let config: ProcessConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
        let expected = ProcessSpec::builder(["/bin/bash", "-l", "-c", "true"]).env(["A=1=2"]);
        assert_eq!(config.spec().build().unwrap(), expected.build().unwrap());
        let sparse: ProcessConfig = serde_json::from_str(r#"{"cmd":"x","args":null,"envs":null,"cwd":null}"#).unwrap();
        assert_eq!(sparse, ProcessConfig { cmd: "x".into(), ..ProcessConfig::default() });
    }

    #[test]
    fn invalid_process_configs_are_rejected() {
        for (key, value) in [("", "x"), ("A=B", "x"), ("A", "x\0")] {
            let envs = [(key.into(), value.into())].into();
            let config = ProcessConfig { cmd: "true".into(), envs, ..ProcessConfig::default() };
            let error = refused(&config.spec().build().unwrap_err());
            assert!(error.message.starts_with(&format!("envs: {key:?}: ")), "{}", error.message);
        }
        let nul = ProcessConfig { cmd: "a\0b".into(), ..ProcessConfig::default() }.spec().build().unwrap_err();
        assert!(refused(&nul).message.starts_with("args: contains a NUL"));
    }

    #[test]
    fn processes_are_recognized_by_their_arguments() {
        let config = ProcessConfig { cmd: "sh".into(), args: vec!["-c".into(), "long".into()], ..Default::default() };
        let shown = |argv: &[&str]| config.is_shown_as(&argv.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(shown(&["sh", "-c", "long"]) && shown(&["sh", "-c", "lo"]) && shown(&["sh"]));
        assert!(!shown(&["sh", "-x"]) && !shown(&["sh", "-c", "long", "more"]) && !shown(&[]));
    }
}
