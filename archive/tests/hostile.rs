//! Hostile archives: nothing outside the target is touched, and the limits hold.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use sandboxvm_archive::{
    Entry, Extent, Kind, ReadError, Reader, Timestamp, Totals, Trust, UnpackError, UnpackPolicy, Writer, unpack,
};
use std::{
    fs::{self, File},
    io::Read,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::Path,
};

const POLICY: UnpackPolicy<'static> = UnpackPolicy {
    trust: Trust::Nothing,
    max_bytes: 1 << 30,
    max_entries: 1000,
    keep_owner: false,
    adopt_root: false,
    umask: 0,
    progress: None,
};

fn file(path: &str, content: &str) -> (Entry, Vec<u8>) {
    (entry(path, Kind::File { size: content.len() as u64, extents: None }), content.as_bytes().to_vec())
}

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o6755,
        uid: 0,
        gid: 0,
        modified: Timestamp { seconds: 5, nanoseconds: 0 },
        attributes: vec![],
    }
}

fn other(path: &str, kind: Kind) -> (Entry, Vec<u8>) {
    (entry(path, kind), Vec::new())
}

fn link(path: &str, target: &str) -> (Entry, Vec<u8>) {
    other(path, Kind::Symlink(target.as_bytes().to_vec()))
}

fn hard_link(path: &str, target: &str) -> (Entry, Vec<u8>) {
    other(path, Kind::HardLink(target.as_bytes().to_vec()))
}

fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.begin(entry).unwrap();
        writer.content(content).unwrap();
        writer.end().unwrap();
    }
    writer.finish().unwrap()
}

