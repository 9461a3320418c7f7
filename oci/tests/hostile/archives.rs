//! Archives and layouts that lie, lead elsewhere or are too large.

use crate::server::{Image, descriptor};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_oci::{
    Digest, Error, Images, Limits,
    registry::RegistryOptions,
    sources::{LoadError, Loaded},
    store::StoreError,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// An archive that is written entry by entry.
pub struct Archive(Writer<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(Writer::new(Vec::new()))
    }

    fn entry(mut self, path: &str, kind: Kind, content: &[u8]) -> Self {
        let (path, modified) = (path.as_bytes().to_vec(), Timestamp::default());
        let entry = Entry { path, kind, mode: 0o644, uid: 0, gid: 0, modified, attributes: Vec::new() };
        self.0.begin(&entry).unwrap();
        self.0.content(content).unwrap();
        self.0.end().unwrap();
        self
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, Kind::File { size: content.len() as u64, extents: None }, content)
    }

    pub fn json(self, path: &str, content: &Value) -> Self {
        self.file(path, content.to_string().as_bytes())
    }

    pub fn link(self, path: &str, to: &str) -> Self {
        self.entry(path, Kind::Symlink(to.as_bytes().to_vec()), b"")
    }

    /// Adds the files of an image as docker does, under this name.
    fn image(self, name: &str, image: &Image) -> Self {
        self.file(&format!("{name}.json"), &image.config).file(&format!("{name}/layer.tar"), &image.layer)
    }

    /// Adds an image as the OCI does.
    fn blobs(self, image: &Image) -> Self {
        [&image.layer, &image.config, &image.manifest].into_iter().fold(self, |archive, bytes| archive.blob(bytes))
    }

    fn blob(self, bytes: &[u8]) -> Self {
        self.file(&format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes)
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.finish().unwrap()
    }
}

/// What docker states of an image with the files of [`Archive::image`].
fn docker(names: &[&str], tag: &str) -> Value {
    let image = |name: &&str| {
        json!({"Config": format!("{name}.json"), "RepoTags": [format!("reg.example/{name}:{tag}")],
        "Layers": [format!("{name}/layer.tar")]})
    };
    names.iter().map(image).collect()
}

