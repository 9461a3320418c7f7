//! `image ls`: the images of the home.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions},
    output::{age::age, json, size, table},
    stdio,
};
use clap::Args;
use sandboxvm_oci::{Digest, ImageSummary, store::Tag};
use serde::Serialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// List images
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Print JSON
    #[arg(long, help_heading = "Output", conflicts_with = "quiet")]
    json: bool,
    /// Print only references
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// An image in the JSON of `image ls`.
#[derive(Debug, Serialize)]
struct Listed {
    reference: String,
    digest: Digest,
    size_bytes: u64,
    since: String,
}

impl Ls {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let images = images::open(&RegistryOptions::default(), None)?.store.images().list()?;
        let text = if self.json {
            json::pretty(&images.into_iter().map(listed).collect::<Vec<_>>())?
        } else if self.quiet {
            images.iter().map(|image| format!("{}\n", image.tag.reference)).collect()
        } else {
            let now = SystemTime::now();
            table::render(["IMAGE", "DIGEST", "SIZE", "SINCE"], images.iter().map(|image| row(image, now)))
        };
        stdio::print(&text)?;
        Ok(0)
    }
}

fn listed(ImageSummary { tag, size }: ImageSummary) -> Listed {
    let since = humantime::format_rfc3339_seconds(since(&tag)).to_string();
    Listed { reference: tag.reference, digest: tag.manifest, size_bytes: size, since }
}

fn row(ImageSummary { tag, size: bytes }: &ImageSummary, now: SystemTime) -> [String; 4] {
    let age = age(now.duration_since(since(tag)).unwrap_or_default());
    [tag.reference.clone(), tag.manifest.hex()[..12].to_owned(), size::of(*bytes), age]
}

fn since(tag: &Tag) -> SystemTime {
    // A file that states an impossible time was not written by us.
    UNIX_EPOCH.checked_add(Duration::from_secs(tag.since)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;

    #[test]
    fn json_is_pinned() {
        let tag = Tag {
            reference: "registry.example/app:1".to_owned(),
            manifest: Digest::of(b""),
            source: Digest::of(b"index"),
            since: 1_700_000_000,
        };
        let image = listed(ImageSummary { tag, size: 4096 });
        assert_golden("image-ls.json", &json::pretty(&vec![image]).unwrap());
    }
}
