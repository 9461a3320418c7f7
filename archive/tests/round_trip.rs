//! An unpacked tree equals the packed one, and this crate and other programs read each other's
//! archives.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod tree;

use crate::tree::{description, set_time};
use proptest::prelude::*;
use rustix::fs::{XattrFlags, setxattr};
use sandboxvm_archive::{
    Entry, Extent, Kind, PackError, PackOptions, Reader, Timestamp, Totals, Trust, UnpackError, UnpackPolicy, Writer,
    pack, unpack, unpack_single,
};
use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
};

const POLICY: UnpackPolicy<'static> = UnpackPolicy {
    trust: Trust::Nothing,
    max_bytes: 1 << 30,
    max_entries: 1000,
    keep_owner: false,
    adopt_root: true,
    umask: 0,
    progress: None,
};

fn open(directory: &Path) -> OwnedFd {
    File::open(directory).unwrap().into()
}

fn packed(base: &Path, path: &str, name: &str) -> (Vec<u8>, Totals) {
    let mut writer = Writer::new(Vec::new());
    let base = open(base);
    let totals = pack(&mut writer, base.as_fd(), path.as_bytes(), name.as_bytes(), PackOptions::default()).unwrap();
    (writer.finish().unwrap(), totals)
}

fn unpacked(bytes: &[u8], into: &Path) -> Result<Totals, UnpackError> {
    unpack(&mut Reader::new(bytes), open(into), &POLICY)
}

/// Creates a directory tree with everything that an archive can contain.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("plain"), "hello\n").unwrap();
    fs::set_permissions(root.join("plain"), Permissions::from_mode(0o751)).unwrap();
    fs::write(root.join("sub/deep").join("n".repeat(200)), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("plain"), root.join("sub/twin")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("../plain", root.join("sub/relative")).unwrap();
    symlink("x".repeat(300), root.join("sub/long")).unwrap();
    let mut sparse = File::create(root.join("sparse")).unwrap();
    for at in [1 << 20, 5 << 20] {
        sparse.seek(SeekFrom::Start(at)).unwrap();
        sparse.write_all(b"data in a desert").unwrap();
    }
    sparse.set_len(64 << 20).unwrap();
    File::create(root.join("hole")).unwrap().set_len(1 << 20).unwrap();
    // Not every file system has attributes.
    let _ = setxattr(root.join("plain"), "user.test", b"attribute", XattrFlags::empty());
    set_time(&root.join("plain"), 1_000_000_000, 123_456_789);
    set_time(&root.join("empty"), -5, 250_000_000);
    set_time(&root.join("absolute"), 1_234_567_890, 1);
    set_time(&root.join("sub/deep"), 77, 0);
    fs::set_permissions(root.join("sub"), Permissions::from_mode(0o1555)).unwrap();
    set_time(&root.join("sub"), 1_111_111_111, 0);
}

#[test]
fn an_unpacked_tree_equals_the_packed_one() {
    let home = tempfile::tempdir().unwrap();
    let (from, to) = (home.path().join("from"), home.path().join("to"));
    plant(&from);
    fs::create_dir(&to).unwrap();
    let (bytes, sent) = packed(home.path(), "from", ".");
    assert!(bytes.len() < 300_000, "{} bytes: holes were packed as data", bytes.len());
    let got = unpacked(&bytes, &to).unwrap();
    assert_eq!(got, sent);
    assert_eq!(description(&to), description(&from));
    let blocks = |name: &str| fs::metadata(to.join(name)).unwrap().blocks();
    assert!(blocks("sparse") < 200 && blocks("hole") == 0, "holes were filled");
    // Unpacks again, over the existing files.
    fs::set_permissions(to.join("sub"), Permissions::from_mode(0o1755)).unwrap();
    unpacked(&bytes, &to).unwrap();
    let mut names: Vec<_> = description(&to).into_keys().collect();
    names.sort();
    assert_eq!(names, description(&from).into_keys().collect::<Vec<_>>(), "a temporary file was left");
}

