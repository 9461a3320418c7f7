//! The layers of a hostile image become an image of a sandbox.
//!
//! Input: one byte that selects the options, then the bytes of a layer, in any format. The layer is
//! used twice, so that it also meets a tree. For half of the inputs the checksums of headers are
//! corrected. The target panics unless the result is a complete image within its limits.

use crate::{input::file, tar_unpack::mend};
use sandboxvm_images::erofs;
use sandboxvm_layers::{Layer, Limits, unpack};

/// Limits that a short input can reach.
pub(crate) fn limits() -> Limits {
    Limits {
        unpacked_bytes: 1 << 20,
        image_bytes: 1 << 20,
        ratio_from: 1 << 16,
        zstd_window: 1 << 20,
        entries: 100,
        depth: 20,
        attribute_bytes: 4096,
        metadata_bytes: 1 << 16,
        ..Limits::default()
    }
}

/// Unpacks a layer. The module describes the input.
pub fn layer_archive(data: &[u8]) {
    let [how, layer @ ..] = data else { return };
    let mut layer = layer.to_vec();
    if how & 1 == 1 {
        mend(&mut layer);
    }
    let image = file(&[]);
    let layers = [&layer[..]; 2].map(|input| Layer { input, format: None, diff_id: None });
    let target = image.try_clone().expect("a descriptor").into();
    if let Ok(summary) = unpack(layers, &[], target, &limits(), |_| {}) {
        let checked = erofs::check(&image).expect("a complete image");
        assert!(checked.bytes == summary.bytes && summary.bytes <= limits().image_bytes);
    }
}
