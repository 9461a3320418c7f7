//! Random projects, random changes of them, and mounts that show what layers contain.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test program uses a part of it")]

pub mod sandbox;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

pub fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Pseudo-random numbers (xorshift64*), the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// Names that are difficult for one reason or another.
const NAMES: &[&str] =
    &["a", "b", "c-d", "c", "long name", "new\nline", "esc\x1b[2J", "ü", ".hidden", "a.b", "-rf", "\u{202e}x", "a\\b"];

fn name(random: &mut Random) -> String {
    let name = NAMES[random.below(NAMES.len())];
    if random.below(3) == 0 { format!("{name}{}", random.below(9)) } else { name.to_owned() }
}

pub fn content(random: &mut Random) -> Vec<u8> {
    match random.below(5) {
        0 => Vec::new(),
        1 => (0..random.below(9000)).map(|_| random.below(256) as u8).collect(),
        2 => b"no newline".to_vec(),
        _ => (0..random.below(300)).flat_map(|_| format!("line {}\n", random.below(40)).into_bytes()).collect(),
    }
}

fn directories(root: &Path) -> Vec<PathBuf> {
    describe(root, None).iter().filter(|(_, file)| file.kind == 'd').map(|(path, _)| root.join(path)).collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn add(root: &Path, random: &mut Random) {
    let directories = directories(root);
    let path = directories[random.below(directories.len())].join(name(random));
    if path.symlink_metadata().is_ok() || path.components().count() > 16 {
        return;
    }
    match random.below(10) {
        0 | 1 => fs::create_dir(&path).unwrap(),
        2 => symlink(name(random), &path).unwrap(),
        _ => {
            fs::write(&path, content(random)).unwrap();
            set_mode(&path, [0o644, 0o600, 0o755][random.below(3)]);
        }
    }
}

/// Adds about `count` files to a project.
pub fn grow(root: &Path, random: &mut Random, count: usize) {
    for _ in 0..count {
        add(root, random);
    }
}

fn remove(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
}

/// Changes a project: contents, modes, kinds, names, and what is there.
pub fn change_randomly(root: &Path, random: &mut Random, count: usize) {
    for _ in 0..count {
        let all: Vec<_> = describe(root, None).into_iter().filter(|(path, _)| path != Path::new("")).collect();
        if all.is_empty() {
            return grow(root, random, 10);
        }
        let (path, file) = &all[random.below(all.len())];
        let path = root.join(path);
        match (random.below(8), file.kind) {
            (0, _) => remove(&path),
            (1, 'f' | 'd') => set_mode(&path, [0o700, 0o755, 0o750][random.below(3)]),
            (2, _) => {
                remove(&path);
                if random.below(2) == 0 {
                    fs::create_dir(&path).unwrap();
                    fs::write(path.join("inside"), content(random)).unwrap();
                } else {
                    symlink("elsewhere", &path).unwrap();
                }
            }
            (3, _) => {
                let to = path.with_file_name(name(random));
                if to.symlink_metadata().is_err() {
                    // An overlay refuses to rename directories of lower layers.
                    let _ = fs::rename(&path, to);
                }
            }
            // The same size, and soon enough for the same time.
            (4, 'f') => {
                let mut bytes = fs::read(&path).unwrap();
                if let Some(first) = bytes.first_mut() {
                    *first = first.wrapping_add(1);
                }
                fs::write(&path, bytes).unwrap();
            }
            (_, 'f') => fs::write(&path, content(random)).unwrap(),
            _ => add(root, random),
        }
    }
}

/// A file of a tree, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub kind: char,
    pub mode: u32,
    pub modified: (i64, i64),
    pub content: Vec<u8>,
}

/// Describes all files below a directory, and asserts that they have this owner.
pub fn describe(root: &Path, owner: Option<(u32, u32)>) -> BTreeMap<PathBuf, Described> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let (kind, content) = if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            ('d', Vec::new())
        } else if kind.is_symlink() {
            ('l', fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
        } else {
            assert!(kind.is_file(), "{}", path.display());
            ('f', fs::read(&path).unwrap())
        };
        // The root of an overlay is that of its upper directory.
        if let Some(owner) = owner.filter(|_| path != root) {
            assert_eq!((metadata.uid(), metadata.gid()), owner, "{}", path.display());
        }
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let relative = path.strip_prefix(root).unwrap().to_owned();
        all.insert(relative, Described { kind, mode: metadata.mode() & 0o7777, modified, content });
    }
    all
}

fn succeeds(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// Layers as an overlay of the kernel, with an upper directory that can be changed.
pub struct Overlay {
    pub root: PathBuf,
    pub upper: PathBuf,
    mounts: Vec<PathBuf>,
    _directory: tempfile::TempDir,
}

impl Overlay {
    /// Mounts layers, if this host can.
    pub fn new(layers: &[PathBuf]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let mut overlay = Self { root: at("root"), upper: PathBuf::new(), mounts: vec![], _directory: directory };
        let base = overlay._directory.path().to_owned();
        let writable = base.join("writable");
        fs::create_dir(&writable).unwrap();
        overlay.mount(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&writable), &writable)?;
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let mut lower = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            let at = base.join(format!("layer{number}"));
            fs::create_dir(&at).unwrap();
            overlay.mount(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(layer).arg(&at), &at)?;
            lower.insert(0, at.display().to_string());
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        let root = overlay.root.clone();
        overlay.mount(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root), &root)?;
        overlay.upper = upper;
        Some(overlay)
    }

    fn mount(&mut self, command: &mut Command, at: &Path) -> Option<()> {
        let mounted = succeeds(command);
        if mounted {
            self.mounts.push(at.to_owned());
        }
        mounted.then_some(())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let _ = Command::new("umount").arg(mount).status();
        }
    }
}

/// A small file system in memory.
pub struct SmallDisk {
    pub root: PathBuf,
    _directory: tempfile::TempDir,
}

impl SmallDisk {
    pub fn new(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("disk");
        fs::create_dir(&root).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(&root);
        succeeds(&mut command).then_some(Self { root, _directory: directory })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.root).status();
    }
}
