//! Paths to directories of the tree. A symbolic link on the path leads to a place in the image, as
//! in containerd's and umoci's appliers: an absolute target begins at the root of the image, and
//! nothing is above that.

use super::{Content, InodeId, LayerNumber, ROOT, Tree, TreeError, inode::Inode};
use crate::limits;
use std::borrow::Cow;

/// Maximum number of symbolic links on one path, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// Maximum number of names on one path, those of symbolic links included.
const MAX_STEPS: u32 = 4096;

impl Tree {
    /// Returns the directory at a path, if there is one.
    pub(crate) fn find_directory(&self, path: &[&[u8]]) -> Result<Option<InodeId>, TreeError> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next()? {
            match self.step(&mut walk, &name)? {
                Step::At(inode) => walk.at = inode,
                Step::Missing => return Ok(None),
            }
        }
        Ok(Some(walk.at))
    }

    /// Returns the directory at a path for an entry of `layer`. Missing directories are created, with
    /// the mode 0755 and the owner root.
    pub(crate) fn make_directories(&mut self, path: &[&[u8]], layer: LayerNumber) -> Result<InodeId, TreeError> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next()? {
            let before = walk.at;
            match self.step(&mut walk, &name)? {
                Step::At(inode) => walk.at = inode,
                Step::Missing => {
                    let depth = self.directory(before).map_or(0, |above| above.depth).saturating_add(1);
                    limits::check("depth of the tree in directories", depth.into(), self.max_depth.into())?;
                    walk.at = self.new_inode(Inode::default_directory(before, depth))?;
                    self.name(before, &name, walk.at, layer)?;
                }
            }
            // Of a symbolic link, the layer has what is behind it and not the link.
            if self.child(before, &name).is_some_and(|child| child.inode == walk.at) {
                self.touch(before, &name, layer);
            }
        }
        Ok(walk.at)
    }

    /// Returns the file at a path. A symbolic link at its end is not followed.
    pub(crate) fn find_file(&self, path: &[&[u8]]) -> Result<Option<InodeId>, TreeError> {
        let Some((name, above)) = path.split_last() else { return Ok(Some(ROOT)) };
        let Some(directory) = self.find_directory(above)? else { return Ok(None) };
        Ok(self.child(directory, name).map(|child| child.inode))
    }

    /// Takes one step of a walk.
    fn step(&self, walk: &mut Walk<'_>, name: &[u8]) -> Result<Step, TreeError> {
        if name == b".." {
            return Ok(Step::At(self.directory(walk.at).map_or(ROOT, |directory| directory.parent)));
        }
        let Some(child) = self.child(walk.at, name) else { return Ok(Step::Missing) };
        match &self.inode(child.inode).content {
            Content::Directory(_) => Ok(Step::At(child.inode)),
            Content::Symlink(target) => walk.follow(target).map(Step::At),
            _ => Err(TreeError::NotADirectory),
        }
    }
}

enum Step {
    At(InodeId),
    Missing,
}

/// A path that is being walked.
struct Walk<'a> {
    /// The directory that was reached.
    at: InodeId,
    /// The names that are left, the last one first.
    left: Vec<Cow<'a, [u8]>>,
    links: u32,
    steps: u32,
}

impl<'a> Walk<'a> {
    fn new(path: &[&'a [u8]]) -> Self {
        Self { at: ROOT, left: path.iter().rev().map(|name| Cow::Borrowed(*name)).collect(), links: 0, steps: 0 }
    }

    fn next(&mut self) -> Result<Option<Cow<'a, [u8]>>, TreeError> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(TreeError::SymlinkLoop);
        }
        Ok(self.left.pop())
    }

    /// Continues at the target of a symbolic link. Returns the directory from which it is relative.
    fn follow(&mut self, target: &[u8]) -> Result<InodeId, TreeError> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(TreeError::SymlinkLoop);
        }
        let names = target.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        for name in names.rev() {
            if name.len() > 255 {
                return Err(TreeError::InvalidSymlink);
            }
            self.left.push(Cow::Owned(name.to_vec()));
        }
        Ok(if target.starts_with(b"/") { ROOT } else { self.at })
    }
}
