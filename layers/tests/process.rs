//! The program, started as its callers start it.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{archive, directory, file, reader};
use sandboxvm_layers::{
    Format, Limits, Progress, Summary,
    process::{Event, FailureKind, LayerSource, ProcessError, Product, Unpacker},
};
use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

fn unpacker() -> Unpacker {
    Unpacker::new(PathBuf::from(env!("CARGO_BIN_EXE_sandboxvm-layers")))
}

fn stored(content: &[u8]) -> File {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file.reopen().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn run(layers: &[(LayerSource, File)], limits: &Limits) -> Result<(File, Summary, Vec<Progress>), ProcessError> {
    let image = tempfile::tempfile().unwrap();
    let layers: Vec<_> = layers.iter().map(|(source, file)| (*source, file.as_fd())).collect();
    let mut progress = Vec::new();
    let summary = unpacker().run(&layers, &[], image.as_fd(), limits, |made| progress.push(made))?;
    Ok((image, summary, progress))
}

fn failure(layers: &[(LayerSource, File)], limits: &Limits) -> (FailureKind, String) {
    match run(layers, limits) {
        Err(ProcessError::Failed(failure)) => (failure.kind, failure.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_process_makes_the_same_image_as_the_library() {
    let big = "x".repeat(3 << 20);
    let lower = archive(&[directory("a"), file("a/b", "1"), file("big", &big)]);
    let upper = archive(&[file("a/.wh.b", ""), file("c", "2"), file("big", "small")]);
    let (expected, summary) = common::image(&[&lower, &upper], &Limits::default()).unwrap();
    let source = |format, index: usize| LayerSource { format, diff_id: Some(summary.diff_ids[index]) };
    let layers =
        [(source(Some(Format::Gzip), 0), stored(&gzip(&lower))), (source(Some(Format::Tar), 1), stored(&upper))];
    let (image, found, progress) = run(&layers, &Limits::default()).unwrap();
    assert_eq!(found, summary);
    let bytes = common::bytes(&image);
    assert!(bytes == common::bytes(&expected));
    assert_eq!(reader::read(&bytes).keys().collect::<Vec<_>>(), ["", "a", "big", "c"]);
    assert!(progress.iter().any(|progress| progress.layer == 0 && progress.unpacked > 1 << 20), "{progress:?}");
    // The blocks of the first file are a hole.
    use std::os::unix::fs::MetadataExt;
    assert!(image.metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn failures_have_a_kind_and_name_the_layer() {
    let layer = archive(&[file("a", "1")]);
    let plain = LayerSource::default();
    let (kind, message) =
        failure(&[(LayerSource { diff_id: Some([1; 32]), ..plain }, stored(&layer))], &Limits::default());
    assert!(kind == FailureKind::Digest && message.starts_with("layer 1: the digest is sha256:"), "{message}");
    let (kind, message) =
        failure(&[(LayerSource { format: Some(Format::Zstd), ..plain }, stored(&layer))], &Limits::default());
    assert!(kind == FailureKind::Layer && message.contains("stated to be zstd"), "{message}");
    let bad = archive(&[file("x/../\x1b[2J", "1")]);
    let (kind, message) = failure(&[(plain, stored(&layer)), (plain, stored(&bad))], &Limits::default());
    assert!(kind == FailureKind::Layer && message.starts_with("layer 2: invalid entry \"x/../\\x1b"), "{message}");
    let limits = Limits { unpacked_bytes: 512, ..Limits::default() };
    let (kind, message) = failure(&[(plain, stored(&gzip(&layer)))], &limits);
    assert!(kind == FailureKind::Limit, "{message}");
    let (kind, message) = failure(&[(plain, stored(&gzip(&layer)[..30]))], &Limits::default());
    assert!(kind == FailureKind::Layer, "{message}");
}

#[test]
fn an_image_that_is_not_an_empty_file_is_refused() {
    let layer = stored(&archive(&[]));
    let result = unpacker().run(
        &[(LayerSource::default(), layer.as_fd())],
        &[],
        stored(b"x").as_fd(),
        &Limits::default(),
        |_| {},
    );
    assert!(matches!(result, Err(ProcessError::Ended(_))), "{result:?}");
}

#[test]
fn a_process_ends_with_its_handle() {
    // A pipe whose writer writes nothing.
    let (read, _write) = std::io::pipe().unwrap();
    let image = tempfile::tempfile().unwrap();
    let layers: [(LayerSource, BorrowedFd<'_>); 1] = [(LayerSource::default(), read.as_fd())];
    let mut unpacking = unpacker().start(Product::Image, &layers, &[], image.as_fd(), &Limits::default()).unwrap();
    assert!(matches!(unpacking.next_event(), Ok(Event::Confined(_))));
    let before = Instant::now();
    drop(unpacking);
    assert!(before.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_process_that_exceeds_its_processor_time_ends() {
    let limits = Limits { cpu_seconds: 1, ..Limits::default() };
    // An archive that has ended, and zeros behind it.
    let endless = File::open("/dev/zero").unwrap();
    let result = run(&[(LayerSource::default(), endless)], &limits);
    assert!(matches!(result, Err(ProcessError::Ended(_))), "{result:?}");
}