pub fn index(images: &[(&Image, &str)]) -> Value {
    let entry = |(image, name): &(&Image, &str)| {
        let mut entry = descriptor("manifest.v1+json", &image.manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    json!({"schemaVersion": 2, "manifests": images.iter().map(entry).collect::<Vec<_>>()})
}

/// A complete archive of one image.
pub fn archive_of(image: &Image, name: &str) -> Vec<u8> {
    Archive::new().json("index.json", &index(&[(image, name)])).blobs(image).bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs a program with this input, and returns what it writes.
fn feed(program: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tar and gzip are installed");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

struct Store {
    home: TempDir,
    images: Images,
}

fn store(limits: Limits) -> Store {
    let home = tempfile::tempdir().unwrap();
    let images = Images::open(home.path().join("images"), limits, RegistryOptions::default()).unwrap();
    Store { home, images }
}

impl Store {
    fn load(&self, archive: impl Read) -> Result<Vec<Loaded>, LoadError> {
        self.images.load(archive, None).map_err(|error| match error {
            Error::Load(error) => error,
            other => panic!("expected an error of loading: {other}"),
        })
    }

    /// Loads an archive that must fail, and checks that nothing remains of it.
    fn refused(&self, archive: impl Read) -> LoadError {
        let error = self.load(archive).unwrap_err();
        for directory in ["partial", "holds", "blobs/sha256"] {
            let left: Vec<_> = fs::read_dir(self.home.path().join("images").join(directory)).unwrap().collect();
            assert!(left.is_empty(), "{error}: {left:?}");
        }
        assert!(self.images.list().unwrap().is_empty());
        assert!(error.to_string().chars().all(|c| !c.is_control()), "{error}");
        error
    }
}

#[test]
fn images_that_share_blobs_are_loaded() {
    let (one, other) = (Image::new(1000, 1), Image::new(1000, 1));
    assert_eq!(one.layer, other.layer);
    let docker_archive = |store: &Store| {
        let archive =
            Archive::new().image("a", &one).link("b/layer.tar", "../a/layer.tar").file("b.json", &other.config);
        store.load(&archive.json("manifest.json", &docker(&["a", "b"], "1")).bytes()[..]).unwrap()
    };
    let oci_archive = |store: &Store| {
        let archive =
            Archive::new().json("index.json", &index(&[(&one, "reg.example/a:1"), (&other, "reg.example/b:1")]));
        store.load(&archive.blobs(&one).bytes()[..]).unwrap()
    };
    for load in [&docker_archive as &dyn Fn(&Store) -> Vec<Loaded>, &oci_archive] {
        let store = store(Limits::default());
        let loaded = load(&store);
        assert_eq!(loaded.iter().map(|one| one.references.len()).sum::<usize>(), 2);
        assert_eq!(store.images.list().unwrap().len(), 2);
        assert_eq!(store.images.inspect("reg.example/b:1").unwrap().layers.len(), 1);
    }
}

#[test]
fn short_and_complete_names_are_the_same_image() {
    let image = Image::new(10, 1);
    let of = |name: &str| Archive::new().json("index.json", &index(&[(&image, name)])).blobs(&image).bytes();
    let store = store(Limits::default());
    let short = store.load(&of("python:3.12")[..]).unwrap();
    let complete = store.load(&of(&short[0].references[0].to_string())[..]).unwrap();
    assert_eq!((short, store.images.list().unwrap().len()), (complete, 1));
    let options = RegistryOptions { default_registry: Some("reg.example".into()), ..RegistryOptions::default() };
    let own = Images::open(store.home.path().join("own"), Limits::default(), options).unwrap();
    let loaded = own.load(&of("python:3.12")[..], None).unwrap();
    assert_eq!(loaded[0].references[0].to_string(), "reg.example/python:3.12");
    own.inspect("python:3.12").unwrap();
}

#[test]
fn names_in_archives_lead_to_members_alone() {
    let (store, image) = (store(Limits::default()), Image::new(1000, 1));
    let secret = store.home.path().join("secret");
    fs::write(&secret, &image.layer).unwrap();
    let path = secret.display().to_string();
    for name in [&path, "../../secret", "/a/../../secret"] {
        let mut wanted = docker(&["a"], "1");
        wanted[0]["Layers"] = json!([name]);
        // A member that would lead out of a directory, and a link to the file.
        for archive in [Archive::new().file("../../secret", b"x"), Archive::new().link("secret", &path)] {
            let archive = archive.file("a.json", &image.config).json("manifest.json", &wanted).bytes();
            let error = store.refused(&archive[..]);
            assert!(matches!(error, LoadError::Malformed(_)), "{error}");
            assert!(error.to_string().ends_with("is missing"), "{error}");
        }
        let layout = tempfile::tempdir().unwrap();
        fs::write(layout.path().join("a.json"), &image.config).unwrap();
        fs::write(layout.path().join("manifest.json"), wanted.to_string()).unwrap();
        store.images.load_layout(layout.path(), None).unwrap_err();
    }
    // A program that takes such names for paths writes to the file.
    let inner = store.home.path().join("a/b");
    fs::create_dir_all(&inner).unwrap();
    let archive = Archive::new().file("../../secret", b"x").bytes();
    feed(Command::new("tar").arg("-C").arg(&inner).args(["-xPf", "-"]), &archive);
    assert_eq!(fs::read(&secret).unwrap(), b"x");
    let nested = Archive::new().link("a/layer.tar", "../b/layer.tar").link("b/layer.tar", "../a/layer.tar");
    let archive = nested.file("a.json", &image.config).json("manifest.json", &docker(&["a"], "1")).bytes();
    assert!(store.refused(&archive[..]).to_string().ends_with("is missing"));
}

#[test]
fn links_do_not_lead_out_of_a_layout() {
    let (store, image) = (store(Limits::default()), Image::new(1000, 1));
    let outside = tempfile::tempdir().unwrap();
    let write = |root: &Path, image: &Image| {
        fs::create_dir_all(root.join("sha256")).unwrap();
        for bytes in [&image.layer, &image.config, &image.manifest] {
            fs::write(root.join("sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
        }
    };
    write(outside.path(), &image);
    let layout = tempfile::tempdir().unwrap();
    fs::write(layout.path().join("index.json"), index(&[(&image, "reg.example/a:1")]).to_string()).unwrap();
    symlink(outside.path(), layout.path().join("blobs")).unwrap();
    let error = store.images.load_layout(layout.path(), None).unwrap_err();
    assert!(error.to_string().ends_with("is a link"), "{error}");
    fs::remove_file(layout.path().join("blobs")).unwrap();
    write(&layout.path().join("blobs"), &image);
    let layer = layout.path().join("blobs/sha256").join(Digest::of(&image.layer).hex());
    fs::remove_file(&layer).unwrap();
    symlink("/etc/passwd", &layer).unwrap();
    store.images.load_layout(layout.path(), None).unwrap_err();
    fs::remove_file(&layer).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &layer, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let error = store.images.load_layout(layout.path(), None).unwrap_err();
    assert!(error.to_string().ends_with("is not a regular file"), "{error}");
    fs::remove_file(&layer).unwrap();
    fs::write(&layer, &image.layer).unwrap();
    store.images.load_layout(layout.path(), None).unwrap();
}

#[test]
fn content_with_a_wrong_digest_is_refused() {
    let (store, image) = (store(Limits::default()), Image::new(1000, 1));
    let index = index(&[(&image, "reg.example/a:1")]);
    for wrong in [&image.layer, &image.config, &image.manifest] {
        let path = format!("blobs/sha256/{}", Digest::of(wrong).hex());
        let mut bytes = wrong.clone();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        let mut archive = Archive::new().json("index.json", &index).file(&path, &bytes);
        for right in [&image.layer, &image.config, &image.manifest].into_iter().filter(|right| *right != wrong) {
            archive = archive.blob(right);
        }
        let error = store.refused(&archive.bytes()[..]);
        assert!(matches!(error, LoadError::Store(StoreError::WrongDigest { .. })), "{error}");
    }
    let other = Image::new(1000, 2);
    let archive = Archive::new().file("a.json", &image.config).file("a/layer.tar", &other.layer);
    let error = store.refused(&archive.json("manifest.json", &docker(&["a"], "1")).bytes()[..]);
    assert!(matches!(error, LoadError::Store(StoreError::WrongDigest { .. })), "{error}");
}

#[test]
fn members_that_occur_twice_are_refused_unless_they_are_the_same() {
    let (store, image, other) = (store(Limits::default()), Image::new(1000, 1), Image::new(1000, 2));
    let begin = || Archive::new().json("manifest.json", &docker(&["a"], "1")).image("a", &image);
    let twice = [
        begin().file("a/layer.tar", &other.layer),
        begin().file("./a//layer.tar", &other.layer),
        begin().link("a/layer.tar", "../b/layer.tar"),
        begin().link("c", "a").link("c", "b"),
        Archive::new().link("a.json", "b").image("a", &image),
    ];
    for archive in twice {
        let error = store.refused(&archive.bytes()[..]).to_string();
        assert!(error.ends_with("occurs twice"), "{error}");
    }
    store.load(&begin().image("a", &image).bytes()[..]).unwrap();
}

#[test]
fn large_documents_and_bombs_are_refused_before_they_fill_a_disk() {
    let limits = Limits { layer_bytes: 300 << 20, image_bytes: 400 << 20, archive_members: 20, ..Limits::default() };
    let store = store(limits);
    let zeros = |count: usize| vec![0; count];
    let large = [
        // An index and a manifest, also as gzip that stands for them.
        Archive::new().file("index.json", &zeros((4 << 20) + 1)).bytes(),
        Archive::new().file("manifest.json", &zeros((4 << 20) + 1)).bytes(),
        gzip(&Archive::new().file("index.json", &zeros(5 << 20)).bytes()),
        // A member that is skipped.
        gzip(&Archive::new().file("VERSION", &zeros(65 << 20)).bytes()),
        // Too many of them.
        (0..21).fold(Archive::new(), |archive, n| archive.file(&format!("{n}"), b"")).bytes(),
        (0..21).fold(Archive::new(), |archive, n| archive.link(&format!("{n}"), "x")).bytes(),
        (0..400).fold(Archive::new(), |archive, _| archive.file("VERSION", b"")).bytes(),
    ];
    // A program without a limit writes all of it.
    let bomb = &large[3];
    assert!(bomb.len() < 1 << 20 && feed(Command::new("gzip").arg("-dc"), bomb).len() > 65 << 20);
    for (at, archive) in large.iter().enumerate() {
        let error = store.refused(&archive[..]);
        assert!(matches!(error, LoadError::TooLarge(_)), "{at}: {error}");
    }
    let small = self::store(Limits { layer_bytes: 10_000, image_bytes: 15_000, ..Limits::default() });
    let image = Image::new(10_001, 1);
    let error = small.refused(&archive_of(&image, "reg.example/a:1")[..]).to_string();
    assert!(error.ends_with("has more than 10000 bytes"), "{error}");
    let members = Archive::new().file("a", &zeros(9000)).file("b", &zeros(9000)).bytes();
    assert!(small.refused(&members[..]).to_string().ends_with("more than 15000 bytes"));
}

#[test]
fn hostile_documents_are_refused() {
    let (store, image) = (store(Limits::default()), Image::new(10, 1));
    let index_of = |value: Value| Archive::new().json("index.json", &value).blobs(&image).bytes();
    let mut many = index(&[(&image, "reg.example/a:1")]);
    many["manifests"] = vec![many["manifests"][0].clone(); 65].into();
    let mut names = docker(&["a"], "1");
    names[0]["RepoTags"] = vec!["reg.example/a:1"; 65].into();
    let mut name = index(&[(&image, "reg.example/a:1")]);
    name["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = json!("a:\u{1b}[31m");
    let mut missing = docker(&["a"], "1");
    missing[0]["Config"] = json!("\u{1b}[31m\n");
    let nested = Image { manifest: index(&[(&image, "x:y")]).to_string().into_bytes(), ..image.clone() };
    let twice = Image { manifest: index(&[(&nested, "x:y")]).to_string().into_bytes(), ..image.clone() };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for archive in [
        Archive::new().bytes(),
        Archive::new().file("index.json", b"[]").bytes(),
        Archive::new().file("index.json", deep.as_bytes()).bytes(),
        index_of(json!({"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]})),
        index_of(many),
        index_of(name),
        Archive::new()
            .json("index.json", &index(&[(&twice, "x:y")]))
            .blobs(&image)
            .blobs(&nested)
            .blobs(&twice)
            .bytes(),
        Archive::new().json("manifest.json", &names).image("a", &image).bytes(),
        Archive::new().json("manifest.json", &missing).image("a", &image).bytes(),
        Archive::new().json("manifest.json", &docker(&["a"], "..")).image("a", &image).bytes(),
        vec![0x1f, 0x8b, 8, 0],
        b"not an archive".repeat(100),
    ] {
        store.refused(&archive[..]);
    }
}