/// A target in a directory whose other files must not change.
struct Place {
    home: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("target")).unwrap();
        fs::create_dir_all(home.path().join("outside")).unwrap();
        fs::write(home.path().join("outside/victim"), "untouched").unwrap();
        Self { home }
    }

    fn target(&self) -> std::path::PathBuf {
        self.home.path().join("target")
    }

    fn unpack(&self, bytes: impl Read) -> Result<Totals, UnpackError> {
        self.unpack_with(bytes, &POLICY)
    }

    fn unpack_with(&self, bytes: impl Read, policy: &UnpackPolicy<'_>) -> Result<Totals, UnpackError> {
        let directory: OwnedFd = File::open(self.target()).unwrap().into();
        let unpacked = unpack(&mut Reader::new(bytes), directory, policy);
        assert_eq!(names(self.home.path()), ["outside", "target"]);
        assert_eq!(names(&self.home.path().join("outside")), ["victim"]);
        assert_eq!(fs::read(self.home.path().join("outside/victim")).unwrap(), b"untouched");
        let about = fs::metadata(self.home.path().join("outside/victim")).unwrap();
        assert!(about.modified().unwrap().elapsed().unwrap().as_secs() < 3600, "its time has changed");
        unpacked
    }

    #[track_caller]
    fn refuses(&self, entries: &[(Entry, Vec<u8>)], why: &str) {
        let error = self.unpack(&archive(entries)[..]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn no_path_leads_out() {
    let place = Place::new();
    let absolute = place.home.path().join("outside/victim").to_string_lossy().into_owned();
    place.refuses(&[file(&absolute, "x")], "begins at the root");
    place.refuses(&[file("../outside/victim", "x")], "'..'");
    place.refuses(&[file("a/../../outside/victim", "x")], "'..'");
    place.refuses(&[other("../new/", Kind::Directory)], "'..'");
    place.refuses(&[file("", "x")], "names no file");
    place.refuses(&[link(".", "x")], "names no file");
    place.refuses(&[hard_link("a", "../outside/victim")], "'..'");
    place.refuses(&[hard_link("a", &absolute)], "begins at the root");
    assert_eq!(names(&place.target()), [""; 0]);
}

#[test]
fn no_symbolic_link_is_followed_whatever_its_origin() {
    let place = Place::new();
    let outside = place.home.path().join("outside").to_string_lossy().into_owned();
    for target in [outside.as_str(), "../outside", "/proc/self/cwd"] {
        place.refuses(&[link("a", target), file("a/victim", "x")], "symbolic links");
        place.refuses(&[link("a", target), other("a/new/", Kind::Directory)], "symbolic links");
        place.refuses(&[link("a", target), link("a/new", "x")], "symbolic links");
        place.refuses(&[link("a", target), hard_link("b", "a/victim")], "symbolic links");
        place.refuses(&[link("a", target), other("a/", Kind::Directory)], "Not a directory");
        fs::remove_file(place.target().join("a")).unwrap();
    }
    // Nor a link within the tree, nor one that existed before.
    place.refuses(&[other("d/", Kind::Directory), link("a", "d"), file("a/x", "x")], "symbolic links");
    symlink(&outside, place.target().join("before")).unwrap();
    place.refuses(&[file("before/victim", "x")], "symbolic links");
    // A file with the same name replaces a link.
    symlink(format!("{outside}/victim"), place.target().join("file")).unwrap();
    place.unpack(&archive(&[file("file", "x"), link("a", "nowhere"), file("a", "y")])[..]).unwrap();
    for (name, content) in [("file", "x"), ("a", "y")] {
        assert!(fs::symlink_metadata(place.target().join(name)).unwrap().is_file());
        assert_eq!(fs::read_to_string(place.target().join(name)).unwrap(), content);
    }
    // A link replaces a directory whose mode has not been set yet.
    let swapped = [other("q/", Kind::Directory), file("q/x", "x"), link("q", &outside), file("z", "z")];
    assert!(place.unpack(&archive(&swapped)[..]).is_err());
}

#[test]
fn hard_links_may_only_name_files_of_the_archive() {
    let place = Place::new();
    fs::write(place.target().join("mine"), "mine").unwrap();
    place.refuses(&[hard_link("a", "mine")], "not from the archive");
    place.refuses(&[hard_link("a", "missing")], "No such file");
    place.refuses(&[other("d/", Kind::Directory), hard_link("a", "d")], "not from the archive");
    let fine =
        [file("one", "1"), hard_link("two", "one"), hard_link("one", "two"), link("l", "x"), hard_link("m", "l")];
    place.unpack(&archive(&fine)[..]).unwrap();
    assert_eq!(names(&place.target()), ["d", "l", "m", "mine", "one", "two"]);
    // Writing to one name later replaces only that name.
    place.unpack(&archive(&[file("two", "other")])[..]).unwrap();
    assert_eq!(fs::read_to_string(place.target().join("one")).unwrap(), "1");
}

#[test]
fn devices_and_pipes_are_not_created_and_bits_are_cleared() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.refuses(&[other("a", Kind::Other(b'3'))], "devices");
    place.refuses(&[other("a", Kind::Other(b'4'))], "devices");
    place.refuses(&[other("a", Kind::Other(b'6'))], "named pipes");
    place.refuses(&[other("a", Kind::Other(b'V'))], "neither a file");
    assert_eq!(names(&place.target()), [""; 0]);
    place.unpack(&archive(&[file("a", "x"), other("d/", Kind::Directory)])[..]).unwrap();
    for name in ["a", "d"] {
        assert_eq!(fs::metadata(place.target().join(name)).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}

#[test]
fn limits_are_checked_before_anything_is_written() {
    let place = Place::new();
    let tebibyte = Kind::File { size: 1 << 40, extents: Some(vec![Extent { offset: 5, len: 1 }]) };
    let bomb = archive(&[(entry("bomb", tebibyte), b"x".to_vec())]);
    assert!(matches!(place.unpack(&bomb[..]), Err(UnpackError::TooLarge(_))));
    let stated = Kind::File { size: u64::MAX, extents: Some(vec![]) };
    let bombs = archive(&[other("a", stated.clone()), other("b", stated)]);
    assert!(matches!(place.unpack(&bombs[..]), Err(UnpackError::TooLarge(_))));
    let small = UnpackPolicy { max_bytes: 10, ..POLICY };
    let split = archive(&[file("a", "123456"), file("b", "123456")]);
    assert!(matches!(place.unpack_with(&split[..], &small), Err(UnpackError::TooLarge(10))));
    assert_eq!(names(&place.target()), ["a"]);

    let many: Vec<_> = (0..20).map(|number| file(&number.to_string(), "")).collect();
    let few = UnpackPolicy { max_entries: 15, ..POLICY };
    assert!(matches!(place.unpack_with(&archive(&many)[..], &few), Err(UnpackError::TooMany(15))));
    assert_eq!(names(&place.target()).len(), 15 + 1, "the number of files, and the earlier one");
}

#[test]
fn the_last_entry_of_a_name_counts_and_kinds_do_not_change() {
    let place = Place::new();
    place.unpack(&archive(&[file("a", "first"), file("./a", "second")])[..]).unwrap();
    assert_eq!(fs::read_to_string(place.target().join("a")).unwrap(), "second");
    place.refuses(&[other("d/", Kind::Directory), file("d", "x")], "Is a directory");
    place.refuses(&[file("f", "x"), other("f/", Kind::Directory)], "Not a directory");
    assert_eq!(names(&place.target()), ["a", "d", "f"]);
}

/// Returns the same bytes again and again.
struct Endless<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.bytes[self.at % self.bytes.len()..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        assert!(self.at < 1 << 30, "unpacking does not end");
        Ok(count)
    }
}

fn header(kind: u8, size: u64) -> Vec<u8> {
    // The writer always writes valid headers, so this changes one of an entry of it.
    let mut block = archive(&[file("a", "")])[..512].to_vec();
    block[156] = kind;
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[test]
fn names_and_records_of_any_length_take_bounded_memory() {
    let place = Place::new();
    for kind in [b'L', b'K', b'x', b'g'] {
        for size in [2 << 20, 8 << 30] {
            let bytes = header(kind, size - 1);
            let error = place.unpack(bytes.chain(std::io::repeat(b'1'))).unwrap_err();
            assert!(matches!(error, UnpackError::Archive(ReadError::Damaged(_))), "{error}");
        }
    }
    // Global records and empty long names, without end.
    let global = [header(b'g', 512), vec![0; 512]].concat();
    assert!(place.unpack(Endless { bytes: &global, at: 0 }).is_err());
    // Attributes without end, some in each of many headers.
    let record = b"30 SCHILY.xattr.user.aaa=1234\n";
    let mut attributes = header(b'x', record.len() as u64);
    attributes.extend_from_slice(record);
    attributes.resize(1024, 0);
    let error = place.unpack(Endless { bytes: &attributes, at: 0 }).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    // Entries without end reach the limit.
    let forever = header(b'0', 0);
    assert!(matches!(place.unpack(Endless { bytes: &forever, at: 0 }), Err(UnpackError::TooMany(1000))));
    // Blocks of extents of old GNU tar, without end.
    let mut sparse = header(b'S', 0);
    sparse[482] = 1;
    sparse[483..495].copy_from_slice(b"00000000000\0");
    sparse[148..156].fill(b' ');
    let sum: u32 = sparse.iter().map(|byte| u32::from(*byte)).sum();
    sparse[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let error = place.unpack(sparse.chain(std::io::repeat(b'0'))).unwrap_err();
    assert!(matches!(error, UnpackError::Archive(ReadError::Damaged(_))), "{error}");
}

#[test]
fn garbage_in_records_is_refused() {
    let place = Place::new();
    for records in [
        &b"garbage"[..],
        b"9 path=a\n\xff",
        b"13 size=-100\n",
        b"25 GNU.sparse.major=one\n\n\n",
        b"22 GNU.sparse.major=1\n",
        b"16 uid=99999999\n",
        b"22 uid=99999999999999\n",
        b"11 mtime=x\n",
        b"11 path=\0a\n",
    ] {
        let mut bytes = header(b'x', records.len() as u64);
        bytes.extend_from_slice(records);
        bytes.resize(1024, 0);
        bytes.extend(archive(&[file("a", "content")]));
        let unpacked = place.unpack(&bytes[..]);
        let is_fine = records == b"16 uid=99999999\n";
        assert_eq!(unpacked.is_ok(), is_fine, "{:?}: {unpacked:?}", String::from_utf8_lossy(records));
    }
    assert!(names(&place.target()).len() <= 1);
}

#[test]
fn long_names_are_refused_by_the_kernel_or_before() {
    let place = Place::new();
    place.refuses(&[file(&"n".repeat(256), "x")], "name too long");
    place.refuses(&[file(&"n/".repeat(2048), "x")], "longer than Linux takes");
    place.refuses(&[link("l", &"n".repeat(4096))], "longer than Linux takes");
    let deep = "d/".repeat(1000) + "f";
    place.unpack(&archive(&[file(&deep, "x")])[..]).unwrap();
}

/// Between two entries another process replaces a directory of the target by a link that leads out.
#[test]
fn a_swapped_directory_is_noticed() {
    let place = Place::new();
    let target = place.target();
    let outside = place.home.path().join("outside");
    let first = archive(&[other("d/", Kind::Directory), file("d/one", "1"), file("e/two", "2")]);
    let first = &first[..first.len() - 1024];
    struct Swap<'a>(&'a Path, &'a Path, bool);
    impl Read for Swap<'_> {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            if !std::mem::replace(&mut self.2, true) {
                fs::rename(self.0.join("d"), self.0.join("moved")).unwrap();
                symlink(self.1, self.0.join("d")).unwrap();
            }
            Ok(0)
        }
    }
    let second = archive(&[file("d/victim", "x")]);
    let error = place.unpack(first.chain(Swap(&target, &outside, false)).chain(&second[..])).unwrap_err();
    assert!(error.to_string().contains("symbolic links"), "{error}");
}

#[test]
fn with_a_trusted_target_links_are_followed_and_paths_begin_at_its_root() {
    let place = Place::new();
    fs::create_dir(place.target().join("usr")).unwrap();
    symlink("usr", place.target().join("bin")).unwrap();
    let policy = UnpackPolicy { trust: Trust::Target, ..POLICY };
    let bytes = archive(&[other("/bin/", Kind::Directory), file("/bin/tool", "x"), hard_link("b", "/bin/tool")]);
    place.unpack_with(&bytes[..], &policy).unwrap();
    assert_eq!(fs::read_to_string(place.target().join("usr/tool")).unwrap(), "x");
    let bytes = archive(&[file("a/../../outside/victim", "x")]);
    assert!(place.unpack_with(&bytes[..], &policy).unwrap_err().to_string().contains("'..'"));
}
