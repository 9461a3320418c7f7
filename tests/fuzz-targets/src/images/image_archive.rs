//! An archive of images is loaded into a store.
//!
//! Input: one byte that selects the options, then the archive. For half of the inputs the checksums
//! of headers are corrected. The target panics unless all that a load leaves is complete images.

use super::image_documents::{check_message, limits};
use crate::tar_unpack::mend;
use sandboxvm_oci::{Digest, Error, Images, registry::RegistryOptions};
use std::{fs, io::Read, path::Path};

/// Loads images. The module describes the input.
pub fn image_archive(data: &[u8]) {
    let [how, archive @ ..] = data else { return };
    let mut archive = archive.to_vec();
    if how & 1 == 1 {
        mend(&mut archive);
    }
    // In memory where that is possible: each file of a store is synchronised to the disk.
    let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let images = Images::open(home.path(), limits(), RegistryOptions::default()).expect("an empty store");
    let name = (how & 2 == 2).then(|| images.reference("registry.example/given:1").expect("a reference"));
    let loaded = images.load(&archive[..], name.as_ref());
    let count = |directory: &str| fs::read_dir(home.path().join(directory)).expect("a directory").count();
    assert!(count("partial") == 0 && count("holds") == 0);
    let tags = images.list().expect("complete images");
    match &loaded {
        Ok(loaded) => assert!(loaded.iter().all(|one| !one.references.is_empty()) && tags.len() <= limits().tags),
        Err(Error::Load(error)) => check_message(error),
        Err(error) => panic!("not an error of loading: {error}"),
    }
    // Images before the one that failed may be there.
    for tag in tags {
        let details = images.inspect(&tag.tag.reference).expect("a complete image");
        for layer in details.layers {
            let mut bytes = Vec::new();
            let mut blob = images.store().open_blob(layer.digest).expect("a layer of a complete image");
            blob.read_to_end(&mut bytes).expect("a file");
            assert!(Digest::of(&bytes) == layer.digest && bytes.len() as u64 == layer.size);
        }
        images.remove(&tag.tag.reference, &[]).expect("an image");
    }
    images.prune(&[]).expect("a store");
    assert!(count("blobs/sha256") == 0 && Path::new(home.path()).join("version").exists());
}
