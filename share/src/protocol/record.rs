//! The record of what a guest refers to, as bytes: its nodes, then its handles. The process writes it, the guest
//! keeps it in its memory, and sends it to the process that serves the copy of that memory. So a guest can
//! change it: what it says may give no access that other requests do not give.
//!
//! ```text
//! cursor   kind u32, 0 u32, number u64        where a part begins; the kind after the last part is END
//! part     kind u32, 0 u32, entries           all entries of one kind
//! node     number, directory, device, inode, birth, lookups u64; length u32; name
//! handle   number, node u64; flags, is_directory u32
//! ```

use super::{MAX_DATA, fields::Fields, name::Name, refusal::Refusal};

/// Size in bytes of a cursor, and of the head of a part.
const CURSOR: usize = 16;
const PART: usize = 8;
/// Size in bytes of a node with the longest name.
const LONGEST: usize = 6 * 8 + 4 + 255;

/// What a part is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nodes,
    Handles,
    /// There are no more parts.
    End,
}

impl Kind {
    fn read(fields: &mut Fields<'_>) -> Result<Self, Refusal> {
        let kind = match fields.u32()? {
            0 => Self::Nodes,
            1 => Self::Handles,
            2 => Self::End,
            _ => return Err(Refusal::Malformed),
        };
        fields.skip(4)?;
        Ok(kind)
    }

    fn number(self) -> u32 {
        match self {
            Self::Nodes => 0,
            Self::Handles => 1,
            Self::End => 2,
        }
    }
}

/// Where a part begins: with this number, or the next one that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) kind: Kind,
    pub(crate) from: u64,
}

impl Cursor {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Refusal> {
        Ok(Self { kind: Kind::read(fields)?, from: fields.u64()? })
    }
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedNode<'a> {
    pub(crate) number: u64,
    pub(crate) parent: u64,
    /// Device, inode and time of birth.
    pub(crate) identity: [u64; 3],
    pub(crate) lookups: u64,
    pub(crate) name: Name<'a>,
}

/// A handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedHandle {
    pub(crate) number: u64,
    pub(crate) node: u64,
    /// As a guest asks for them.
    pub(crate) flags: u32,
    pub(crate) is_directory: bool,
}

/// The entries of a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    Nodes(Vec<SavedNode<'a>>),
    Handles(Vec<SavedHandle>),
}

/// Reads a part.
pub(crate) fn parse(bytes: &[u8]) -> Result<Part<'_>, Refusal> {
    let mut fields = Fields::new(bytes);
    match Kind::read(&mut fields)? {
        Kind::Nodes => {
            let mut nodes = Vec::new();
            while !fields.is_empty() {
                let (number, parent) = (fields.u64()?, fields.u64()?);
                let identity = [fields.u64()?, fields.u64()?, fields.u64()?];
                let lookups = fields.u64()?;
                let length = usize::try_from(fields.u32()?).map_err(|_| Refusal::Malformed)?;
                let name = Name::new(fields.bytes(length)?)?;
                nodes.push(SavedNode { number, parent, identity, lookups, name });
            }
            Ok(Part::Nodes(nodes))
        }
        Kind::Handles => {
            let mut handles = Vec::new();
            while !fields.is_empty() {
                let (number, node, flags) = (fields.u64()?, fields.u64()?, fields.u32()?);
                let is_directory = match fields.u32()? {
                    0 => false,
                    1 => true,
                    _ => return Err(Refusal::Malformed),
                };
                handles.push(SavedHandle { number, node, flags, is_directory });
            }
            Ok(Part::Handles(handles))
        }
        Kind::End => Err(Refusal::Malformed),
    }
}

/// A part that is being written.
#[derive(Debug)]
pub(crate) struct PartWriter(Vec<u8>);

impl PartWriter {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut bytes = vec![0; CURSOR + PART];
        bytes[CURSOR..CURSOR + 4].copy_from_slice(&kind.number().to_le_bytes());
        Self(bytes)
    }

    /// Returns true if there is room for any other entry.
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() + LONGEST <= MAX_DATA
    }

    pub(crate) fn node(&mut self, node: &SavedNode<'_>) {
        let [device, inode, birth] = node.identity;
        for field in [node.number, node.parent, device, inode, birth, node.lookups] {
            self.0.extend(field.to_le_bytes());
        }
        // A name has at most 255 bytes.
        self.0.extend(u32::try_from(node.name.bytes().len()).unwrap_or(0).to_le_bytes());
        self.0.extend(node.name.bytes());
    }

    pub(crate) fn handle(&mut self, handle: &SavedHandle) {
        self.0.extend(handle.number.to_le_bytes());
        self.0.extend(handle.node.to_le_bytes());
        self.0.extend(handle.flags.to_le_bytes());
        self.0.extend(u32::from(handle.is_directory).to_le_bytes());
    }

    /// Returns the next cursor, and the part.
    pub(crate) fn finish(mut self, next: Cursor) -> Vec<u8> {
        self.0[..4].copy_from_slice(&next.kind.number().to_le_bytes());
        self.0[8..CURSOR].copy_from_slice(&next.from.to_le_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_were_written_and_nothing_else_is() {
        let name = Name::new(b"a name").unwrap();
        let node = SavedNode { number: 7, parent: 1, identity: [1, 2, 3], lookups: 4, name };
        let mut part = PartWriter::new(Kind::Nodes);
        part.node(&node);
        part.node(&SavedNode { number: 8, parent: 7, ..node });
        let bytes = part.finish(Cursor { kind: Kind::Handles, from: 9 });
        let cursor = Cursor::read(&mut Fields::new(&bytes[..CURSOR]));
        assert_eq!(cursor, Ok(Cursor { kind: Kind::Handles, from: 9 }));
        let part = &bytes[CURSOR..];
        let second = SavedNode { number: 8, parent: 7, ..node };
        assert_eq!(parse(part), Ok(Part::Nodes(vec![node, second])));
        for end in 0..part.len() {
            // Only whole entries are a part.
            let is_whole = [PART, PART + (part.len() - PART) / 2].contains(&end);
            assert_eq!(parse(&part[..end]).is_ok(), is_whole, "{end}");
        }
        let named = |name: &[u8]| {
            let mut bytes = part[..PART + 48].to_vec();
            bytes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            bytes.extend(name);
            parse(&bytes).is_ok()
        };
        assert!(named(b"x"));
        for bad in [&b""[..], b".", b"..", b"a/b", b"../x", b"a\0b", &[b'n'; 256]] {
            assert!(!named(bad), "{bad:?}");
        }
        let handle = SavedHandle { number: 1, node: 2, flags: 3, is_directory: true };
        let mut part = PartWriter::new(Kind::Handles);
        part.handle(&handle);
        let bytes = part.finish(Cursor { kind: Kind::End, from: 0 });
        assert_eq!(parse(&bytes[CURSOR..]), Ok(Part::Handles(vec![handle])));
        assert!(parse(&[2, 0, 0, 0, 0, 0, 0, 0]).is_err() && parse(&[3, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
