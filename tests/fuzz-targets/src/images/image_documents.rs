//! What a registry or an archive says of an image: its reference, manifest and configuration.

use sandboxvm_oci::{Limits, Reference, config::Configuration, manifest::Manifest};
use std::fmt::Display;

/// Limits that a short input can reach.
pub(crate) fn limits() -> Limits {
    Limits { layers: 4, layer_bytes: 1 << 20, image_bytes: 3 << 20, archive_members: 30, tags: 20 }
}

/// Panics if a message could change the terminal of the person who reads it, or fill it.
pub(crate) fn check_message(error: &dyn Display) {
    let text = error.to_string();
    assert!(text.len() < 8192 && !text.chars().any(char::is_control), "{text:?}");
}

/// Input: a reference. One that is accepted is the same after it was written and read, and no part
/// of it leads elsewhere when it becomes part of a path or URL.
pub fn image_reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for registry in [None, Some("registry.example:5000")] {
        match Reference::parse(text, registry) {
            Ok(reference) => {
                let shown = reference.to_string();
                assert_eq!(shown.parse::<Reference>().expect("its own text"), reference);
                assert!(
                    shown.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\\"'?#%&<>".contains(&byte)),
                    "{shown}"
                );
                assert!(!reference.registry().is_empty() && !reference.registry().contains(['/', '@']));
                assert!(reference.repository().split('/').all(|part| !["", ".", ".."].contains(&part)), "{shown}");
                assert!(reference.tag().is_none_or(|tag| !tag.contains(['/', ':', '@']) && tag.len() <= 128));
            }
            Err(error) => check_message(&error),
        }
    }
}

/// Input: a manifest. One that is accepted is within the limits.
pub fn image_manifest(data: &[u8]) {
    match Manifest::parse(data, &limits()) {
        Ok(manifest) => {
            let limits = limits();
            assert!(manifest.layers().len() <= limits.layers && manifest.size() <= limits.image_bytes);
            assert!(manifest.layers().iter().all(|layer| layer.size <= limits.layer_bytes));
            // It depends on the bytes alone.
            assert_eq!(Manifest::parse(data, &limits).expect("the same bytes"), manifest);
        }
        Err(error) => check_message(&error),
    }
}

/// Input: a configuration. What is read of one is the same after it was written and read.
pub fn image_configuration(data: &[u8]) {
    match Configuration::parse(data) {
        Ok(configuration) => {
            let written = serde_json::to_vec(&configuration.image).expect("texts and numbers");
            let image = serde_json::from_slice(&written).expect("what was written");
            assert_eq!(configuration.image, image);
        }
        Err(error) => check_message(&error),
    }
}
