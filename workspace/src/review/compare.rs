//! Compares a layer of changes with the index of what the sandbox was given. Owns what counts as a
//! change: the content, the kind, the permissions and the existence of a path. Owners and times do not.

use super::layer::{Layer, State};
use crate::index::{Digest, Entry, Index, Kind};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};

/// A change of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path relative to the root of the project.
    pub path: Vec<u8>,
    /// The path that the file had before, if only its name or mode changed.
    pub from: Option<Vec<u8>>,
    /// What the sandbox was given.
    pub old: Option<State>,
    /// What it has now.
    pub new: Option<State>,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The path is new.
    Added,
    /// The content changed.
    Modified,
    /// Only the permissions changed.
    Mode,
    /// The path no longer exists.
    Deleted,
    /// The file has another name.
    Renamed,
    /// A file became a directory or a symbolic link, or the other way round.
    TypeChanged,
}

impl Change {
    /// Returns the kind of the change.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        match (&self.old, &self.new) {
            _ if self.from.is_some() => ChangeKind::Renamed,
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Deleted,
            (Some(old), Some(new)) => match (&old.kind, &new.kind) {
                (Kind::File(old), Kind::File(new)) if old.digest != new.digest => ChangeKind::Modified,
                (Kind::Symlink(old), Kind::Symlink(new)) if old != new => ChangeKind::Modified,
                (old, new) if std::mem::discriminant(old) != std::mem::discriminant(new) => ChangeKind::TypeChanged,
                _ => ChangeKind::Mode,
            },
        }
    }
}

/// All changes of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changes of the project's files, by path.
    pub files: Vec<Change>,
    /// Changes in directories of git (`.git`), which are never applied as files.
    pub git: Vec<Change>,
    /// Devices and named pipes that the sandbox has, which are never applied.
    pub special: Vec<Vec<u8>>,
}

impl From<&Entry> for State {
    fn from(entry: &Entry) -> Self {
        let mask = if matches!(entry.kind, Kind::File(_)) { 0o777 } else { 0o1777 };
        Self { kind: entry.kind.clone(), mode: entry.mode & mask }
    }
}

impl State {
    /// Returns true if both are the same file: kind, content and permissions.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.has_same_content(other) && (self.mode == other.mode || matches!(self.kind, Kind::Symlink(_)))
    }

    /// Returns true if both have the same kind and content.
    #[must_use]
    pub fn has_same_content(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::File(one), Kind::File(two)) => one.digest == two.digest,
            (one, two) => one == two,
        }
    }
}

/// What a path was and is. Only paths that changed have one.
pub(crate) type Pairs = BTreeMap<Vec<u8>, (Option<State>, Option<State>)>;

/// Compares a layer with what is below it.
pub(crate) fn pairs(index: &Index, layer: &Layer) -> Pairs {
    let given = |path: &[u8]| index.entries.get(path);
    let mut pairs = Pairs::new();
    let mut hide = |path: &[u8]| {
        let is_there = layer.files.contains_key(path);
        if let Some(entry) = given(path).filter(|_| !is_there) {
            pairs.insert(path.to_vec(), (Some(entry.into()), None));
        }
    };
    let hide_below = |path: &[u8], hide: &mut dyn FnMut(&[u8])| {
        let below = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let all = index.entries.range(below.clone()..);
        all.map(|(path, _)| path).take_while(|path| path.starts_with(&below)).for_each(|path| hide(path));
    };
    for path in layer.removed.iter().chain(&layer.special) {
        hide(path);
        hide_below(path, &mut hide);
    }
    for path in &layer.opaque {
        hide_below(path, &mut hide);
    }
    for (path, state) in &layer.files {
        if state.kind != Kind::Directory && given(path).is_some_and(|entry| entry.kind == Kind::Directory) {
            hide_below(path, &mut hide);
        }
    }
    for (path, state) in &layer.files {
        let old = given(path).map(State::from);
        if !old.as_ref().is_some_and(|old| old.is_same(state)) {
            pairs.insert(path.clone(), (old, Some(state.clone())));
        }
    }
    // A directory that the layer only implies.
    for path in &layer.implied {
        let old = given(path);
        if !layer.files.contains_key(path) && old.is_none_or(|entry| entry.kind != Kind::Directory) {
            let state = State { kind: Kind::Directory, mode: 0o755 };
            pairs.insert(path.clone(), (old.map(State::from), Some(state)));
        } else if !layer.files.contains_key(path) {
            // It is there, whatever a removal said.
            pairs.remove(path);
        }
    }
    pairs
}

/// Returns a name without what some file systems ignore in names: case, and characters that are not shown.
pub(crate) fn folded(name: &[u8]) -> Cow<'_, [u8]> {
    if name.is_ascii() {
        let has_upper = name.iter().any(u8::is_ascii_uppercase);
        return if has_upper { name.to_ascii_lowercase().into() } else { name.into() };
    }
    let shown = String::from_utf8_lossy(name);
    let shown = shown.chars().filter(|shown| !is_ignorable(*shown));
    // By upper case, since some small letters have the same one, as s and long s.
    shown.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect::<String>().into_bytes().into()
}

/// Unicode's `Default_Ignorable_Code_Point`.
fn is_ignorable(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Returns true if a path leads into a directory of git, or is one, as [`folded`].
pub(crate) fn is_in_git(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| *folded(name) == *b".git")
}

/// Turns pairs into changes.
pub(crate) fn changes(pairs: Pairs, special: BTreeSet<Vec<u8>>) -> Changes {
    let mut all = Changes { special: special.into_iter().collect(), ..Changes::default() };
    for (path, (old, new)) in pairs {
        let list = if is_in_git(&path) { &mut all.git } else { &mut all.files };
        list.push(Change { path, from: None, old, new });
    }
    find_renames(&mut all.files);
    all
}

/// Joins each deleted file with an added one of the same content.
fn find_renames(changes: &mut Vec<Change>) {
    let digest = |state: &Option<State>| match state {
        Some(State { kind: Kind::File(content), .. }) if content.size > 0 => Some(content.digest),
        _ => None,
    };
    let mut deleted: HashMap<Digest, Vec<usize>> = HashMap::new();
    for (at, change) in changes.iter().enumerate().rev() {
        if let (Some(digest), None) = (digest(&change.old), &change.new) {
            deleted.entry(digest).or_default().push(at);
        }
    }
    let mut joined = BTreeSet::new();
    for at in 0..changes.len() {
        let (None, Some(digest)) = (&changes[at].old, digest(&changes[at].new)) else { continue };
        if let Some(from) = deleted.get_mut(&digest).and_then(Vec::pop) {
            changes[at].old = changes[from].old.clone();
            changes[at].from = Some(changes[from].path.clone());
            joined.insert(from);
        }
    }
    let mut at = 0;
    changes.retain(|_| {
        at += 1;
        !joined.contains(&(at - 1))
    });
}
