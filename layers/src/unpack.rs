//! Reads layers one after the other into a tree and an image. Owns what an entry of an archive does to
//! them. It makes no system call but reads of the layers and writes of the image, and starts nothing.

use crate::{
    erofs::{
        self,
        attributes::{self, AttributeError},
    },
    format::{Format, FormatError},
    limits::{self, Exceeded, Limits, MAX_LAYERS},
    listing,
    names::{self, Meaning, NameError},
    output::{BLOCK, Output, OutputError},
    stream::LayerStream,
    tree::{Content, FileExtent, Inode, LayerNumber, Metadata, Tree, TreeError},
};
use sandboxvm_archive::{Entry, Extent, Kind, ReadError, Reader};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

/// Number of uncompressed bytes between two reports of progress.
const PROGRESS_STEP: u64 = 1 << 20;

/// SHA-256 digest of the uncompressed bytes of a layer.
pub type DiffId = [u8; 32];

/// One layer.
#[derive(Debug)]
pub struct Layer<R> {
    /// Where its bytes come from.
    pub input: R,
    /// The format that its media type states. Without one, the content decides.
    pub format: Option<Format>,
    /// The digest that it must have.
    pub diff_id: Option<DiffId>,
}

/// How far a conversion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Index of the layer, from 0.
    pub layer: u16,
    /// Number of bytes that were read of it, as it is stored.
    pub read: u64,
    /// Number of uncompressed bytes of it.
    pub unpacked: u64,
}

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Size of the image in bytes. The file may have holes.
    pub bytes: u64,
    /// Number of files and directories.
    pub files: u64,
    /// Number of extended attributes of the layers that are not in the image.
    pub dropped_attributes: u64,
    /// Digest of each layer.
    pub diff_ids: Vec<DiffId>,
}

/// Why layers do not become an image.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A layer is invalid.
    #[error("layer {}: {problem}", .layer + 1)]
    Layer {
        /// Its index, from 0.
        layer: usize,
        /// What is wrong.
        problem: LayerError,
    },
    /// The image cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// There are too many layers.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// Why a layer is invalid.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It cannot be read, or is not an archive.
    #[error(transparent)]
    Archive(#[from] ReadError),
    /// It has another format than stated.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It has another digest than stated.
    #[error("the digest is sha256:{found}, expected sha256:{expected}")]
    Digest {
        /// The digest that the configuration of the image states, in hexadecimal digits.
        expected: String,
        /// The digest of the content.
        found: String,
    },
    /// An entry is invalid.
    #[error("invalid entry \"{}\": {problem}", .path.escape_ascii())]
    Entry {
        /// Its path in the archive.
        path: Vec<u8>,
        /// What is wrong.
        problem: EntryError,
    },
    /// The image cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A limit.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// Why an entry is invalid.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Its path, or the target of a hard link.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its place in the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Its extended attributes.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
    /// The number of a device has more than 12 or 20 bits.
    #[error("the number of the device is too large")]
    DeviceNumber,
    /// The target of a symbolic link is empty or contains a NUL byte.
    #[error("the target of the symbolic link is invalid")]
    SymlinkTarget,
    /// The kind of the entry is not one of images.
    #[error("unknown kind of entry {0:#04x}")]
    Kind(u8),
}

/// Turns layers, the lowest one first, into one EROFS image in an empty file. The file is not synced.
/// `directories`, the working directory and the volumes of the image, are made where no layer has them, with
/// the owner root and the mode 0755, as docker makes them in a container. Where that is impossible, they stay
/// missing, and a process that needs them fails.
///
/// # Errors
/// Every [`UnpackError`]. The content of the file is undefined then.
pub fn unpack<R: Read>(
    layers: impl IntoIterator<Item = Layer<R>>,
    directories: &[Vec<u8>],
    image: OwnedFd,
    limits: &Limits,
    mut progress: impl FnMut(Progress),
) -> Result<Summary, UnpackError> {
    let mut output = Output::new(image, limits.image_bytes);
    // The superblock has its block to itself.
    output.skip(BLOCK)?;
    let (unpacker, diff_ids) = read(layers, directories, output, true, limits, &mut progress)?;
    let (files, dropped_attributes) = (unpacker.tree.inode_count() as u64, unpacker.dropped_attributes);
    let uuid = erofs::uuid(&Sha256::digest(diff_ids.concat()).into());
    let bytes = erofs::write(&unpacker.tree, unpacker.output, uuid)?;
    Ok(Summary { bytes, files, dropped_attributes, diff_ids })
}

/// Maximum size in bytes of a list of names, whatever the limits say: its reader keeps the names in memory.
const MAX_LIST: u64 = 2 << 30;

