//! Extended attributes, as they follow an inode. Owns which of them an image keeps.

use crate::limits::{self, Exceeded};

/// Header of the attributes of an inode (`erofs_xattr_ibody_header`), without shared ones.
const HEADER: usize = 12;
/// Maximum size in bytes that an inode can state, in units of four bytes after the header.
const MAX: u32 = 240 << 10;

/// Indices of the prefixes `user.` and `security.`.
const USER: u8 = 1;
const SECURITY: u8 = 6;

/// Why attributes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// The name is empty, too long, or contains a NUL byte.
    #[error("the name of an extended attribute is invalid")]
    Name,
    /// The value is longer than 65535 bytes.
    #[error("the value of an extended attribute is longer than 65535 bytes")]
    Value,
    /// A limit.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// Returns the index of the prefix and the rest of the name of an attribute that is kept: `user.*` and
/// capabilities of programs. Others belong to the host on which a layer was written. Those of overlay
/// file systems would even be obeyed, by one that has the image as its lower layer.
fn kept(name: &[u8]) -> Option<(u8, &[u8])> {
    if name == b"security.capability" {
        return Some((SECURITY, b"capability"));
    }
    name.strip_prefix(b"user.").filter(|rest| !rest.starts_with(b"overlay.")).map(|rest| (USER, rest))
}

/// Encoded attributes, if there are any, and the number of those that were dropped.
pub(crate) type Encoded = (Option<Box<[u8]>>, u64);

/// Encodes those attributes that are kept, and counts the others. Of several with one name the last one
/// counts.
pub(crate) fn encode(attributes: &[(Vec<u8>, Vec<u8>)], max: u32) -> Result<Encoded, AttributeError> {
    if attributes.is_empty() {
        return Ok((None, 0));
    }
    let mut dropped = 0;
    let mut sorted = std::collections::BTreeMap::new();
    for (name, value) in attributes {
        match kept(name) {
            Some(key) => drop(sorted.insert(key, value)),
            None => dropped += 1,
        }
    }
    if sorted.is_empty() {
        return Ok((None, dropped));
    }
    let mut bytes = vec![0; HEADER];
    for ((index, name), value) in sorted {
        let len = u8::try_from(name.len()).ok().filter(|len| *len > 0 && !name.contains(&0));
        bytes.push(len.ok_or(AttributeError::Name)?);
        bytes.push(index);
        bytes.extend_from_slice(&u16::try_from(value.len()).map_err(|_| AttributeError::Value)?.to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        limits::check("size of extended attributes in bytes", bytes.len() as u64, max.min(MAX).into())?;
    }
    Ok((Some(bytes.into()), dropped))
}

/// Returns the names and values of attributes that [`encode`] encoded.
pub(crate) fn decode(mut encoded: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut attributes = Vec::new();
    encoded = encoded.get(HEADER..).unwrap_or_default();
    while let [len, index, low, high, rest @ ..] = encoded {
        let (name, value) = (usize::from(*len), usize::from(u16::from_le_bytes([*low, *high])));
        let (Some(name), Some(value)) = (rest.get(..name), rest.get(name..name + value)) else { break };
        let prefix = if *index == SECURITY { &b"security."[..] } else { b"user." };
        attributes.push(([prefix, name].concat(), value.to_vec()));
        encoded = rest.get((4 + name.len() + value.len()).next_multiple_of(4) - 4..).unwrap_or_default();
    }
    attributes
}

/// Returns the size of encoded attributes as an inode states it.
pub(super) fn count(encoded: Option<&[u8]>) -> u16 {
    encoded.map_or(0, |bytes| u16::try_from(1 + bytes.len().saturating_sub(HEADER) / 4).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[(&str, &[u8])]) -> Result<Encoded, AttributeError> {
        let attributes: Vec<_> = names.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
        encode(&attributes, 1 << 16)
    }

    #[test]
    fn attributes_of_other_systems_are_dropped_and_counted() {
        let names = ["trusted.overlay.opaque", "user.overlay.redirect", "security.selinux", "system.posix_acl_access"];
        let list: Vec<_> = names.iter().map(|name| (*name, &b"y"[..])).collect();
        assert_eq!(of(&list), Ok((None, 4)));
        let (kept, dropped) = of(&[("user.a", b"1"), ("user.a", b"23"), ("security.capability", b"x")]).unwrap();
        let kept = kept.unwrap();
        assert_eq!((kept.len(), dropped, count(Some(&kept))), (12 + 8 + 16, 0, 7));
        assert_eq!(kept[12..20], *b"\x01\x01\x02\0a23\0");
        let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        assert_eq!(decode(&kept), [pair("user.a", b"23"), pair("security.capability", b"x")]);
    }

    #[test]
    fn invalid_attributes_are_refused() {
        assert_eq!(of(&[("user.", b"")]), Err(AttributeError::Name));
        assert_eq!(of(&[("user.a\0b", b"")]), Err(AttributeError::Name));
        assert_eq!(of(&[(&format!("user.{}", "x".repeat(256)), b"")]), Err(AttributeError::Name));
        assert_eq!(of(&[("user.a", &[0; 1 << 16])]), Err(AttributeError::Value));
        assert!(matches!(of(&[("user.a", &[0; 40_000]), ("user.b", &[0; 40_000])]), Err(AttributeError::Limit(_))));
    }
}
