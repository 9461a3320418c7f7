//! Composed images, judged by skopeo and umoci. The tests need both, and are skipped with a message
//! where they are missing.

#![allow(clippy::unwrap_used, reason = "a test")]

use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_oci::{
    Addition, ComposeError, Composition, Digest, Images, Limits, config::ImageConfig, registry::RegistryOptions,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;

fn has_tools() -> bool {
    let has = ["skopeo", "umoci"].iter().all(|tool| {
        Command::new("which").arg(tool).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    if !has {
        println!("skipped: install skopeo and umoci");
    }
    has
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn images() -> (TempDir, Images) {
    let home = tempfile::tempdir().unwrap();
    let images = Images::open(home.path().join("store"), Limits::default(), RegistryOptions::default()).unwrap();
    (home, images)
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, content) in files {
        let kind = Kind::File { size: content.len() as u64, extents: None };
        let (path, modified) = (path.as_bytes().to_vec(), Timestamp::default());
        writer.begin(&Entry { path, kind, mode: 0o640, uid: 0, gid: 0, modified, attributes: Vec::new() }).unwrap();
        writer.content(content.as_bytes()).unwrap();
        writer.end().unwrap();
    }
    writer.finish().unwrap()
}

fn added<'a>(archive: &'a [u8], text: &str) -> Addition<&'a [u8]> {
    Addition::Layer { archive, created_by: text.into() }
}

fn composition<'a>(base: Option<&'a str>, tag: &'a str) -> Composition<'a> {
    let config = ImageConfig {
        env: vec!["A=1".into()],
        entrypoint: vec!["/run".into()],
        shell: vec!["/bin/ash".into(), "-c".into()],
        ..ImageConfig::default()
    };
    Composition { base, config, created: "2026-11-30T00:00:00Z".into(), tag: Some(tag) }
}

/// Saves the image, unpacks it with umoci, and returns the tree and what skopeo says.
fn judged(home: &Path, images: &Images, image: &str, name: &str) -> (std::path::PathBuf, Value) {
    let (saved, layout, bundle) =
        (home.join(format!("{name}.tar")), home.join(format!("{name}.oci")), home.join(format!("{name}.bundle")));
    images.save(image, fs::File::create(&saved).unwrap()).unwrap();
    for format in ["oci-archive", "docker-archive"] {
        run("skopeo", &["inspect", &format!("{format}:{}", saved.display())]);
    }
    let (from, to) = (format!("oci-archive:{}", saved.display()), format!("oci:{}:it", layout.display()));
    run("skopeo", &["copy", &from, &to]);
    let inspected = run("skopeo", &["inspect", "--config", &to]);
    let at = format!("{}:it", layout.display());
    run("umoci", &["unpack", "--rootless", "--image", &at, bundle.to_str().unwrap()]);
    (bundle.join("rootfs"), serde_json::from_str(&inspected).unwrap())
}

#[test]
fn layers_and_configuration_are_what_other_programs_read() {
    if !has_tools() {
        return;
    }
    let (home, images) = images();
    let lower = layer(&[("a", "first"), ("b", "gone")]);
    let additions = [Addition::Setting { created_by: "ENV A=1".into() }, added(&lower, "COPY . /")];
    images.compose(&composition(None, "example.test/base:1"), additions).unwrap();
    let upper = layer(&[("a", "second"), (".wh.b", ""), ("c", "third")]);
    let top = composition(Some("example.test/base:1"), "example.test/top:1");
    let digest = images.compose(&top, [added(&upper, "RUN x")]).unwrap();
    let (tree, config) = judged(home.path(), &images, "example.test/top:1", "top");
    let mut names: Vec<_> =
        fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(fs::read_to_string(tree.join("a")).unwrap(), "second");
    assert_eq!(config["config"]["Entrypoint"][0], "/run");
    assert_eq!(config["history"].as_array().unwrap().len(), 3);
    assert_eq!(config["history"][0]["empty_layer"], true);
    assert_eq!(config["rootfs"]["diff_ids"][1], Digest::of(&upper).to_string());
    assert_eq!(images.inspect("example.test/top:1").unwrap().configuration.image, top.config);
    // The same arguments give the same image.
    assert_eq!(images.compose(&top, [added(&upper, "RUN x")]).unwrap(), digest);
}

#[test]
fn images_are_found_by_the_beginning_of_their_ids() {
    let (home, images) = images();
    let make = |tag: &str, text: &str| images.compose(&composition(None, tag), [added(&layer(&[("a", text)]), "COPY")]);
    let (one, two) = (make("one", "1").unwrap(), make("two", "2").unwrap());
    images.tag("one", "again").unwrap();
    let config = images.inspect("two").unwrap().config_digest;
    // Twelve digits of two digests that differ in the first ones.
    let short = |digest: &Digest| digest.hex()[..12].to_owned();
    assert_eq!(images.by_short_id(&short(&one)).unwrap(), Some(one));
    assert_eq!(images.by_short_id(&format!("sha256:{}", short(&one))).unwrap(), Some(one));
    assert_eq!(images.by_short_id(&short(&config)).unwrap(), Some(two));
    assert_eq!(images.by_short_id(&two.to_string()).unwrap(), Some(two));
    for other in ["one", &one.hex()[..3], "ffffffffffffffff", &short(&one).to_uppercase(), &format!("{}0", one.hex())] {
        assert_eq!(images.by_short_id(other).unwrap(), None, "{other}");
    }
    // A tag of this name comes first.
    images.tag("two", &short(&one)).unwrap();
    assert_eq!(images.by_short_id(&short(&one)).unwrap(), None);
    images.untag(&one.to_string()).unwrap_err();
    images.untag("again").unwrap();
    // Two images whose IDs begin alike. What they are is not read for that.
    let path = home.path().join("store/tags.json");
    let mut tags: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for last in [1, 2] {
        let mut tag = tags["tags"][0].clone();
        tag["reference"] = format!("docker.io/zzz/alike:{last}").into();
        tag["manifest"] = format!("sha256:abcd{last:060}").into();
        tags["tags"].as_array_mut().unwrap().push(tag);
    }
    fs::write(&path, tags.to_string()).unwrap();
    let error = images.by_short_id("abcd").unwrap_err().to_string();
    assert!(error.contains("several images"), "{error}");
    assert!(images.by_short_id(&format!("abcd{:060}", 1)).unwrap().is_some());
}

#[test]
fn base_of_docker_gives_an_image_of_docker() {
    if !has_tools() {
        return;
    }
    let (home, images) = images();
    let lower = layer(&[("a", "first")]);
    images.compose(&composition(None, "example.test/base:1"), [added(&lower, "x")]).unwrap();
    let (saved, docker) = (home.path().join("saved.tar"), home.path().join("docker"));
    images.save("example.test/base:1", fs::File::create(&saved).unwrap()).unwrap();
    run(
        "skopeo",
        &[
            "copy",
            &format!("oci-archive:{}", saved.display()),
            &format!("dir:{}", docker.display()),
            "--format",
            "v2s2",
        ],
    );
    // A layout with docker's own manifest, which skopeo wrote.
    let manifest = fs::read(docker.join("manifest.json")).unwrap();
    let layout = home.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    for entry in fs::read_dir(&docker).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().len() == 64 {
            fs::copy(entry.path(), layout.join("blobs/sha256").join(entry.file_name())).unwrap();
        }
    }
    fs::write(layout.join("blobs/sha256").join(Digest::of(&manifest).hex()), &manifest).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "digest": Digest::of(&manifest), "size": manifest.len()}]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let name = images.reference("example.test/docker:1").unwrap();
    images.load_layout(&layout, Some(&name)).unwrap();
    let upper = layer(&[("b", "second")]);
    let top = composition(Some("example.test/docker:1"), "example.test/top:1");
    let digest = images.compose(&top, [added(&upper, "RUN x")]).unwrap();
    let mut stored = String::new();
    std::io::Read::read_to_string(&mut images.store().open_blob(digest).unwrap(), &mut stored).unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(stored["layers"][1]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let (tree, _) = judged(home.path(), &images, "example.test/top:1", "top");
    assert_eq!(fs::read_to_string(tree.join("b")).unwrap(), "second");
}

