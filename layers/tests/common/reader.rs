//! A reader of images that follows the kernel's, and checks what the kernel relies on.

use std::collections::BTreeMap;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub mode: u16,
    pub owner: (u32, u32),
    pub modified: (i64, u32),
    pub links: u32,
    /// Content, target or number of the device.
    pub content: Vec<u8>,
    pub inode: u64,
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct Image<'a> {
    bytes: &'a [u8],
    metadata: usize,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Reads an image. Paths have no `/` at their beginning.
pub fn read(bytes: &[u8]) -> BTreeMap<String, Node> {
    let superblock = &bytes[1024..1152];
    assert_eq!(number::<4>(superblock, 0), 0xe0f5_e1e2);
    assert_eq!(number::<4>(superblock, 36) * 4096, bytes.len() as u64);
    let image = Image { bytes, metadata: number::<4>(superblock, 40) as usize * 4096 };
    let mut nodes = BTreeMap::new();
    let mut inodes = std::collections::BTreeSet::new();
    let mut pending = vec![(String::new(), number::<2>(superblock, 14), number::<2>(superblock, 14))];
    while let Some((path, nid, parent)) = pending.pop() {
        let node = image.inode(nid);
        inodes.insert(nid);
        if node.mode & 0o170_000 == 0o040_000 {
            let names = image.names(&node.content);
            assert!(names.windows(2).all(|pair| pair[0].0 < pair[1].0), "{path} is not sorted");
            for (name, child, kind) in names {
                match &name[..] {
                    b"." => assert_eq!((child, kind), (nid, 2)),
                    b".." => assert_eq!((child, kind), (parent, 2)),
                    _ => {
                        let expected = [0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7][usize::from(image.inode(child).mode >> 12)];
                        assert_eq!(kind, expected);
                        let below = String::from_utf8_lossy(&name);
                        let path = if path.is_empty() { below.into_owned() } else { format!("{path}/{below}") };
                        pending.push((path, child, nid));
                    }
                }
            }
        }
        nodes.insert(path, node);
    }
    assert_eq!(number::<8>(superblock, 16), inodes.len() as u64);
    nodes
}

impl Image<'_> {
    fn inode(&self, nid: u64) -> Node {
        let at = self.metadata + nid as usize * 32;
        let inode = &self.bytes[at..at + 64];
        let (format, count) = (number::<2>(inode, 0), number::<2>(inode, 2) as usize);
        assert_eq!(format & 1, 1);
        let attributes_len = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let mode = number::<2>(inode, 4) as u16;
        let size = number::<8>(inode, 8) as usize;
        let block = number::<4>(inode, 16) as usize * 4096;
        let tail = at + 64 + attributes_len;
        let mut content = vec![];
        match format >> 1 {
            _ if [0o020_000, 0o060_000, 0o010_000].contains(&(mode & 0o170_000)) => content = inode[16..20].to_vec(),
            0 => content.extend_from_slice(if size == 0 { &[] } else { &self.bytes[block..block + size] }),
            2 => {
                let whole = size / 4096 * 4096;
                content.extend_from_slice(if whole == 0 { &[] } else { &self.bytes[block..block + whole] });
                assert!(tail % 4096 + (size - whole) < 4096, "a tail crosses a block");
                content.extend_from_slice(&self.bytes[tail..tail + size - whole]);
                assert_eq!(self.bytes[tail + size - whole], 0, "no NUL behind a tail");
            }
            layout => panic!("layout {layout}"),
        }
        Node {
            mode,
            owner: (number::<4>(inode, 24) as u32, number::<4>(inode, 28) as u32),
            modified: (number::<8>(inode, 32) as i64, number::<4>(inode, 40) as u32),
            links: number::<4>(inode, 44) as u32,
            content,
            inode: nid,
            attributes: self.attributes(at + 64, attributes_len),
        }
    }

    fn attributes(&self, at: usize, len: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut attributes = BTreeMap::new();
        let mut left = if len == 0 { &[] } else { &self.bytes[at + 12..at + len] };
        while !left.is_empty() {
            let (name, value) = (usize::from(left[0]), number::<2>(left, 2) as usize);
            let prefix = match left[1] {
                1 => &b"user."[..],
                6 => b"security.",
                index => panic!("prefix {index}"),
            };
            attributes.insert([prefix, &left[4..4 + name]].concat(), left[4 + name..4 + name + value].to_vec());
            left = &left[(4 + name + value).next_multiple_of(4)..];
        }
        attributes
    }

    fn names(&self, content: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut names = Vec::new();
        for block in content.chunks(4096) {
            let count = number::<2>(block, 8) as usize / 12;
            let start = |at: usize| number::<2>(block, at * 12 + 8) as usize;
            for at in 0..count {
                let end = if at + 1 < count { start(at + 1) } else { block.len() };
                let name = &block[start(at)..end];
                let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
                assert!(!name.is_empty() && name.len() <= 255);
                names.push((name.to_vec(), number::<8>(block, at * 12), block[at * 12 + 10]));
            }
        }
        names
    }
}
