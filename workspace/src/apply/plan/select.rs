//! Which changes are applied: those of the paths that were named, and those that they need.

use super::error::PlanError;
use crate::{
    beneath::ancestors,
    index::Kind,
    review::{Review, layer::State},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

/// What to apply, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Paths relative to the root, each with everything below it. Everything if there is none.
    pub paths: Vec<Vec<u8>>,
    /// Merges texts that changed on both sides.
    pub merge: bool,
}

/// What a path was and is to be.
pub(super) type Pair<'a> = (Option<&'a State>, Option<&'a State>);

/// Returns the changes of the paths that were named, and those of directories that they need.
pub(super) fn select<'a>(
    review: &'a Review,
    options: &ApplyOptions,
) -> Result<BTreeMap<&'a [u8], Pair<'a>>, PlanError> {
    let mut all: BTreeMap<&[u8], Pair<'_>> = BTreeMap::new();
    let mut joined: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for change in &review.changes().files {
        match &change.from {
            Some(from) => {
                all.insert(from, (change.old.as_ref(), None));
                all.insert(&change.path, (None, change.new.as_ref()));
                joined.insert(from, &change.path);
                joined.insert(&change.path, from);
            }
            None => drop(all.insert(&change.path, (change.old.as_ref(), change.new.as_ref()))),
        }
    }
    if options.paths.is_empty() {
        return Ok(all);
    }
    let mut selected = BTreeSet::new();
    for path in &options.paths {
        let is_below = |other: &[u8]| other.strip_prefix(&path[..]).is_some_and(|rest| rest.first() == Some(&b'/'));
        let found = all.keys().filter(|other| path.is_empty() || ***other == path[..] || is_below(other));
        let found: Vec<_> = found.copied().collect();
        if found.is_empty() {
            return Err(PlanError::NoChanges(path.clone()));
        }
        selected.extend(found);
    }
    // Both names of a renamed file.
    selected.extend(selected.clone().iter().filter_map(|path| joined.get(path).copied()));
    for path in selected.clone() {
        if all.get(path).is_some_and(|pair| pair.1.is_some()) {
            selected.extend(ancestors(path).filter_map(|above| all.get_key_value(above).map(|(key, _)| *key)));
        }
    }
    // A directory that becomes a file takes everything below it.
    for path in selected.clone() {
        let (old, new) = all[path];
        let is_directory = |state: Option<&State>| state.is_some_and(|state| state.kind == Kind::Directory);
        if is_directory(old) && !is_directory(new) {
            let below = [path, b"/"].concat();
            let range = all.range::<[u8], _>((Bound::Included(&below[..]), Bound::Unbounded));
            selected.extend(range.map(|(key, _)| *key).take_while(|key| key.starts_with(&below)));
        }
    }
    all.retain(|path, _| selected.contains(path));
    Ok(all)
}