#[test]
fn gnu_tar_and_this_crate_read_each_others_archives() {
    let home = tempfile::tempdir().unwrap();
    let from = home.path().join("from");
    plant(&from);
    let (bytes, _) = packed(home.path(), "from", "tree");
    fs::write(home.path().join("ours.tar"), &bytes).unwrap();
    let tar = |arguments: &[&str]| {
        let output =
            Command::new("tar").args(arguments).current_dir(home.path()).output().expect("GNU tar is installed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::create_dir(home.path().join("theirs")).unwrap();
    tar(&["--xattrs", "-xpf", "ours.tar", "-C", "theirs"]);
    assert_eq!(description(&home.path().join("theirs/tree")), description(&from));

    for format in ["posix", "gnu"] {
        let archive = format!("{format}.tar");
        let mut arguments = vec!["--sparse", "-H", format, "-cf", &archive, "-C", "from", "."];
        if format == "posix" {
            arguments.insert(0, "--xattrs");
        }
        tar(&arguments);
        let to = home.path().join(format);
        fs::create_dir(&to).unwrap();
        unpacked(&fs::read(home.path().join(&archive)).unwrap(), &to).unwrap();
        // The GNU format has no attributes, no fractions of seconds, and no times before the epoch
        // that this crate reads.
        let plain = |description: BTreeMap<String, String>| -> Vec<String> {
            let cut = |text: String| {
                let (mode, rest) = text.split_once(' ').unwrap();
                let (seconds, rest) = rest.split_once('.').unwrap();
                format!("{mode} {seconds} {}", rest.split_once(' ').unwrap().1.replace(" attribute", " "))
            };
            description.into_iter().filter(|(name, _)| name != "empty").map(|(name, text)| name + &cut(text)).collect()
        };
        if format == "posix" {
            assert_eq!(description(&to), description(&from));
        } else {
            assert_eq!(plain(description(&to)), plain(description(&from)), "{format}");
        }
    }
}

#[test]
fn a_single_file_gets_the_requested_name() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a"), "new").unwrap();
    let (bytes, _) = packed(home.path(), "a", "whatever");
    fs::create_dir(home.path().join("to")).unwrap();
    fs::write(home.path().join("to/b"), "old").unwrap();
    unpack_single(&mut Reader::new(&bytes[..]), open(&home.path().join("to")), b"b", &POLICY).unwrap();
    assert_eq!(fs::read(home.path().join("to/b")).unwrap(), b"new");
    let (tree, _) = packed(home.path(), "to", "to");
    let refused = unpack_single(&mut Reader::new(&tree[..]), open(home.path()), b"c", &POLICY);
    assert!(matches!(refused, Err(UnpackError::NotSingle)));
}

#[test]
fn a_broken_archive_leaves_the_old_file_and_nothing_beside_it() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a"), vec![b'n'; 100_000]).unwrap();
    let (bytes, _) = packed(home.path(), "a", "file");
    let to = home.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("file"), "old").unwrap();
    for cut in [100, 600, 50_000, 100_300] {
        assert!(unpacked(&bytes[..cut], &to).is_err(), "{cut}");
        assert_eq!(description(&to).keys().collect::<Vec<_>>(), ["", "file"], "{cut}");
        assert_eq!(fs::read(to.join("file")).unwrap(), b"old");
    }
    unpacked(&bytes, &to).unwrap();
    assert_eq!(fs::read(to.join("file")).unwrap().len(), 100_000);
}

/// Stores an archive. Truncates a file when it has so many bytes.
struct Cutting {
    taken: Vec<u8>,
    after: usize,
    file: File,
    to: u64,
}

impl Write for Cutting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.taken.len() >= self.after {
            self.file.set_len(self.to)?;
        }
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_unpacked_file_has_a_bit_of_the_umask() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("tree")).unwrap();
    fs::write(home.path().join("tree/file"), "x").unwrap();
    let set = |path: &str, mode| fs::set_permissions(home.path().join(path), Permissions::from_mode(mode)).unwrap();
    set("tree/file", 0o777);
    set("tree", 0o1777);
    let (bytes, _) = packed(home.path(), "tree", "made");
    let into = home.path().join("into");
    fs::create_dir(&into).unwrap();
    unpack(&mut Reader::new(&bytes[..]), open(&into), &UnpackPolicy { umask: 0o027, ..POLICY }).unwrap();
    let mode = |path: &str| fs::metadata(into.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("made"), mode("made/file")), (0o1750, 0o750));
    unpack_single(
        &mut Reader::new(&packed(home.path(), "tree/file", "x").0[..]),
        open(&into),
        b"one",
        &UnpackPolicy { umask: 0o077, ..POLICY },
    )
    .unwrap();
    assert_eq!(mode("one"), 0o700);
}

