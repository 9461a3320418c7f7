//! Layers of valid archives, with any entries, become an image.
//!
//! Input: for each entry its kind, its path as the lengths of its names, and what belongs to the kind. Any
//! other kind begins the next layer. The target panics unless the same layers give the same complete
//! image a second time, whose files are at most those of the entries and their directories.

use super::layer_archive::limits;
use crate::input::{Input, file};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_images::erofs;
use sandboxvm_layers::{Layer, unpack};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

const NAMES: [&str; 8] = ["a", "b", "c", ".wh.a", ".wh..wh..opq", ".", "a/b", "long-name-of-a-file"];

fn path(input: &mut Input<'_>) -> Vec<u8> {
    let names = input.byte().unwrap_or(0) % 4;
    let names: Vec<_> = (0..=names).map(|_| NAMES[usize::from(input.byte().unwrap_or(0) % 8)]).collect();
    names.join("/").into_bytes()
}

fn image(layers: &[Vec<u8>]) -> Option<(Vec<u8>, u64)> {
    let mut image = file(&[]);
    let layers = layers.iter().map(|layer| Layer { input: &layer[..], format: None, diff_id: None });
    let target: File = image.try_clone().expect("a descriptor");
    let summary = unpack(layers, &[], target.into(), &limits(), |_| {}).ok()?;
    assert_eq!(erofs::check(&image).expect("a complete image").bytes, summary.bytes);
    let mut bytes = Vec::new();
    image.seek(SeekFrom::Start(0)).expect("the image can be read");
    image.read_to_end(&mut bytes).expect("the image can be read");
    Some((bytes, summary.files))
}

/// Unpacks layers. The module describes the input.
pub fn layer_changes(data: &[u8]) {
    let mut input = Input::new(data);
    let mut writers = vec![Writer::new(Vec::new())];
    let mut entries = 0;
    while let Some(kind) = input.byte() {
        let path = path(&mut input);
        let byte = input.byte().unwrap_or(0);
        let kind = match kind % 8 {
            0 | 1 => Kind::File { size: u64::from(byte) * 40, extents: None },
            2 => Kind::Directory,
            3 => Kind::Symlink(self::path(&mut input)),
            4 => Kind::HardLink(self::path(&mut input)),
            5 => Kind::Device { is_block: byte & 1 == 1, major: u32::from(byte) << 5, minor: byte.into() },
            6 => Kind::Fifo,
            _ => {
                writers.push(Writer::new(Vec::new()));
                continue;
            }
        };
        let attributes = if byte & 2 == 2 { vec![(b"user.a".to_vec(), vec![byte; byte.into()])] } else { vec![] };
        let size = kind.stored();
        let entry = Entry { path, kind, mode: byte.into(), uid: 1, gid: 2, modified: Timestamp::default(), attributes };
        entries += 5;
        let writer = writers.last_mut().expect("at least one");
        writer.begin(&entry).expect("memory");
        writer.content(&vec![byte; usize::try_from(size).expect("some kilobytes")]).expect("memory");
        writer.end().expect("memory");
    }
    let layers: Vec<_> = writers.into_iter().map(|writer| writer.finish().expect("memory")).collect();
    let first = image(&layers);
    assert!(first.as_ref().is_none_or(|(_, files)| *files <= 1 + 2 * entries));
    assert!(first == image(&layers), "the same layers give another image");
}