/// Reads layers as [`unpack`] does, and writes a tar archive of the names of the image instead: directories and
/// symbolic links with their metadata, and every other file as an empty one. Paths of more than 4095 bytes are
/// left out. A directory precedes what is in it.
///
/// # Errors
/// Every [`UnpackError`]. The content of the file is undefined then.
pub fn list<R: Read>(
    layers: impl IntoIterator<Item = Layer<R>>,
    directories: &[Vec<u8>],
    list: OwnedFd,
    limits: &Limits,
    mut progress: impl FnMut(Progress),
) -> Result<Summary, UnpackError> {
    let output = Output::new(list, limits.image_bytes.min(MAX_LIST));
    let (unpacker, diff_ids) = read(layers, directories, output, false, limits, &mut progress)?;
    let (files, dropped_attributes) = (unpacker.tree.inode_count() as u64, unpacker.dropped_attributes);
    let bytes = listing::write(&unpacker.tree, unpacker.output)?;
    Ok(Summary { bytes, files, dropped_attributes, diff_ids })
}

/// Reads layers into a tree, and their content into the output if it is kept.
fn read<'a, R: Read>(
    layers: impl IntoIterator<Item = Layer<R>>,
    directories: &[Vec<u8>],
    output: Output,
    keeps_content: bool,
    limits: &'a Limits,
    progress: &'a mut dyn FnMut(Progress),
) -> Result<(Unpacker<'a>, Vec<DiffId>), UnpackError> {
    let mut unpacker = Unpacker {
        tree: Tree::new(limits),
        output,
        keeps_content,
        limits,
        progress,
        entries: 0,
        unpacked: 0,
        reported: 0,
        dropped_attributes: 0,
    };
    let mut diff_ids = Vec::new();
    for (index, layer) in layers.into_iter().enumerate() {
        limits::check("number of layers", index as u64 + 1, MAX_LAYERS as u64)?;
        let diff_id = unpacker.layer(index, layer).map_err(|problem| match problem {
            LayerError::Output(error) => UnpackError::Output(error),
            problem => UnpackError::Layer { layer: index, problem },
        })?;
        diff_ids.push(diff_id);
    }
    for path in directories.iter().filter_map(|path| names::components(path).ok()) {
        // The number belongs to no layer: nothing is above the last one.
        let _ = unpacker.tree.make_directories(&path, LayerNumber::MAX);
    }
    Ok((unpacker, diff_ids))
}

fn hex(digest: &DiffId) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Unpacker<'a> {
    tree: Tree,
    output: Output,
    /// Whether the content of files goes to the output.
    keeps_content: bool,
    limits: &'a Limits,
    progress: &'a mut dyn FnMut(Progress),
    entries: u64,
    unpacked: u64,
    /// Uncompressed bytes of the layer when progress was last reported.
    reported: u64,
    dropped_attributes: u64,
}

