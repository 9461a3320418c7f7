//! Writes the metadata of a tree behind the content of its files, and the superblock.

use super::{
    directory,
    inode::{self, SLOT, Shape},
    kind::FileType,
    superblock::{self, Superblock},
};
use crate::{
    limits::Exceeded,
    output::{BLOCK, Output, OutputError},
    tree::{Content, InodeId, ROOT, Tree},
};

/// Offset of the first inode in the metadata. An inode with the number 0 would be invisible to some
/// programs.
const FIRST: u64 = 64;

/// Where the inodes of a tree lie.
struct Layout {
    /// Inodes in the order of their places: the children of a directory lie together.
    order: Vec<InodeId>,
    /// The number of each inode; 0 if it has none yet.
    numbers: Vec<u32>,
}

/// Writes everything but the content of files, and returns the size of the image in bytes.
pub(crate) fn write(tree: &Tree, mut output: Output, uuid: [u8; 16]) -> Result<u64, OutputError> {
    output.pad()?;
    let layout = lay_out(tree)?;
    let mut blocks = Vec::new();
    for id in &layout.order {
        if let Some(block) = write_blocks(tree, &layout, *id, &mut output)? {
            blocks.push(block);
        }
    }
    let metadata_block = output.blocks();
    let begin = output.position();
    let mut blocks = blocks.into_iter();
    for id in &layout.order {
        let offset = begin + u64::from(layout.number(*id)) * SLOT;
        output.skip(offset.saturating_sub(output.position()))?;
        write_inode(tree, &layout, *id, &mut blocks, &mut output)?;
    }
    output.pad()?;
    let superblock = Superblock {
        root: u16::try_from(FIRST / SLOT).unwrap_or(u16::MAX),
        inodes: layout.order.len() as u64,
        blocks: output.blocks(),
        metadata_block,
        uuid,
    };
    let size = output.position();
    output.finish(&superblock.encode(), superblock::OFFSET)?;
    Ok(size)
}

impl Layout {
    fn number(&self, id: InodeId) -> u32 {
        self.numbers.get(id as usize).copied().unwrap_or(0)
    }
}

fn lay_out(tree: &Tree) -> Result<Layout, OutputError> {
    let mut layout = Layout { order: Vec::with_capacity(tree.inode_count()), numbers: vec![0; tree.id_bound()] };
    let mut end = FIRST;
    let mut place = |layout: &mut Layout, id: InodeId| -> Result<(), Exceeded> {
        // A file with several names has one inode.
        if layout.number(id) > 0 {
            return Ok(());
        }
        let shape = Shape::of(id, tree.inode(id));
        let offset = shape.place(end);
        end = offset + shape.len();
        layout.numbers[id as usize] = u32::try_from(offset / SLOT)
            .map_err(|_| Exceeded { what: "size of the metadata in bytes", limit: u64::from(u32::MAX) * SLOT })?;
        layout.order.push(id);
        Ok(())
    };
    place(&mut layout, ROOT)?;
    let mut pending = vec![ROOT];
    while let Some(id) = pending.pop() {
        let Content::Directory(directory) = &tree.inode(id).content else { continue };
        let children = || directory.children.values().map(|child| child.inode);
        for child in children() {
            place(&mut layout, child)?;
        }
        // The first subdirectory is the next one.
        let is_directory = |id: &InodeId| matches!(tree.inode(*id).content, Content::Directory(_));
        pending.extend(children().rev().filter(is_directory));
    }
    Ok(layout)
}

fn describe<'a>(tree: &'a Tree, layout: &'a Layout) -> impl Fn(InodeId) -> (u64, FileType) + 'a {
    |id| (layout.number(id).into(), FileType::of(&tree.inode(id).content))
}

/// Writes the blocks of a directory or symbolic link, if it has any, and returns the first one.
fn write_blocks(tree: &Tree, layout: &Layout, id: InodeId, output: &mut Output) -> Result<Option<u32>, OutputError> {
    let content = &tree.inode(id).content;
    if !matches!(content, Content::Directory(_) | Content::Symlink(_)) {
        return Ok(None);
    }
    let shape = Shape::of(id, tree.inode(id));
    if shape.blocks == 0 {
        return Ok(None);
    }
    let first = output.blocks();
    let mut left = shape.blocks;
    let mut block = |bytes: &[u8]| {
        // The rest follows the inode.
        if left == 0 {
            return Ok(());
        }
        left -= 1;
        output.write(bytes)?;
        output.pad()
    };
    match content {
        Content::Directory(directory) => {
            directory::encode(&directory::names(id, directory), describe(tree, layout), &mut block)?;
        }
        // Linux allows less than a block.
        Content::Symlink(target) => target.chunks(BLOCK as usize).try_for_each(&mut block)?,
        _ => {}
    }
    Ok(Some(first))
}

fn write_inode(
    tree: &Tree,
    layout: &Layout,
    id: InodeId,
    blocks: &mut impl Iterator<Item = u32>,
    output: &mut Output,
) -> Result<(), OutputError> {
    let file = tree.inode(id);
    let shape = Shape::of(id, file);
    let block = match &file.content {
        Content::File(extent) => extent.block,
        _ if shape.blocks > 0 => blocks.next().unwrap_or(0),
        _ => 0,
    };
    let links = match &file.content {
        Content::Directory(directory) => {
            let children = directory.children.values().map(|child| &tree.inode(child.inode).content);
            // Both its own name and `.`, and `..` in each subdirectory.
            let below = children.filter(|content| matches!(content, Content::Directory(_))).count();
            u32::try_from(below).unwrap_or(u32::MAX).saturating_add(2)
        }
        _ => file.links,
    };
    output.write(&inode::encode(file, &shape, layout.number(id), block, links))?;
    if let Some(attributes) = &file.attributes {
        output.write(attributes)?;
    }
    if shape.tail == 0 {
        return Ok(());
    }
    match &file.content {
        Content::Directory(directory) => {
            let mut before = shape.blocks;
            directory::encode(&directory::names(id, directory), describe(tree, layout), |bytes| {
                if before > 0 {
                    before -= 1;
                    return Ok(());
                }
                output.write(bytes)
            })?;
        }
        Content::Symlink(target) => {
            let (_, tail) = target.split_at(target.len() - shape.tail);
            output.write(tail)?;
        }
        _ => {}
    }
    // The NUL behind the last name.
    output.skip(1)
}
