//! Which branches of the sandbox's repository have another commit than it was given. Owns the rules for
//! names of branches that the host accepts from a guest.

use super::error::CommitsError;
use crate::{
    index::Kind,
    review::{Review, layer::State},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read,
};

/// A commit's name: SHA-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId([u8; 20]);

/// A branch and its newest commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Name without `refs/heads/`, or `HEAD` for commits on no branch. Accepted by [`is_name`].
    pub name: String,
    /// The commit.
    pub commit: ObjectId,
}

/// What the repository of a project is called.
pub(super) const GIT: &[u8] = b".git/";
const HEADS: &str = "refs/heads/";
/// Maximum size in bytes of a file with one reference.
const MAX_REF: u64 = 4096;
/// Maximum size in bytes of `packed-refs`: some 100,000 references.
const MAX_PACKED: u64 = 16 << 20;
/// Maximum number of branches that are taken from one sandbox.
const MAX_BRANCHES: usize = 1000;

impl ObjectId {
    /// Reads 40 hexadecimal digits.
    fn from_hex(hex: &[u8]) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut id = [0; 20];
        if hex.len() != 2 * id.len() {
            return None;
        }
        for (byte, pair) in id.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Returns true for names of branches that mean the same to git, a shell and a reader: a part of what
/// git-check-ref-format(1) allows.
pub(super) fn is_name(name: &str) -> bool {
    let is_plain = |character: char| character.is_alphanumeric() || "-_./+@#%=,".contains(character);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock");
    name.len() <= 200
        && name.chars().all(is_plain)
        && name.split('/').all(is_part)
        && !name.contains("..")
        && !name.ends_with('.')
        && name != "@"
}

/// Returns the branches that the sandbox made or moved.
pub(super) fn moved(review: &Review) -> Result<Vec<Branch>, CommitsError> {
    let mut loose = BTreeMap::new();
    let mut packed = BTreeMap::new();
    // Files with one reference count before `packed-refs`.
    let mut hidden: BTreeSet<&str> = review.index().entries.keys().filter_map(|path| branch_of(path)).collect();
    for change in &review.changes().git {
        let is_file = |state: &State| matches!(state.kind, Kind::File(_));
        let Some(new) = change.new.as_ref().filter(|new| is_file(new)) else {
            if let Some(name) = branch_of(&change.path) {
                hidden.remove(name);
            }
            continue;
        };
        if let Some(name) = branch_of(&change.path).filter(|name| is_name(name)) {
            if let Some(commit) = one(review, new)? {
                loose.insert(name.to_owned(), commit);
            }
        } else if change.path == [GIT, b"HEAD"].concat() {
            if let Some(commit) = one(review, new)? {
                loose.insert("HEAD".to_owned(), commit);
            }
        } else if change.path == [GIT, b"packed-refs"].concat() {
            let references =
                |state: &State| text(review, state, MAX_PACKED).map(|text| listed(&text.unwrap_or_default()));
            let given = change.old.as_ref().filter(|old| is_file(old)).map(references).transpose()?.unwrap_or_default();
            packed = references(new)?;
            packed.retain(|name, commit| given.get(name) != Some(commit));
        }
    }
    packed.retain(|name, _| !hidden.contains(name.as_str()));
    packed.append(&mut loose);
    if packed.len() > MAX_BRANCHES {
        return Err(CommitsError::TooMany { limit: MAX_BRANCHES });
    }
    Ok(packed.into_iter().map(|(name, commit)| Branch { name, commit }).collect())
}

/// Returns the name of the branch whose reference is in the file at `path`.
fn branch_of(path: &[u8]) -> Option<&str> {
    let path = path.strip_prefix(GIT)?.strip_prefix(HEADS.as_bytes())?;
    std::str::from_utf8(path).ok()
}

/// Returns the branches that a file `packed-refs` lists.
fn listed(text: &[u8]) -> BTreeMap<String, ObjectId> {
    let branch = |line: &[u8]| {
        let (commit, name) = line.split_at_checked(40)?;
        let name = std::str::from_utf8(name.strip_prefix(b" ")?).ok()?.strip_prefix(HEADS)?;
        Some((name.to_owned(), ObjectId::from_hex(commit)?)).filter(|_| is_name(name))
    };
    text.split(|byte| *byte == b'\n').filter_map(branch).collect()
}

/// Reads a file with one reference. Returns `None` if it leads to another reference.
fn one(review: &Review, state: &State) -> Result<Option<ObjectId>, CommitsError> {
    Ok(text(review, state, MAX_REF)?.and_then(|text| ObjectId::from_hex(text.trim_ascii())))
}

/// Reads a small file. Returns `None` if it is larger than `limit`.
fn text(review: &Review, state: &State, limit: u64) -> Result<Option<Vec<u8>>, CommitsError> {
    let mut bytes = Vec::new();
    review.sources().of(Some(state)).take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_meaning_to_a_shell_or_git_are_ignored() {
        for name in ["main", "feature/x-1", "größe", "v1.2", "a@b"] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "-f",
            "a/-f",
            "a b",
            "a..b",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a.",
            "a/",
            "/a",
            "a//b",
            "a:b",
            "a^",
            "a~1",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "a\nb",
            "a\x1b",
            "@",
            "$(x)",
            "a;b",
            "a\u{202e}b",
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn packed_references_are_read_strictly() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let text = format!(
            "# pack-refs with: peeled fully-peeled sorted\n{id} refs/heads/main\n{id} refs/tags/v1\n^{id}\n{id}x refs/heads/a\n{id} refs/heads/a:b\nshort refs/heads/c\n"
        );
        let all = listed(text.as_bytes());
        assert_eq!(all.keys().collect::<Vec<_>>(), ["main"]);
        assert_eq!(all["main"].to_string(), id);
    }
}
