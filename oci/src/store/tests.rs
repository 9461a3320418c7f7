use super::*;
use crate::{digest::Digest, manifest::Blob};
use serde_json::json;
use std::path::PathBuf;

fn store() -> (tempfile::TempDir, Store) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path().join("images"), Limits::default()).unwrap();
    (home, store)
}

/// Stores an image of one layer and returns the digests of its manifest and its layer.
fn image(store: &Store, layer: &[u8], reference: Option<&str>) -> (Digest, Digest) {
    let hold = store.hold(&[]).unwrap();
    let config = br#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}"#;
    let (config_digest, layer_digest) =
        (store.write_document(&hold, config).unwrap(), store.write_document(&hold, layer).unwrap());
    let manifest = json!({"schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}]});
    let manifest = store.write_document(&hold, manifest.to_string().as_bytes()).unwrap();
    if let Some(reference) = reference {
        store.set_tag(&reference.parse().unwrap(), manifest, manifest).unwrap();
    }
    (manifest, layer_digest)
}

fn names(store: &Store, directory: &str) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        std::fs::read_dir(store.root.join(directory)).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn garbage_collection_keeps_tagged_held_and_kept_images() {
    let (_home, store) = store();
    let (tagged, tagged_layer) = image(&store, b"tagged", Some("registry.example/a"));
    let (kept, kept_layer) = image(&store, b"kept", None);
    let (_, held_layer) = image(&store, b"held", None);
    let (garbage, garbage_layer) = image(&store, b"garbage", None);
    let disk = store.disk(garbage, "erofs", |path| Ok(std::fs::write(path, "disk")?)).unwrap().0;
    let hold = store.hold(&[held_layer]).unwrap();
    let collected = store.collect(&[kept]).unwrap();
    assert!(collected.files >= 3 && !disk.exists(), "{collected:?}");
    for digest in [tagged, tagged_layer, kept, kept_layer, held_layer] {
        store.open_blob(digest).unwrap();
    }
    assert!(matches!(store.open_blob(garbage_layer), Err(StoreError::Missing(_))));
    drop(hold);
    store.collect(&[kept]).unwrap();
    assert!(store.open_blob(held_layer).is_err());
    assert!(names(&store, "holds").is_empty());
}

#[test]
fn garbage_collection_deletes_nothing_when_a_manifest_is_unreadable() {
    let (_home, store) = store();
    let (manifest, layer) = image(&store, b"layer", Some("registry.example/a"));
    let (_, other) = image(&store, b"other", None);
    std::fs::write(store.blob_path(manifest), "{}").unwrap();
    assert!(matches!(store.collect(&[]), Err(StoreError::WrongDigest { .. })));
    store.open_blob(layer).unwrap();
    store.open_blob(other).unwrap();
}

#[tokio::test]
async fn interrupted_download_continues_and_is_verified() {
    let (_home, store) = store();
    let blob = Blob { digest: Digest::of(b"0123456789"), size: 10 };
    let mut first = store.partial(blob).await.unwrap().unwrap();
    first.append(b"01234").unwrap();
    drop(first);
    let hold = store.hold(&[blob.digest]).unwrap();
    let mut second = store.partial(blob).await.unwrap().unwrap();
    assert_eq!(second.written(), 5);
    assert!(matches!(second.append(b"567890"), Err(StoreError::WrongSize { .. })));
    second.append(b"56789").unwrap();
    second.publish(&store, &hold).unwrap();
    assert!(store.partial(blob).await.unwrap().is_none());
    assert!(names(&store, "partial").is_empty());
}

#[tokio::test]
async fn wrong_content_is_never_published() {
    let (_home, store) = store();
    let blob = Blob { digest: Digest::of(b"good"), size: 4 };
    let hold = store.hold(&[blob.digest]).unwrap();
    let mut partial = store.partial(blob).await.unwrap().unwrap();
    partial.append(b"evil").unwrap();
    assert!(matches!(partial.publish(&store, &hold), Err(StoreError::WrongDigest { .. })));
    assert!(names(&store, "blobs/sha256").is_empty() && names(&store, "partial").is_empty());
}

#[tokio::test]
async fn second_downloader_waits_for_the_first() {
    let (_home, store) = store();
    let blob = Blob { digest: Digest::of(b"x"), size: 1 };
    let mut first = store.partial(blob).await.unwrap().unwrap();
    let second = tokio::spawn({
        let store = store.clone();
        async move { store.partial(blob).await.unwrap().is_none() }
    });
    tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    assert!(!second.is_finished());
    first.append(b"x").unwrap();
    first.publish(&store, &store.hold(&[]).unwrap()).unwrap();
    assert!(second.await.unwrap());
}

#[tokio::test]
async fn unfinished_files_of_live_processes_are_kept() {
    let (_home, store) = store();
    let blob = Blob { digest: Digest::of(b"x"), size: 1 };
    let live = store.partial(blob).await.unwrap().unwrap();
    std::fs::write(store.root.join("partial/1-0.new"), "left by a killed process").unwrap();
    assert_eq!(store.collect_partial().unwrap().files, 1);
    drop(live);
    assert_eq!(store.collect_partial().unwrap().files, 1);
}

#[test]
fn tags_are_replaced_sorted_and_limited() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path(), Limits { tags: 2, ..Limits::default() }).unwrap();
    let set =
        |name: &str, content: &[u8]| store.set_tag(&name.parse().unwrap(), Digest::of(content), Digest::of(content));
    set("registry.example/b", b"1").unwrap();
    set("registry.example/a", b"1").unwrap();
    set("registry.example/b", b"2").unwrap();
    assert!(matches!(set("registry.example/c", b"1"), Err(StoreError::TooManyTags(2))));
    let tags = store.tags().unwrap();
    assert_eq!(
        tags.iter().map(|tag| &tag.reference[..]).collect::<Vec<_>>(),
        ["registry.example/a:latest", "registry.example/b:latest"]
    );
    assert_eq!(tags[1].manifest, Digest::of(b"2"));
    assert_eq!(store.remove_tags(|tag| tag.reference.contains("/a")).unwrap().len(), 1);
    assert_eq!(store.tags().unwrap().len(), 1);
}

