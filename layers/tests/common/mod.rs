//! Layers made by GNU tar and by hand, images of them, and what a mounted tree contains.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test program uses a part of it")]

pub mod oci;
pub mod reader;

use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_layers::{Layer, Limits, Summary, UnpackError, unpack};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

/// Packs a directory with GNU tar.
pub fn tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--numeric-owner"]);
    if options.iter().all(|option| !["--format=gnu", "--format=ustar"].contains(option)) {
        command.args(["--format=pax", "--xattrs", "--xattrs-include=*"]);
    }
    if !options.contains(&"--format=ustar") {
        command.arg("--sparse");
    }
    command.args(options).arg("-C").arg(directory).args(["-cf", "-", "."]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn entry(path: &str, kind: Kind) -> Entry {
    let mode = if kind == Kind::Directory { 0o750 } else { 0o640 };
    let modified = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
    Entry { path: path.into(), kind, mode, uid: 7, gid: 8, modified, attributes: vec![] }
}

pub fn directory(path: &str) -> (Entry, Vec<u8>) {
    (entry(path, Kind::Directory), vec![])
}

pub fn file(path: &str, content: &str) -> (Entry, Vec<u8>) {
    (entry(path, Kind::File { size: content.len() as u64, extents: None }), content.into())
}

pub fn symlink(path: &str, target: &str) -> (Entry, Vec<u8>) {
    (entry(path, Kind::Symlink(target.into())), vec![])
}

pub fn link(path: &str, target: &str) -> (Entry, Vec<u8>) {
    (entry(path, Kind::HardLink(target.into())), vec![])
}

pub fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.begin(entry).unwrap();
        writer.content(content).unwrap();
        writer.end().unwrap();
    }
    writer.finish().unwrap()
}

/// Unpacks layers into a file in the temporary directory.
pub fn image<L: AsRef<[u8]>>(layers: &[L], limits: &Limits) -> Result<(File, Summary), UnpackError> {
    let file = tempfile::tempfile().unwrap();
    let layers = layers.iter().map(|layer| Layer { input: layer.as_ref(), format: None, diff_id: None });
    let summary = unpack(layers, &[], file.try_clone().unwrap().into(), limits, |_| {})?;
    assert_eq!(file.metadata().unwrap().len(), summary.bytes);
    Ok((file, summary))
}

pub fn bytes(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Returns the tree of an image of these layers, which the kernel's format allows.
pub fn tree<L: AsRef<[u8]>>(layers: &[L]) -> BTreeMap<String, reader::Node> {
    let (file, _) = image(layers, &Limits::default()).unwrap();
    reader::read(&bytes(&file))
}

pub fn fsck(image: &Path) {
    let output = Command::new("fsck.erofs").arg("-d9").arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A file of a tree, as lstat(2) and other calls describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub links: u64,
    pub device: u64,
    pub size: u64,
    pub content: Vec<u8>,
    pub target: PathBuf,
    pub attributes: String,
    /// The first path of the same inode.
    pub same_as: PathBuf,
}

/// Describes all files below a directory.
pub fn describe(root: &Path) -> BTreeMap<PathBuf, Described> {
    let mut all = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            pending.extend(names.into_iter().rev());
        }
        let is_special = kind.is_char_device() || kind.is_block_device() || kind.is_fifo();
        let described = Described {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            links: if kind.is_dir() { 0 } else { metadata.nlink() },
            device: metadata.rdev(),
            size: if kind.is_dir() { 0 } else { metadata.size() },
            content: if kind.is_file() { fs::read(&path).unwrap() } else { vec![] },
            target: if kind.is_symlink() { fs::read_link(&path).unwrap() } else { PathBuf::new() },
            attributes: if is_special { String::new() } else { attributes(&path) },
            same_as: if kind.is_dir() {
                PathBuf::new()
            } else {
                first.entry(metadata.ino()).or_insert_with(|| relative.clone()).clone()
            },
        };
        all.insert(relative, described);
    }
    all
}

fn attributes(path: &Path) -> String {
    let output =
        Command::new("getfattr").args(["-h", "-d", "-m", "-", "-e", "hex", "--absolute-names"]).arg(path).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<_> = text.lines().filter(|line| line.contains('=') && !line.starts_with('#')).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// A mounted image.
pub struct Mounted {
    _directory: tempfile::TempDir,
    pub root: PathBuf,
}

impl Mounted {
    /// Mounts an image with this kernel, if it can.
    pub fn new(image: &Path) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("mnt");
        fs::create_dir(&root).unwrap();
        let output =
            Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(&root).output().unwrap();
        if output.status.success() {
            return Some(Self { _directory: directory, root });
        }
        let supported = fs::read_to_string("/proc/filesystems").unwrap().contains("erofs");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !supported || !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists(),
            "{message}"
        );
        eprintln!("skipped: this host mounts no EROFS image from a file: {message}");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.root).status();
    }
}

/// Writes an image of layers to a path.
pub fn write_image<L: AsRef<[u8]>>(layers: &[L], path: &Path) -> Summary {
    let (file, summary) = image(layers, &Limits::default()).unwrap();
    File::create(path).unwrap().write_all(&bytes(&file)).unwrap();
    summary
}
