//! Directories: blocks of entries that are sorted by their bytes, in which the kernel searches by
//! halving.

use super::kind::FileType;
use crate::{
    output::BLOCK,
    tree::{Directory, InodeId},
};

const ENTRY: usize = 12;

/// Returns the names of a directory and their inodes, sorted, with `.` and `..`.
pub(super) fn names(id: InodeId, directory: &Directory) -> Vec<(&[u8], InodeId)> {
    let mut names: Vec<_> = directory.children.iter().map(|(name, child)| (&name[..], child.inode)).collect();
    for (dot, inode) in [(&b"."[..], id), (b"..", directory.parent)] {
        let at = names.partition_point(|(name, _)| *name < dot);
        names.insert(at, (dot, inode));
    }
    names
}

/// Splits names into those of each block, and calls `block` with them and the bytes that they take.
fn split<'a, T, E>(
    names: &'a [(&'a [u8], T)],
    mut block: impl FnMut(&'a [(&'a [u8], T)], usize) -> Result<(), E>,
) -> Result<(), E> {
    let (mut begin, mut used) = (0, 0);
    for (at, (name, _)) in names.iter().enumerate() {
        let len = ENTRY + name.len();
        if used + len > BLOCK as usize {
            block(&names[begin..at], used)?;
            (begin, used) = (at, 0);
        }
        used += len;
    }
    block(&names[begin..], used)
}

/// Returns the size of a directory in bytes.
pub(super) fn size<T>(names: &[(&[u8], T)]) -> u64 {
    let (mut blocks, mut last) = (0, 0);
    let counted: Result<(), ()> = split(names, |_, used| {
        blocks += 1;
        last = used as u64;
        Ok(())
    });
    debug_assert!(counted.is_ok());
    (blocks - 1) * BLOCK + last
}

/// Encodes a directory, block by block. All but the last one are full.
pub(super) fn encode<E>(
    names: &[(&[u8], InodeId)],
    describe: impl Fn(InodeId) -> (u64, FileType),
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut block = Vec::with_capacity(BLOCK as usize);
    let mut is_first = true;
    split(names, |names, _| {
        if !std::mem::take(&mut is_first) {
            block.resize(BLOCK as usize, 0);
            write(&block)?;
            block.clear();
        }
        let mut offset = names.len() * ENTRY;
        for (name, inode) in names {
            let (nid, kind) = describe(*inode);
            block.extend_from_slice(&nid.to_le_bytes());
            // Less than a block.
            block.extend_from_slice(&u16::try_from(offset).unwrap_or(u16::MAX).to_le_bytes());
            block.extend_from_slice(&[kind as u8, 0]);
            offset += name.len();
        }
        names.iter().for_each(|(name, _)| block.extend_from_slice(name));
        Ok(())
    })?;
    write(&block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Child;

    #[test]
    fn names_are_sorted_by_their_bytes_among_the_dots() {
        let mut directory = Directory::default();
        directory.parent = 7;
        for (inode, name) in [&b"a"[..], b"!", b"..a", b".a", b"\xff"].into_iter().enumerate() {
            directory.children.insert(name.into(), Child { inode: inode as u32, layer: 1 });
        }
        let names: Vec<_> = names(9, &directory).into_iter().map(|(name, inode)| (name.to_vec(), inode)).collect();
        let expected = [("!", 1), (".", 9), ("..", 7), ("..a", 2), (".a", 3), ("a", 0)];
        let mut expected: Vec<_> = expected.map(|(name, inode)| (name.as_bytes().to_vec(), inode)).into();
        expected.push((vec![0xff], 4));
        assert_eq!(names, expected);
    }

    #[test]
    fn blocks_are_full_but_for_the_last_one_and_add_up_to_the_size() {
        for count in [1, 2, 200, 255, 256, 5000] {
            let texts: Vec<_> = (0..count).map(|number| format!("{number:05}{}", "x".repeat(number % 250))).collect();
            let names: Vec<_> = texts.iter().map(|text| (text.as_bytes(), 5)).collect();
            let mut lens = Vec::new();
            let encoded: Result<(), ()> = encode(
                &names,
                |_| (1, FileType::Regular),
                |block| {
                    lens.push(block.len() as u64);
                    Ok(())
                },
            );
            encoded.unwrap();
            assert_eq!(lens.iter().sum::<u64>(), size(&names));
            assert!(lens[..lens.len() - 1].iter().all(|len| *len == BLOCK) && lens.iter().all(|len| *len <= BLOCK));
        }
    }
}
