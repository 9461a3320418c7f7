//! Hostile layers: each is refused, or takes bounded memory and time.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{archive, directory, entry, file, image};
use sandboxvm_archive::Kind;
use sandboxvm_layers::Limits;
use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn refused_with(layers: &[Vec<u8>], limits: &Limits, message: &str) {
    let error = image(layers, limits).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn refused(layer: &[(sandboxvm_archive::Entry, Vec<u8>)], message: &str) {
    refused_with(&[archive(layer)], &Limits::default(), message);
}

#[test]
fn names_that_no_file_can_have_are_refused() {
    refused(&[file("../x", "")], "\"..\"");
    refused(&[file("/a/../../x", "")], "\"..\"");
    refused(&[file(&"x".repeat(256), "")], "longer than 255 bytes");
    refused(&[file(".wh.", "")], "names no file");
    refused(&[file("a/.wh...", "")], "names no file");
    refused(&[file(".wh.a/b", "")], "name of a whiteout");
    refused(&[file(".", "root")], "root of the image");
    refused(&[file(&format!("{}x", "a\0b/".repeat(60)), "")], "NUL");
    assert!(image(&[archive(&[file(&"x".repeat(255), "")])], &Limits::default()).is_ok());
}

#[test]
fn names_lead_a_plain_tar_out_of_its_directory_and_not_the_layers_of_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let (root, outside) = (directory.path().join("root"), directory.path().join("outside"));
    for path in [&root, &outside] {
        std::fs::create_dir(path).unwrap();
    }
    let link = (entry("way", Kind::Symlink(outside.to_str().unwrap().into())), vec![]);
    let layers = [archive(&[link, file("../outside/one", "1")]), archive(&[file("way/two", "2")])];
    for layer in &layers {
        let tar = Command::new("tar").arg("-C").arg(&root).args(["-xPf", "-"]).stdin(Stdio::piped()).spawn();
        let mut tar = tar.expect("tar is installed");
        tar.stdin.take().unwrap().write_all(layer).unwrap();
        assert!(tar.wait().unwrap().success());
    }
    let written = |name: &str| std::fs::read_to_string(outside.join(name)).ok();
    assert_eq!((written("one").as_deref(), written("two").as_deref()), (Some("1"), Some("2")));
    refused_with(&layers, &Limits::default(), "\"..\"");
    // The target of the link is a place in the image.
    let link = (entry("way", Kind::Symlink(b"/outside".to_vec())), vec![]);
    let tree = common::tree(&[archive(&[link]), archive(&[file("way/three", "3")])]);
    assert!(tree.contains_key("outside/three") && written("three").is_none());
}

#[test]
fn entries_that_are_not_files_are_refused() {
    refused(&[(entry("x", Kind::Other(b'V')), vec![])], "unknown kind");
    refused(&[(entry("x", Kind::Device { is_block: true, major: 1 << 12, minor: 0 }), vec![])], "device");
    refused(&[(entry("x", Kind::Symlink(vec![])), vec![])], "target of the symbolic link");
    let mut bad = entry("x", Kind::Fifo);
    bad.attributes = vec![(b"user.".to_vec(), vec![])];
    refused(&[(bad, vec![])], "extended attribute");
}

#[test]
fn every_limit_holds() {
    let limits = Limits::default;
    let layer = archive(&[file("a", &"x".repeat(100_000)), file("b/c/d", "")]);
    let layers = [layer];
    refused_with(&layers, &Limits { unpacked_bytes: 50_000, ..limits() }, "uncompressed size");
    refused_with(&layers, &Limits { image_bytes: 50_000, ..limits() }, "size of the image");
    refused_with(&layers, &Limits { entries: 1, ..limits() }, "number of entries");
    refused_with(&layers, &Limits { depth: 1, ..limits() }, "depth");
    refused_with(&layers, &Limits { metadata_bytes: 300, ..limits() }, "memory");
    refused_with(&vec![archive(&[]); 251], &limits(), "number of layers");
    let mut attributes = entry("x", Kind::Fifo);
    attributes.attributes = (0..5).map(|n| (format!("user.{n}").into_bytes(), vec![0; 20_000])).collect();
    refused_with(&[archive(&[(attributes, vec![])])], &limits(), "extended attributes");
}

#[test]
fn a_sparse_bomb_takes_no_space() {
    let bomb = |size| vec![archive(&[(entry("x", Kind::File { size, extents: Some(vec![]) }), vec![])])];
    refused_with(&bomb(1 << 62), &Limits::default(), "size of the image");
    refused_with(&bomb(u64::MAX), &Limits::default(), "size of the image");
    use std::os::unix::fs::MetadataExt;
    let (file, summary) = image(&bomb(1 << 32), &Limits::default()).unwrap();
    assert!(summary.bytes > 1 << 32 && file.metadata().unwrap().blocks() < 1000);
}

#[test]
fn empty_layers_and_an_image_without_layers_are_images() {
    let none: [&[u8]; 0] = [];
    for layers in [&none[..], &[b""], &[&[0; 1024]]] {
        let found = common::tree(layers);
        assert_eq!((found.len(), found[""].mode), (1, 0o040_755));
    }
}

#[test]
fn two_hundred_and_fifty_layers_replace_one_file_in_bounded_space() {
    let layers: Vec<_> = (0..250).map(|n| archive(&[file("x", &format!("{n:5}").repeat(20_000))])).collect();
    let (file, _) = image(&layers, &Limits::default()).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(file.metadata().unwrap().blocks() * 512 < 400_000);
}

#[test]
fn whiteouts_cost_no_more_than_their_entries() {
    let lower: Vec<_> = (0..6_000).map(|n| file(&format!("d/{n}"), "")).collect();
    let mut upper: Vec<_> = (0..6_000).map(|n| file(&format!("d/new{n}"), "")).collect();
    upper.extend((0..6_000).map(|_| file("d/.wh..wh..opq", "")));
    upper.extend((0..6_000).map(|_| file(".wh.d", "")));
    let layers = [archive(&lower), archive(&upper)];
    let before = Instant::now();
    let (_, summary) = image(&layers, &Limits::default()).unwrap();
    assert_eq!(summary.files, 6_002);
    assert!(before.elapsed() < Duration::from_secs(60), "{:?}", before.elapsed());
}

#[test]
fn deep_trees_take_no_stack() {
    let path = vec!["d"; 1800].join("/");
    let limits = Limits { depth: u16::MAX, ..Limits::default() };
    let layers = [archive(&[directory(&path)]), archive(&[file("d/.wh..wh..opq", "")]), archive(&[file(".wh.d", "")])];
    let (_, summary) = image(&layers[..1], &limits).unwrap();
    assert_eq!(summary.files, 1801);
    assert_eq!(image(&layers, &limits).unwrap().1.files, 1);
    refused_with(&layers, &Limits::default(), "depth");
}
