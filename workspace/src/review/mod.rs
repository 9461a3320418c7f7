//! What a sandbox changed, from the index of what it was given and the layer of its changes. Owns the
//! answers to "what changed", "how much" and "show me"; it writes nothing to the project.

pub(crate) mod compare;
pub(crate) mod content;
pub(crate) mod layer;
pub(crate) mod lines;
mod patch;

use crate::index::{Entry, Index, Kind, file::IndexError};
use compare::{Change, Changes, Pairs};
use content::Sources;
use layer::{LayerError, LayerLimits};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

/// Why changes cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The index cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The layer of changes is refused.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A content cannot be read.
    #[error("cannot read the content of \"{}\": {error}", .path.escape_ascii())]
    Content {
        /// Path in the project.
        path: Vec<u8>,
        /// The reason.
        error: io::Error,
    },
    /// The result cannot be written.
    #[error("cannot write: {0}")]
    Write(#[source] io::Error),
    /// Two sandboxes were given different files.
    #[error("cannot compare the sandboxes: they were not given the same files")]
    DifferentIndexes,
}

/// Files in which the changes of one sandbox lie, open for reading and at their beginning.
#[derive(Debug)]
pub struct ReviewFiles {
    /// The index, as [`copy_in`](crate::copy_in) made it.
    pub index: File,
    /// The layers, the lowest first.
    pub layers: Vec<File>,
    /// The layer of changes: a tar archive with whiteouts.
    pub changes: File,
}

/// How many lines of a file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Numbers of added and removed lines.
    Lines {
        /// Number of added lines.
        added: u64,
        /// Number of removed lines.
        removed: u64,
    },
    /// The file is binary, or too large to be compared line by line.
    Binary {
        /// Size before in bytes.
        before: u64,
        /// Size after in bytes.
        after: u64,
    },
    /// There is no content, or it is the same.
    Nothing,
}

/// Reads a layer of changes for what it says, without access to its contents.
///
/// # Errors
/// [`LayerError`].
pub fn examine(index: &Index, layer: impl Read, limits: &LayerLimits) -> Result<Changes, LayerError> {
    let source = u8::try_from(index.layers.len()).unwrap_or(u8::MAX);
    let layer = layer::read(layer, source, limits)?;
    Ok(compare::changes(compare::pairs(index, &layer), layer.special))
}

/// The changes of a sandbox, and access to the contents.
#[derive(Debug)]
pub struct Review {
    index: Index,
    changes: Changes,
    sources: Sources,
}

/// What errors call the index.
const INDEX: &str = "workspace.index";

impl Review {
    /// Reads the changes of a sandbox.
    ///
    /// # Errors
    /// Every [`ReviewError`] except `Write` and `DifferentIndexes`.
    pub fn open(files: ReviewFiles, limits: &LayerLimits) -> Result<Self, ReviewError> {
        let (mut review, changes) = Self::given(files)?;
        let (pairs, special) = review.add(changes, limits)?;
        review.changes = compare::changes(pairs, special);
        Ok(review)
    }

    /// Reads in what the second sandbox differs from the first one: `old` is what the first one has.
    ///
    /// # Errors
    /// Every [`ReviewError`] except `Write`.
    pub fn between(first: ReviewFiles, second: ReviewFiles, limits: &LayerLimits) -> Result<Self, ReviewError> {
        let (mut review, changes) = Self::given(first)?;
        // Their contents may lie in different layers, but each is one of the first sandbox's.
        let (other, second) = Self::given(second)?;
        let is_same = |(one, two): (&Entry, &Entry)| one.is_same_for_guest(two);
        let (one, two) = (&review.index.entries, &other.index.entries);
        if !one.keys().eq(two.keys()) || !one.values().zip(two.values()).all(is_same) {
            return Err(ReviewError::DifferentIndexes);
        }
        let (first, _) = review.add(changes, limits)?;
        let (second, special) = review.add(second, limits)?;
        let paths: BTreeSet<_> = first.keys().chain(second.keys()).cloned().collect();
        let mut pairs = Pairs::new();
        for path in paths {
            let given = || review.index.entries.get(&path).map(layer::State::from);
            let old = first.get(&path).map_or_else(given, |(_, new)| new.clone());
            let new = second.get(&path).map_or_else(given, |(_, new)| new.clone());
            let is_same = match (&old, &new) {
                (Some(old), Some(new)) => old.is_same(new),
                (old, new) => old.is_none() && new.is_none(),
            };
            if !is_same {
                pairs.insert(path, (old, new));
            }
        }
        review.changes = compare::changes(pairs, special);
        Ok(review)
    }

    fn given(files: ReviewFiles) -> Result<(Self, File), ReviewError> {
        let ReviewFiles { index, layers, changes } = files;
        let index = Index::read_file(&index, Path::new(INDEX))?;
        // A later source is a guest's.
        if !index.has_layers(layers.len()) {
            return Err(IndexError::Damaged(INDEX.into()).into());
        }
        Ok((Self { index, changes: Changes::default(), sources: Sources(layers) }, changes))
    }

    fn add(&mut self, file: File, limits: &LayerLimits) -> Result<(Pairs, BTreeSet<Vec<u8>>), ReviewError> {
        // Far below: a sandbox has at most four layers.
        let source = u8::try_from(self.sources.0.len()).unwrap_or(u8::MAX);
        let layer = layer::read(&file, source, limits)?;
        self.sources.0.push(file);
        Ok((compare::pairs(&self.index, &layer), layer.special))
    }

    /// Returns what the sandbox was given.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Returns all changes.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Returns how many lines of a file changed.
    ///
    /// # Errors
    /// [`ReviewError::Content`].
    pub fn extent(&self, change: &Change) -> Result<Extent, ReviewError> {
        let fail = |error| ReviewError::Content { path: change.path.clone(), error };
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let is_file = |state: &layer::State| state.kind != Kind::Directory;
        let is_same = old.zip(new).is_some_and(|(old, new)| old.has_same_content(new));
        if is_same || !old.is_some_and(is_file) && !new.is_some_and(is_file) {
            return Ok(Extent::Nothing);
        }
        let texts = self.sources.text(old).map_err(fail)?.zip(self.sources.text(new).map_err(fail)?);
        Ok(match texts {
            Some((before, after)) => {
                let (added, removed) = lines::count(&before, &after);
                Extent::Lines { added, removed }
            }
            None => Extent::Binary { before: content::size(old), after: content::size(new) },
        })
    }

    /// Writes one change as a part of a patch that `git apply --binary` applies. Returns false if it has no form
    /// in such a patch: directories, and permissions that git does not record. Contents are as the guest wrote
    /// them: escape them for a terminal.
    ///
    /// # Errors
    /// [`ReviewError::Write`], also if a content cannot be read.
    pub fn write_patch(&self, change: &Change, out: &mut impl Write) -> Result<bool, ReviewError> {
        patch::write(&self.sources, change, out).map_err(ReviewError::Write)
    }
}
