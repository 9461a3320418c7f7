//! The configuration of an image: how its program is started, and which layers it consists of.
//! oci-spec's type lacks docker's health check and rejects the `null` that docker writes, so this
//! module has its own. May not interpret a value: users and paths are those of the guest.

use crate::{
    digest::Digest,
    limits::MAX_CONFIG,
    manifest::{Manifest, printable},
};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Why a configuration is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The bytes are not a configuration.
    #[error("invalid image configuration: {0}")]
    Malformed(String),
    /// The configuration is larger than 4 MiB.
    #[error("invalid image configuration: it has {0} bytes, the maximum is {MAX_CONFIG}")]
    TooLong(u64),
    /// The image is for another platform.
    #[error("the image is for {0}, expected linux/amd64")]
    OtherPlatform(String),
    /// The configuration does not describe the layers of its manifest.
    #[error("invalid image: its manifest has {layers} layers, its configuration {diff_ids}")]
    Mismatch {
        /// Number of layers in the manifest.
        layers: usize,
        /// Number of layers in the configuration.
        diff_ids: usize,
    },
}

/// How an image's program is started. Values are as the image states them: an empty list or text
/// means that the image states none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User, and after a colon the group, by name or number.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Environment, as `NAME=value`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Directory in which the program starts.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Program and its first arguments.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program if there is no entrypoint.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Signal that asks the program to end, by name or number.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Directories that are meant to outlive the container.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Ports that the program listens on, as `80/tcp`.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys", skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Command that checks the program.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Labels.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Program of the shell form of a Dockerfile. Empty: `/bin/sh -c`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Instructions for the builds of images that are based on this one.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// A command that checks the program of an image, as docker describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", program, ...]` or `["CMD-SHELL", command]`. Empty: inherited.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Nanoseconds between two checks, 0 for the default.
    #[serde(deserialize_with = "or_default")]
    pub interval: u64,
    /// Nanoseconds after which a check has failed, 0 for the default.
    #[serde(deserialize_with = "or_default")]
    pub timeout: u64,
    /// Nanoseconds in which failures do not count, 0 for the default.
    #[serde(deserialize_with = "or_default")]
    pub start_period: u64,
    /// Number of failures in a row after which the program is unhealthy, 0 for the default.
    #[serde(deserialize_with = "or_default")]
    pub retries: u32,
}

/// The configuration document of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// How the image's program is started.
    pub image: ImageConfig,
    /// Digests of the layers as plain tar archives, lowest first.
    pub diff_ids: Vec<Digest>,
    /// When the image was made, as it states it itself.
    pub created: Option<String>,
}

#[derive(Deserialize)]
struct Wire {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: ImageConfig,
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

impl Configuration {
    /// Parses a configuration.
    ///
    /// # Errors
    /// Fails if the bytes are more than 4 MiB or not a configuration, or if they describe an image
    /// for another platform than x86-64 Linux.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(ConfigError::TooLong(bytes.len() as u64));
        }
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Malformed(printable(&error.to_string())))?;
        let (os, architecture) = (wire.os.unwrap_or_default(), wire.architecture.unwrap_or_default());
        let variant = wire.variant.unwrap_or_default();
        if (os.as_str(), architecture.as_str()) != ("linux", "amd64") || !matches!(variant.as_str(), "" | "v1" | "v2") {
            let name = [os, architecture, variant].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
            return Err(ConfigError::OtherPlatform(printable(&name.join("/"))));
        }
        Ok(Self { image: wire.config, diff_ids: wire.rootfs.diff_ids, created: wire.created.map(|t| printable(&t)) })
    }

    /// Checks that the configuration has as many layers as the manifest.
    ///
    /// # Errors
    /// Fails if it has not.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ConfigError> {
        let (layers, diff_ids) = (manifest.layers().len(), self.diff_ids.len());
        if layers == diff_ids { Ok(()) } else { Err(ConfigError::Mismatch { layers, diff_ids }) }
    }
}

/// Accepts `null` as the default, as programs in Go write and read it.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Accepts a set, which JSON spells as an object with empty values.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let set: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(set.unwrap_or_default().into_keys().collect())
}

fn as_keys<S: serde::Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(keys.iter().map(|key| (key, BTreeMap::<String, String>::new())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: serde_json::Value) -> Result<Configuration, ConfigError> {
        let document = json!({"os": "linux", "architecture": "amd64", "config": config, "rootfs": {"type": "layers", "diff_ids": []}});
        Configuration::parse(document.to_string().as_bytes())
    }

    #[test]
    fn docker_configuration_is_read() {
        let image = parse(json!({
            "User": "app:app", "Env": ["A=1"], "WorkingDir": "/srv", "Entrypoint": ["/run"], "Cmd": ["x"],
            "StopSignal": "SIGINT", "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}},
            "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000_u64}, "Labels": {"a": "b"},
            "OnBuild": null, "Unknown": 7
        }))
        .unwrap()
        .image;
        assert_eq!((image.user.as_str(), image.working_dir.as_str()), ("app:app", "/srv"));
        assert_eq!((&image.volumes[0][..], &image.exposed_ports[0][..]), ("/data", "80/tcp"));
        assert_eq!(image.healthcheck.as_ref().unwrap().interval, 5_000_000_000);
        let again: ImageConfig = serde_json::from_value(serde_json::to_value(&image).unwrap()).unwrap();
        assert_eq!(again, image);
    }

    #[test]
    fn null_is_the_default() {
        let nulls =
            json!({"User": null, "Env": null, "Entrypoint": null, "Cmd": null, "Volumes": null, "Labels": null});
        assert_eq!(parse(nulls).unwrap().image, ImageConfig::default());
        assert_eq!(parse(json!(null)).unwrap().image, ImageConfig::default());
    }

    #[test]
    fn other_platforms_and_malformed_documents_are_rejected() {
        let arm = br#"{"os":"linux","architecture":"arm64","rootfs":{"diff_ids":[]}}"#;
        let error = Configuration::parse(arm).unwrap_err().to_string();
        assert_eq!(error, "the image is for linux/arm64, expected linux/amd64");
        for bad in [&b""[..], b"[]", b"{}", br#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["x"]}}"#] {
            assert!(matches!(Configuration::parse(bad), Err(ConfigError::Malformed(_))));
        }
    }
}
