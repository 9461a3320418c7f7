//! The merged tree of all layers: names, metadata, and where the content of files lies in the image.
//! Owns its memory and the limits on it. It knows neither archives nor the format of the image, and
//! symbolic links in it lead to other places in it and nowhere else.

mod inode;
mod resolve;
mod whiteout;

pub(crate) use inode::{Child, Content, Directory, FileExtent, Inode, Metadata};

use crate::limits::{self, Exceeded, Limits};
use std::mem;

/// Number of an inode of a [`Tree`].
pub(crate) type InodeId = u32;

/// Number of a layer, from 1. 0 is below all layers.
pub(crate) type LayerNumber = u16;

/// The root directory.
pub(crate) const ROOT: InodeId = 0;

/// Estimated memory in bytes of a name beside its own bytes: its place in a B-tree that is two thirds
/// full, and what the allocator adds.
const NAME_OVERHEAD: usize = 64;
/// Estimated memory in bytes that the writer needs for each inode.
const WRITER_OVERHEAD: usize = 16;

/// Why an entry does not fit the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A component of the path is a file.
    #[error("the path leads through a file that is not a directory")]
    NotADirectory,
    /// The path leads through too many symbolic links.
    #[error("the path leads through too many symbolic links")]
    SymlinkLoop,
    /// The target of a hard link does not exist.
    #[error("the target of the hard link does not exist")]
    NoTarget,
    /// The target of a hard link is a directory.
    #[error("the target of the hard link is a directory")]
    DirectoryTarget,
    /// The root of the image is something else than a directory.
    #[error("the root of the image is not a directory")]
    RootNotADirectory,
    /// A name in the target of a symbolic link on the path cannot exist.
    #[error("the path leads through a symbolic link with an invalid target")]
    InvalidSymlink,
    /// A limit.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    unused: Vec<InodeId>,
    freed: Vec<FileExtent>,
    memory: usize,
    max_memory: u64,
    max_depth: u16,
}

impl Tree {
    /// Returns a tree with an empty root directory.
    pub(crate) fn new(limits: &Limits) -> Self {
        let mut root = Inode::default_directory(ROOT, 0);
        root.links = 1;
        Self {
            inodes: vec![root],
            unused: Vec::new(),
            freed: Vec::new(),
            memory: 0,
            max_memory: limits.metadata_bytes,
            max_depth: limits.depth,
        }
    }