#[test]
fn a_file_that_shrinks_while_it_is_packed_is_refused_and_nothing_replaces_its_bytes() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("tree")).unwrap();
    let file = File::create(home.path().join("tree/log")).unwrap();
    // The length of the file, where its data is, and the new length: within the data, and at the
    // start of a hole.
    for (len, offset, data, to) in [(1 << 20, 0, 1 << 20, 100_000), (4 << 20, 1 << 20, 300_000, (1 << 20) + 300_000)] {
        file.set_len(0).unwrap();
        file.set_len(len).unwrap();
        file.write_all_at(&vec![b'x'; data], offset).unwrap();
        let cutting = Cutting { taken: Vec::new(), after: 64 << 10, file: file.try_clone().unwrap(), to };
        let mut writer = Writer::new(cutting);
        let base = open(home.path());
        let packed = pack(&mut writer, base.as_fd(), b"tree", b".", PackOptions::default());
        assert!(matches!(&packed, Err(PackError::Shrank(path)) if path == b"./log"), "{packed:?}");
    }
}

#[test]
fn an_entry_has_exactly_its_stated_content() {
    let mut writer = Writer::new(Vec::new());
    let entry = |path: &str, size| Entry {
        path: path.as_bytes().to_vec(),
        kind: Kind::File { size, extents: None },
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: Timestamp::default(),
        attributes: vec![],
    };
    writer.begin(&entry("long", 3)).unwrap();
    writer.content(b"more than was stated").unwrap();
    writer.end().unwrap();
    let bytes = writer.finish().unwrap();
    let to = tempfile::tempdir().unwrap();
    unpacked(&bytes, to.path()).unwrap();
    assert_eq!(fs::read(to.path().join("long")).unwrap(), b"mor");
    let mut writer = Writer::new(Vec::new());
    writer.begin(&entry("short", 5000)).unwrap();
    writer.content(b"only this").unwrap();
    assert_eq!(writer.end().unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

fn kinds() -> impl Strategy<Value = Kind> {
    let text = || proptest::collection::vec(1u8.., 1..300);
    prop_oneof![
        (0u64..1 << 40).prop_map(|size| Kind::File { size: size % 3000, extents: None }),
        (0u64..1 << 40, 1u64..100).prop_map(|(offset, len)| Kind::File {
            size: offset + 2 * len + 7,
            extents: Some(vec![Extent { offset, len }, Extent { offset: offset + len + 1, len: 5 }]),
        }),
        Just(Kind::Directory),
        text().prop_map(Kind::Symlink),
        text().prop_map(Kind::HardLink),
    ]
}

proptest! {
    #[test]
    fn every_entry_is_read_as_it_was_written(
        path in proptest::collection::vec(1u8.., 1..300),
        kind in kinds(),
        numbers in any::<(u32, u32, u32)>(),
        time in (-1_000_000_000_000i64..1_000_000_000_000, 0u32..1_000_000_000),
        attribute in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut path = path;
        if path.ends_with(b"/") && kind != Kind::Directory {
            path.push(b'x');
        }
        let entry = Entry {
            path,
            kind,
            mode: numbers.0 & 0o7777,
            uid: numbers.1,
            gid: numbers.2,
            modified: Timestamp { seconds: time.0, nanoseconds: time.1 },
            attributes: vec![(b"user.a=b".to_vec(), attribute)],
        };
        // A key ends at its first '='.
        let entry = Entry { attributes: vec![(b"user.a".to_vec(), entry.attributes[0].1.clone())], ..entry };
        let mut writer = Writer::new(Vec::new());
        for _ in 0..2 {
            writer.begin(&entry).unwrap();
            writer.content(&vec![9; 10_000]).unwrap();
            writer.end().unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(&bytes[..]);
        prop_assert_eq!(reader.next_entry().unwrap(), Some(entry.clone()));
        prop_assert_eq!(reader.next_entry().unwrap(), Some(entry));
        prop_assert_eq!(reader.next_entry().unwrap(), None);
    }

    #[test]
    fn reading_any_bytes_succeeds_or_fails_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next_entry() {}
    }
}