impl Unpacker<'_> {
    fn layer<R: Read>(&mut self, index: usize, layer: Layer<R>) -> Result<DiffId, LayerError> {
        // At most 250, see `MAX_LAYERS`.
        let number = LayerNumber::try_from(index + 1).unwrap_or(LayerNumber::MAX);
        let budget = self.limits.unpacked_bytes - self.unpacked;
        let stream = LayerStream::new(layer.input, layer.format, budget, self.limits).map_err(input)??;
        let mut reader = Reader::new(stream).keep_all_attributes();
        self.reported = 0;
        while let Some(entry) = reader.next_entry()? {
            self.report(reader.input(), number);
            self.entries += 1;
            limits::check("number of entries", self.entries, self.limits.entries)?;
            self.entry(&mut reader, entry, number)?;
        }
        let (found, unpacked) = reader.into_input().finish().map_err(input)?;
        self.unpacked += unpacked;
        self.free_replaced()?;
        match layer.diff_id {
            Some(expected) if expected != found => {
                Err(LayerError::Digest { expected: hex(&expected), found: hex(&found) })
            }
            _ => Ok(found),
        }
    }

    /// Reports progress, if there is some since the last report.
    fn report<R: Read>(&mut self, stream: &LayerStream<R>, layer: LayerNumber) {
        let (read, unpacked) = (stream.consumed(), stream.unpacked());
        if unpacked >= self.reported + PROGRESS_STEP {
            self.reported = unpacked;
            (self.progress)(Progress { layer: layer - 1, read, unpacked });
        }
    }

    fn entry<R: Read>(
        &mut self,
        reader: &mut Reader<LayerStream<R>>,
        entry: Entry,
        layer: LayerNumber,
    ) -> Result<(), LayerError> {
        let mut extent = FileExtent::default();
        if let Kind::File { size, extents } = &entry.kind
            && self.keeps_content
        {
            // Whiteouts have no content, but may state one.
            if let Ok(Meaning::File(_)) = names::components(&entry.path).and_then(|path| Ok(names::meaning(&path)?.1)) {
                extent = self.content(reader, *size, extents.as_deref(), layer)?;
            }
        }
        self.place(&entry, extent, layer).map_err(|problem| LayerError::Entry { path: entry.path, problem })
    }

    /// Writes the content of a file.
    fn content<R: Read>(
        &mut self,
        reader: &mut Reader<LayerStream<R>>,
        size: u64,
        extents: Option<&[Extent]>,
        layer: LayerNumber,
    ) -> Result<FileExtent, LayerError> {
        if size == 0 {
            return Ok(FileExtent::default());
        }
        self.output.pad()?;
        self.output.reserve(size)?;
        let block = self.output.blocks();
        let whole = [Extent { offset: 0, len: size }];
        let begin = self.output.position();
        for extent in extents.unwrap_or(&whole) {
            // The reader has checked that extents ascend and lie within the file.
            self.output.skip(begin.saturating_add(extent.offset).saturating_sub(self.output.position()))?;
            let mut left = extent.len;
            while left > 0 {
                let space = self.output.space()?;
                let wanted = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let count = reader.read_content(&mut space[..wanted])?;
                if count == 0 {
                    return Err(LayerError::Archive(ReadError::CutShort));
                }
                self.output.advance(count)?;
                left -= count as u64;
                self.report(reader.input(), layer);
            }
        }
        self.output.skip((begin + size).saturating_sub(self.output.position()))?;
        Ok(FileExtent { block, size })
    }

    fn place(&mut self, entry: &Entry, extent: FileExtent, layer: LayerNumber) -> Result<(), EntryError> {
        let path = names::components(&entry.path)?;
        let (above, meaning) = names::meaning(&path)?;
        let name = match meaning {
            Meaning::Ignored => return Ok(()),
            Meaning::Opaque => {
                if let Some(directory) = self.hidden(above)? {
                    self.tree.hide_content(directory, layer);
                }
                return Ok(());
            }
            Meaning::Whiteout(name) => {
                if let Some(directory) = self.hidden(above)? {
                    self.tree.hide(directory, name, layer);
                }
                return Ok(());
            }
            Meaning::Root => {
                let inode = self.inode(entry, extent)?.ok_or(TreeError::RootNotADirectory)?;
                return Ok(self.tree.describe_root(inode, layer)?);
            }
            Meaning::File(name) => name,
        };
        let inode = self.inode(entry, extent)?;
        let directory = self.tree.make_directories(above, layer)?;
        match (inode, &entry.kind) {
            (Some(inode), _) => Ok(self.tree.add(directory, name, inode, layer)?),
            (None, Kind::HardLink(target)) => {
                let target = self.tree.find_file(&names::components(target)?)?;
                Ok(self.tree.link(directory, name, target.ok_or(TreeError::NoTarget)?, layer)?)
            }
            (None, Kind::Other(kind)) => Err(EntryError::Kind(*kind)),
            (None, _) => Ok(()),
        }
    }

    /// Returns the directory of a whiteout. Where there is none, there is nothing to hide.
    fn hidden(&self, path: &[&[u8]]) -> Result<Option<u32>, TreeError> {
        match self.tree.find_directory(path) {
            Err(TreeError::NotADirectory) => Ok(None),
            found => found,
        }
    }

    /// Returns the inode of an entry, unless it is a link to another one or of an unknown kind.
    fn inode(&mut self, entry: &Entry, extent: FileExtent) -> Result<Option<Inode>, EntryError> {
        let content = match &entry.kind {
            Kind::File { .. } => Content::File(extent),
            Kind::Directory => Content::Directory(Box::default()),
            Kind::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(EntryError::SymlinkTarget);
            }
            Kind::Symlink(target) => Content::Symlink(target[..].into()),
            Kind::Device { is_block, major, minor } => {
                Content::Device { is_block: *is_block, number: device(*major, *minor)? }
            }
            Kind::Fifo => Content::Fifo,
            Kind::HardLink(_) | Kind::Other(_) => return Ok(None),
        };
        let is_symlink = matches!(content, Content::Symlink(_));
        let metadata = Metadata {
            // Linux has no other mode of symbolic links. The mask leaves twelve bits.
            mode: if is_symlink { 0o777 } else { u16::try_from(entry.mode & 0o7777).unwrap_or(0) },
            uid: entry.uid,
            gid: entry.gid,
            seconds: entry.modified.seconds,
            nanoseconds: entry.modified.nanoseconds,
        };
        let (attributes, dropped) = attributes::encode(&entry.attributes, self.limits.attribute_bytes)?;
        self.dropped_attributes += dropped;
        Ok(Some(Inode::new(metadata, content, attributes)))
    }

    /// Frees the blocks of files that are no longer in the tree.
    fn free_replaced(&mut self) -> Result<(), OutputError> {
        let mut freed = self.tree.take_freed();
        freed.sort_unstable_by_key(|extent| extent.block);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for extent in freed {
            let begin = u64::from(extent.block) * BLOCK;
            let end = begin + extent.size.next_multiple_of(BLOCK);
            match ranges.last_mut() {
                Some((_, last)) if *last == begin => *last = end,
                _ => ranges.push((begin, end)),
            }
        }
        if !ranges.is_empty() {
            // The last block may not be full.
            self.output.pad()?;
        }
        ranges.into_iter().try_for_each(|(begin, end)| self.output.punch(begin, end - begin))
    }
}

fn input(error: io::Error) -> LayerError {
    LayerError::Archive(ReadError::Input(error))
}

/// Encodes the number of a device as the kernel does (`new_encode_dev`).
fn device(major: u32, minor: u32) -> Result<u32, EntryError> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(EntryError::DeviceNumber);
    }
    Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}