#[test]
fn failed_build_of_a_disk_leaves_no_file() {
    let (_home, store) = store();
    let (manifest, _) = image(&store, b"layer", Some("registry.example/a"));
    let failed = store.disk(manifest, "erofs", |path| {
        std::fs::write(path, "half")?;
        Err("no".into())
    });
    assert!(failed.unwrap_err().to_string().ends_with(": no"));
    assert!(names(&store, "disks").is_empty() && names(&store, "partial").is_empty());
    let path = store.disk(manifest, "erofs", |path| Ok(std::fs::write(path, "whole")?)).unwrap().0;
    assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    assert_eq!(store.disk(manifest, "erofs", |_| Err("must not be built again".into())).unwrap().0, path);
    assert!(matches!(store.disk(Digest::of(b"?"), "erofs", |_| Ok(())), Err(StoreError::Missing(_))));
}

#[test]
fn disk_and_image_stay_as_long_as_their_hold() {
    let (_home, store) = store();
    let (manifest, layer) = image(&store, b"layer", None);
    let (disk, hold) = store.disk(manifest, "erofs", |path| Ok(std::fs::write(path, "disk")?)).unwrap();
    store.collect(&[]).unwrap();
    assert!(disk.exists() && store.open_blob(layer).is_ok());
    drop(hold);
    let failed = store.collect_except(|| Err("unknown".into())).unwrap_err().to_string();
    assert!(failed.ends_with("in use: unknown") && disk.exists(), "nothing is deleted if it is unknown: {failed}");
    store.collect(&[]).unwrap();
    assert!(!disk.exists() && store.open_blob(layer).is_err());
}

#[test]
fn store_of_another_format_is_rejected() {
    let (_home, store) = store();
    std::fs::write(store.root.join("version"), "2\n").unwrap();
    assert!(matches!(Store::open(&store.root, Limits::default()), Err(StoreError::Version(_))));
}

/// Needs root, for a small tmpfs.
#[test]
fn full_disk_is_reported_and_leaves_nothing() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let options = c"size=256k";
    let flags = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", home.path(), "tmpfs", flags, options).is_err() {
        return;
    }
    let store = Store::open(home.path(), Limits::default()).unwrap();
    let mut staged = store.stage().unwrap();
    let error = staged.write(&[0; 1 << 20]).unwrap_err().to_string();
    drop(staged);
    let left = names(&store, "partial");
    rustix::mount::unmount(home.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(error.ends_with("the disk is full"), "{error}");
    assert!(left.is_empty());
}
