//! `image inspect`: everything that an image says.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    output::json,
    stdio,
};
use clap::Args;
use sandboxvm_oci::{Digest, ImageDetails, config::ImageConfig, manifest::Layer};
use serde::Serialize;

/// Print the configuration and the layers of an image as JSON
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Reference of the image, or the beginning of its ID
    image: String,
}

/// The JSON of `image inspect`.
#[derive(Debug, Serialize)]
struct Inspected {
    references: Vec<String>,
    digest: Digest,
    config_digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    size_bytes: u64,
    config: ImageConfig,
    not_used: Vec<&'static str>,
    layers: Vec<Layer>,
}

impl Inspect {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let opened = images::open(&RegistryOptions::default(), None)?;
        let images = opened.store.images();
        let details = images.inspect(&opened.named(&self.image)?)?;
        let mut tags = images.store().tags()?;
        tags.retain(|tag| tag.manifest == details.manifest);
        let references = tags.into_iter().map(|tag| tag.reference).collect();
        stdio::print(&json::pretty(&inspected(details, references))?)?;
        Ok(0)
    }
}

fn inspected(details: ImageDetails, references: Vec<String>) -> Inspected {
    let ImageDetails { manifest, config_digest, configuration, layers } = details;
    Inspected {
        references,
        digest: manifest,
        config_digest,
        created: configuration.created,
        size_bytes: layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)),
        not_used: not_used(&configuration.image),
        config: configuration.image,
        layers,
    }
}

/// Returns which settings of an image have no effect on its sandboxes.
fn not_used(config: &ImageConfig) -> Vec<&'static str> {
    let settings = [("ExposedPorts", !config.exposed_ports.is_empty()), ("Healthcheck", config.healthcheck.is_some())];
    settings.into_iter().filter_map(|(name, is_stated)| is_stated.then_some(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;
    use sandboxvm_oci::{config::Configuration, manifest::Compression};

    #[test]
    fn json_is_pinned() {
        let image = ImageConfig {
            user: "app".to_owned(),
            cmd: vec!["serve".to_owned()],
            stop_signal: "SIGINT".to_owned(),
            volumes: vec!["/data".to_owned()],
            exposed_ports: vec!["80/tcp".to_owned()],
            ..ImageConfig::default()
        };
        let created = Some("2024-01-01T00:00:00Z".to_owned());
        let layer = Layer { digest: Digest::of(b"layer"), size: 512, compression: Compression::Gzip };
        let details = ImageDetails {
            manifest: Digest::of(b"manifest"),
            config_digest: Digest::of(b"config"),
            configuration: Configuration { image, diff_ids: vec![Digest::of(b"tar")], created },
            layers: vec![layer],
        };
        let inspected = inspected(details, vec!["registry.example/app:1".to_owned()]);
        assert_golden("image-inspect.json", &json::pretty(&inspected).unwrap());
    }
}