    /// Returns an inode. IDs come from the tree itself, so there is one.
    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id as usize]
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id as usize]
    }

    /// Returns an upper bound of the IDs of inodes.
    pub(crate) fn id_bound(&self) -> usize {
        self.inodes.len()
    }

    /// Returns the number of inodes.
    pub(crate) fn inode_count(&self) -> usize {
        self.inodes.len() - self.unused.len()
    }

    /// Returns the extents of files that were removed since the last call.
    pub(crate) fn take_freed(&mut self) -> Vec<FileExtent> {
        mem::take(&mut self.freed)
    }

    fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<Child> {
        self.directory(directory)?.children.get(name).copied()
    }

    /// Sets the metadata of the root directory.
    pub(crate) fn describe_root(&mut self, inode: Inode, layer: LayerNumber) -> Result<(), TreeError> {
        if !matches!(inode.content, Content::Directory(_)) {
            return Err(TreeError::RootNotADirectory);
        }
        self.describe(ROOT, inode, layer)
    }

    /// Gives a directory the metadata of another one.
    fn describe(&mut self, id: InodeId, new: Inode, layer: LayerNumber) -> Result<(), TreeError> {
        let added = new.attribute_bytes();
        let old = self.inode_mut(id);
        let removed = old.attribute_bytes();
        old.metadata = new.metadata;
        old.attributes = new.attributes;
        if let Content::Directory(directory) = &mut old.content {
            directory.described_in = layer;
        }
        self.memory = (self.memory + added).saturating_sub(removed);
        Ok(self.check_memory()?)
    }

    /// Adds a file or directory to a directory, in place of what has its name. A directory keeps the
    /// content of the directory that has its name.
    pub(crate) fn add(
        &mut self,
        directory: InodeId,
        name: &[u8],
        mut inode: Inode,
        layer: LayerNumber,
    ) -> Result<(), TreeError> {
        if let Content::Directory(content) = &mut inode.content {
            let depth = self.directory(directory).map_or(0, |above| above.depth).saturating_add(1);
            limits::check("depth of the tree in directories", depth.into(), self.max_depth.into())?;
            if let Some(child) = self.child(directory, name).filter(|child| self.directory(child.inode).is_some()) {
                self.touch(directory, name, layer);
                return self.describe(child.inode, inode, layer);
            }
            content.parent = directory;
            content.depth = depth;
            content.described_in = layer;
        }
        self.remove(directory, name);
        let id = self.new_inode(inode)?;
        self.name(directory, name, id, layer)
    }

    /// Gives a file another name.
    pub(crate) fn link(
        &mut self,
        directory: InodeId,
        name: &[u8],
        target: InodeId,
        layer: LayerNumber,
    ) -> Result<(), TreeError> {
        if self.directory(target).is_some() {
            return Err(TreeError::DirectoryTarget);
        }
        if self.child(directory, name).is_some_and(|child| child.inode == target) {
            self.touch(directory, name, layer);
            return Ok(());
        }
        // Counts before the removal of what has the name, which may be the last other name of the target.
        self.inode_mut(target).links += 1;
        self.remove(directory, name);
        self.inode_mut(target).links -= 1;
        self.name(directory, name, target, layer)
    }

    fn name(&mut self, directory: InodeId, name: &[u8], id: InodeId, layer: LayerNumber) -> Result<(), TreeError> {
        self.inode_mut(id).links += 1;
        self.memory += name.len() + NAME_OVERHEAD;
        if let Some(directory) = self.directory_mut(directory) {
            directory.children.insert(name.into(), Child { inode: id, layer });
        }
        Ok(self.check_memory()?)
    }

    /// Notes that a layer has a name.
    fn touch(&mut self, directory: InodeId, name: &[u8], layer: LayerNumber) {
        if let Some(child) = self.directory_mut(directory).and_then(|directory| directory.children.get_mut(name)) {
            child.layer = layer;
        }
    }

    fn new_inode(&mut self, inode: Inode) -> Result<InodeId, TreeError> {
        self.memory += inode.memory() + WRITER_OVERHEAD;
        self.check_memory()?;
        if let Some(id) = self.unused.pop() {
            *self.inode_mut(id) = inode;
            return Ok(id);
        }
        // The limit on memory is far below 2^32 inodes, but may be set to more.
        let id = InodeId::try_from(self.inodes.len())
            .map_err(|_| Exceeded { what: "number of files", limit: InodeId::MAX.into() })?;
        self.inodes.push(inode);
        Ok(id)
    }

    /// Removes a name, and everything below it.
    fn remove(&mut self, directory: InodeId, name: &[u8]) {
        let Some(child) = self.directory_mut(directory).and_then(|directory| directory.children.remove(name)) else {
            return;
        };
        self.memory = self.memory.saturating_sub(name.len() + NAME_OVERHEAD);
        self.release(child.inode);
    }

    /// Takes a name from an inode, and frees it with everything below it when that was the last one.
    fn release(&mut self, id: InodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let inode = self.inode_mut(id);
            inode.links -= 1;
            if inode.links > 0 {
                continue;
            }
            let inode = mem::replace(inode, Inode::unused());
            self.memory = self.memory.saturating_sub(inode.memory() + WRITER_OVERHEAD);
            self.unused.push(id);
            match inode.content {
                Content::File(extent) if extent.size > 0 => self.freed.push(extent),
                Content::Directory(directory) => {
                    for (name, child) in directory.children {
                        self.memory = self.memory.saturating_sub(name.len() + NAME_OVERHEAD);
                        pending.push(child.inode);
                    }
                }
                _ => {}
            }
        }
    }

    fn check_memory(&self) -> Result<(), Exceeded> {
        limits::check("memory for names and metadata in bytes", self.memory as u64, self.max_memory)
    }
}