#[test]
fn garbage_collection_keeps_a_composed_image_and_failures_leave_no_tag() {
    let (_home, images) = images();
    let plain = layer(&[("a", "first")]);
    images.compose(&composition(None, "example.test/base:1"), [added(&plain, "x")]).unwrap();
    let top = composition(Some("example.test/base:1"), "example.test/top:1");
    images.compose(&top, [added(&plain, "y")]).unwrap();
    images.remove("example.test/base:1", &[]).unwrap();
    images.save("example.test/top:1", std::io::sink()).unwrap();

    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the guest is gone"))
        }
    }
    let top_details = images.inspect("example.test/top:1").unwrap();
    let stored = Addition::<&[u8]>::Stored {
        layer: top_details.layers[1],
        diff_id: top_details.configuration.diff_ids[1],
        created_by: "y".into(),
    };
    let again = images.compose(&composition(None, "example.test/again:1"), [stored]).unwrap();
    assert_eq!(images.inspect(&again.to_string()).unwrap().configuration.diff_ids, [Digest::of(&plain)]);

    let broken = [Addition::Layer { archive: Broken, created_by: String::new() }];
    let failed = images.compose(&composition(None, "example.test/broken:1"), broken);
    assert!(matches!(failed, Err(ComposeError::Input(_))), "{failed:?}");
    let missing = composition(Some("example.test/absent:1"), "example.test/broken:1");
    assert!(images.compose(&missing, [added(&plain, "x")]).is_err());
    assert!(images.inspect("example.test/broken:1").is_err());
    let many = (0..300).map(|_| added(&plain, "x"));
    assert!(images.compose(&composition(None, "example.test/broken:1"), many).is_err());
}
