//! The three sides of a change: what the sandbox was given, what it has, and what the host has. Owns what becomes of one path;
//! it only reads.

use super::{conflict::ConflictKind, joined::merge_with_host, select::Pair, step::Source};
use crate::{
    apply::host::HostFile,
    beneath::{Root, ancestors},
    index::Kind,
    review::{Review, layer::State},
};
use rustix::fs::Dir;
use std::{collections::BTreeMap, io};

/// What to do with one path.
pub(super) enum Decision {
    Already,
    Conflict(ConflictKind),
    /// A source and a mode for it, or for what is there.
    Write {
        source: Option<Source>,
        mode: u32,
    },
    Remove,
}

/// Everything that decides about a path.
pub(super) struct Sides<'a> {
    pub(super) review: &'a Review,
    pub(super) root: Root,
    /// Texts that changed on both sides are joined.
    pub(super) merges: bool,
    pub(super) pairs: BTreeMap<&'a [u8], Pair<'a>>,
}

impl Sides<'_> {
    /// Returns true if a step makes a directory above a path, in place of something else.
    pub(super) fn replaces_above(&self, path: &[u8]) -> bool {
        ancestors(path).any(|above| {
            let pair = self.pairs.get(above);
            pair.is_some_and(|(old, new)| {
                new.is_some_and(|new| new.kind == Kind::Directory)
                    && !old.is_some_and(|old| old.kind == Kind::Directory)
            })
        })
    }

    /// Returns what becomes of a path.
    pub(super) fn decide(&self, path: &[u8], (old, new): Pair<'_>, host: Option<&HostFile>) -> io::Result<Decision> {
        let conflict = Ok(Decision::Conflict(ConflictKind::Content));
        let host = host.map(|host| &host.state);
        let sandbox = |new: &State| Some(Source::Sandbox(new.clone()));
        Ok(match (host, old, new) {
            (None, _, None) => Decision::Already,
            (None, None, Some(new)) => Decision::Write { source: sandbox(new), mode: usable_mode(new) },
            // The host removed what the sandbox changed.
            (None, Some(_), Some(_)) => return conflict,
            (Some(host), _, None) => match old {
                Some(old) if old.has_same_content(host) => Decision::Remove,
                _ => return conflict,
            },
            (Some(host), None, Some(new)) => {
                if host.has_same_content(new) {
                    Decision::Already
                } else {
                    return conflict;
                }
            }
            (Some(host), Some(old), Some(new)) => {
                let new_mode = usable_mode(new);
                let mode = if new.mode == old.mode || discriminants_differ(&old.kind, &new.kind) {
                    Some(if discriminants_differ(&host.kind, &new.kind) { new_mode } else { host.mode })
                } else if host.mode == old.mode || host.mode == new_mode {
                    Some(new_mode)
                } else {
                    None
                };
                let Some(mode) = mode else { return Ok(Decision::Conflict(ConflictKind::Mode)) };
                let is_host_done = host.has_same_content(new);
                if is_host_done || old.has_same_content(new) && !discriminants_differ(&host.kind, &old.kind) {
                    let is_link = matches!(host.kind, Kind::Symlink(_));
                    if host.mode == mode || is_link {
                        return Ok(Decision::Already);
                    }
                    return Ok(Decision::Write { source: None, mode });
                }
                if host.has_same_content(old) {
                    if host.kind == Kind::Directory && self.has_others(path)? {
                        return Ok(Decision::Conflict(ConflictKind::NotEmpty));
                    }
                    return Ok(Decision::Write { source: sandbox(new), mode });
                }
                if self.merges && self.merged(path, old, new)?.is_some() {
                    let source = Source::Merge { old: old.clone(), new: new.clone(), mode };
                    return Ok(Decision::Write { source: Some(source), mode });
                }
                return conflict;
            }
        })
    }

    /// Returns true if a directory of the host has files that are not removed.
    fn has_others(&self, path: &[u8]) -> io::Result<bool> {
        for item in Dir::new(self.root.directory(path)?)? {
            let item = item?;
            let name = item.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = [path, b"/", name].concat();
            if !self.pairs.get(&path[..]).is_some_and(|(_, new)| new.is_none()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn merged(&self, path: &[u8], old: &State, new: &State) -> io::Result<Option<Vec<u8>>> {
        merge_with_host(self.review, &self.root, path, old, new)
    }
}

/// Returns the permissions of an applied file: its owner can read it, and use a directory.
fn usable_mode(state: &State) -> u32 {
    match state.kind {
        Kind::Directory => state.mode | 0o700,
        Kind::File(_) => state.mode | 0o400,
        Kind::Symlink(_) => state.mode,
    }
}

/// Returns true if one is a file and the other is a directory or a link, for example.
pub(super) fn discriminants_differ(one: &Kind, two: &Kind) -> bool {
    std::mem::discriminant(one) != std::mem::discriminant(two)
}
