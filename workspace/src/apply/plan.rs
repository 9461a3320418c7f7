//! What applying changes would do: operations, conflicts with the host, and what needs consent. Owns
//! these decisions; it only reads the project.

use super::{
    concerns::{self, Concern, Surroundings},
    host::{self, Found, HostFile, Names},
    merge::merge,
};
use crate::{
    beneath::{Root, STAGING_PREFIX, ancestors, look_at},
    index::Kind,
    review::{Extent, Review, compare::ChangeKind, content::MAX_TEXT, layer::State, lines},
};
use rustix::{fd::AsFd, fs::Dir, io::Errno};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    ops::Bound,
    path::{Path, PathBuf},
};

/// What to apply, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Paths relative to the root, each with everything below it. Everything if there is none.
    pub paths: Vec<Vec<u8>>,
    /// Merges texts that changed on both sides.
    pub merge: bool,
}

/// Why changes cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The project cannot be opened.
    #[error("cannot open the directory \"{}\": {error}", .path.display())]
    Root {
        /// Path of the project.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// A file of the project or of the sandbox cannot be read.
    #[error("cannot read \"{}\": {error}", .path.escape_ascii())]
    File {
        /// Path in the project.
        path: Vec<u8>,
        /// The reason.
        error: io::Error,
    },
    /// Another apply to the same project was interrupted, or is running.
    #[error("the directory has \"{}\", which belongs to another apply", .0.escape_ascii())]
    OtherApply(Vec<u8>),
    /// The sandbox has no changes at a path that was named.
    #[error("the sandbox has no changes at \"{}\"", .0.escape_ascii())]
    NoChanges(Vec<u8>),
}

/// Where a new content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The sandbox.
    Sandbox(State),
    /// Both sides, joined. `mode` is that of the result.
    Merge { old: State, new: State, mode: u32 },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Remove(State),
    RemoveDirectory,
    Create { source: Source, owner: (u32, u32) },
    Replace { source: Source, owner: (u32, u32), was: State },
    Mode { from: u32, to: u32 },
}

/// What will happen to one path, for a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Path in the project.
    pub path: Vec<u8>,
    /// What happens to it.
    pub kind: ChangeKind,
    /// The content is joined from both sides.
    pub is_merged: bool,
    /// Where it leads, if it is to be a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// Why a path cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// Both sides changed the content, the kind or the existence.
    Content,
    /// Both sides changed the permissions.
    Mode,
    /// The host has a device, a socket, a pipe or a mount point there.
    Special,
    /// A directory of the path is a symbolic link, a file or a mount point on the host.
    Blocked,
    /// The file system of the host ignores case, and has the same file for another path of the changes.
    OtherCase,
    /// The directory is replaced by a file, but has files on the host that the sandbox never had.
    NotEmpty,
}

/// A path that both sides changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Path in the project.
    pub path: Vec<u8>,
    /// Why it cannot be applied.
    pub kind: ConflictKind,
    /// What the sandbox was given.
    pub given: Option<State>,
    /// What the host has.
    pub host: Option<State>,
    /// What the sandbox has.
    pub sandbox: Option<State>,
    /// Lines that the host changed, if all are texts.
    pub host_extent: Option<Extent>,
    /// Lines that the sandbox changed, if all are texts.
    pub sandbox_extent: Option<Extent>,
}

/// What applying would do.
#[derive(Debug)]
pub struct Plan {
    pub(crate) root: Root,
    pub(crate) steps: Vec<(Vec<u8>, Step)>,
    planned: Vec<Planned>,
    conflicts: Vec<Conflict>,
    concerns: Vec<Concern>,
    already: u64,
}

impl Plan {
    /// Returns what will happen, by path.
    #[must_use]
    pub fn planned(&self) -> &[Planned] {
        &self.planned
    }

    /// Returns the conflicts. A plan with conflicts is not applied.
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Returns what needs consent.
    #[must_use]
    pub fn concerns(&self) -> &[Concern] {
        &self.concerns
    }

    /// Returns how many changes the host has already.
    #[must_use]
    pub fn already(&self) -> u64 {
        self.already
    }

    /// Returns the size of all new contents in bytes.
    pub(crate) fn needed(&self) -> u64 {
        let size = |state: &State| if let Kind::File(content) = &state.kind { content.size } else { 0 };
        let sizes = self.steps.iter().map(|(_, step)| match step {
            Step::Create { source, .. } | Step::Replace { source, .. } => match source {
                Source::Sandbox(state) | Source::Merge { new: state, .. } => size(state),
            },
            _ => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// Returns the project.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

/// What a path was and is to be.
type Pair<'a> = (Option<&'a State>, Option<&'a State>);

/// Plans to apply changes to the directory from which the sandbox was made.
///
/// # Errors
/// [`PlanError`].
pub fn plan(review: &Review, options: &ApplyOptions) -> Result<Plan, PlanError> {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(&review.index().root));
    let root = Root::open(path).map_err(|error| PlanError::Root { path: path.to_owned(), error })?;
    if let Some(staging) = staging_in(&root).map_err(|error| PlanError::Root { path: path.to_owned(), error })? {
        return Err(PlanError::OtherApply(staging));
    }
    let mut planner = Planner {
        review,
        root,
        merges: options.merge,
        pairs: select(review, options)?,
        first: Vec::new(),
        directories: Vec::new(),
        middle: Vec::new(),
        modes: Vec::new(),
        planned: Vec::new(),
        conflicts: Vec::new(),
        concerns: Vec::new(),
        already: 0,
        surroundings: Surroundings::default(),
        names: Names::default(),
    };
    for (path, entry) in &review.index().entries {
        planner.surroundings.add(path, &entry.kind);
    }
    for change in &review.changes().files {
        if let Some(new) = &change.new {
            planner.surroundings.add(&change.path, &new.kind);
        }
    }
    let pairs = planner.pairs.clone();
    for (path, pair) in &pairs {
        planner.one(path, *pair).map_err(|error| PlanError::File { path: path.to_vec(), error })?;
    }
    // Files go before their directories, and directories come before their files. Permissions come last, from
    // below, since they may close a directory.
    planner.directories.reverse();
    planner.modes.reverse();
    let steps = [planner.first, planner.directories, planner.middle, planner.modes].concat();
    let Planner { root, planned, conflicts, concerns, already, .. } = planner;
    Ok(Plan { root, steps, planned, conflicts, concerns, already })
}

/// Returns the name of a staging directory in a project, if it has one.
fn staging_in(root: &Root) -> io::Result<Option<Vec<u8>>> {
    for item in Dir::new(root.directory(b"")?)? {
        let item = item?;
        if item.file_name().to_bytes().starts_with(STAGING_PREFIX.as_bytes()) {
            return Ok(Some(item.file_name().to_bytes().to_vec()));
        }
    }
    Ok(None)
}

/// Returns the changes of the paths that were named, and those of directories that they need.
fn select<'a>(review: &'a Review, options: &ApplyOptions) -> Result<BTreeMap<&'a [u8], Pair<'a>>, PlanError> {
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

struct Planner<'a> {
    review: &'a Review,
    root: Root,
    merges: bool,
    pairs: BTreeMap<&'a [u8], Pair<'a>>,
    first: Vec<(Vec<u8>, Step)>,
    directories: Vec<(Vec<u8>, Step)>,
    middle: Vec<(Vec<u8>, Step)>,
    modes: Vec<(Vec<u8>, Step)>,
    planned: Vec<Planned>,
    conflicts: Vec<Conflict>,
    concerns: Vec<Concern>,
    already: u64,
    surroundings: Surroundings,
    names: Names,
}

/// What to do with one path.
enum Decision {
    Already,
    Conflict(ConflictKind),
    /// A source and a mode for it, or for what is there.
    Write {
        source: Option<Source>,
        mode: u32,
    },
    Remove,
}

impl Planner<'_> {
    fn one(&mut self, path: &[u8], (old, new): Pair<'_>) -> io::Result<()> {
        let found = match host::look(&self.root, path)? {
            // What is to be deleted is not there.
            Found::Blocked if new.is_none() || self.replaces_above(path) => Found::Nothing,
            found => found,
        };
        let host = match found {
            Found::Nothing => None,
            Found::File(file) => Some(file),
            Found::Special => return self.conflict(path, ConflictKind::Special, (old, new), None),
            Found::Blocked => return self.conflict(path, ConflictKind::Blocked, (old, new), None),
        };
        if let Some(host) = &host
            && self.names.is_other(path, host)
        {
            return self.conflict(path, ConflictKind::OtherCase, (old, new), None);
        }
        let decision = self.decide(path, (old, new), host.as_ref())?;
        let kind = match (&host, new, &decision) {
            (_, None, _) => ChangeKind::Deleted,
            (None, ..) => ChangeKind::Added,
            (Some(_), _, Decision::Write { source: None, .. }) => ChangeKind::Mode,
            (Some(host), Some(new), _) if discriminants_differ(&host.state.kind, &new.kind) => ChangeKind::TypeChanged,
            _ => ChangeKind::Modified,
        };
        let mut is_merged = false;
        match decision {
            Decision::Already => {
                self.already += 1;
                return Ok(());
            }
            Decision::Conflict(kind) => return self.conflict(path, kind, (old, new), host.map(|host| host.state)),
            Decision::Remove => self.remove(path, host.as_ref()),
            Decision::Write { source: None, mode } => {
                let from = host.as_ref().map_or(mode, |host| host.state.mode);
                self.modes.push((path.to_vec(), Step::Mode { from, to: mode }));
            }
            Decision::Write { source: Some(source), mode } => {
                is_merged = matches!(source, Source::Merge { .. });
                self.write(path, source, mode, host.as_ref())?;
            }
        }
        if let Some(new) = new {
            let is_repository = |above: &[u8]| {
                let directory = self.root.directory(above);
                let is_there = |part: &str| {
                    directory.as_ref().is_ok_and(|directory| look_at(directory.as_fd(), part.as_bytes()).is_ok())
                };
                concerns::PARTS.into_iter().any(is_there)
            };
            if let Some(reason) = concerns::of(path, old, new, &self.surroundings, is_repository) {
                self.concerns.push(Concern { path: path.to_vec(), reason });
            }
        }
        let target = match new.map(|new| &new.kind) {
            Some(Kind::Symlink(target)) => Some(target.clone()),
            _ => None,
        };
        self.planned.push(Planned { path: path.to_vec(), kind, is_merged, target });
        Ok(())
    }

    /// Returns true if a step makes a directory above a path, in place of something else.
    fn replaces_above(&self, path: &[u8]) -> bool {
        ancestors(path).any(|above| {
            let pair = self.pairs.get(above);
            pair.is_some_and(|(old, new)| {
                new.is_some_and(|new| new.kind == Kind::Directory)
                    && !old.is_some_and(|old| old.kind == Kind::Directory)
            })
        })
    }

    fn decide(&self, path: &[u8], (old, new): Pair<'_>, host: Option<&HostFile>) -> io::Result<Decision> {
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

    fn remove(&mut self, path: &[u8], host: Option<&HostFile>) {
        match host {
            Some(host) if host.state.kind == Kind::Directory => {
                self.directories.push((path.to_vec(), Step::RemoveDirectory));
            }
            Some(host) => self.first.push((path.to_vec(), Step::Remove(host.state.clone()))),
            None => {}
        }
    }

    fn write(&mut self, path: &[u8], source: Source, mode: u32, host: Option<&HostFile>) -> io::Result<()> {
        let mut source = source;
        if let Source::Sandbox(new) = &mut source {
            new.mode = mode;
        }
        let is_directory = matches!(&source, Source::Sandbox(new) if new.kind == Kind::Directory);
        let owner = match host {
            Some(host) => host.owner,
            None => host::owner_above(&self.root, path)?,
        };
        match host {
            Some(host) if host.state.kind != Kind::Directory && !is_directory => {
                let was = host.state.clone();
                self.middle.push((path.to_vec(), Step::Replace { source, owner, was }));
            }
            host => {
                self.remove(path, host);
                self.middle.push((path.to_vec(), Step::Create { source, owner }));
            }
        }
        Ok(())
    }

    fn conflict(
        &mut self,
        path: &[u8],
        kind: ConflictKind,
        (given, sandbox): Pair<'_>,
        host: Option<State>,
    ) -> io::Result<()> {
        let (mut host_extent, mut sandbox_extent) = (None, None);
        if kind == ConflictKind::Content
            && let (Some(given), Some(sandbox)) = (given, sandbox)
        {
            let sources = self.review.sources();
            let texts = (sources.text(Some(given))?, sources.text(Some(sandbox))?, host_text(&self.root, path)?);
            if let (Some(given), Some(sandbox), Some(host)) = texts {
                let extent = |(added, removed)| Some(Extent::Lines { added, removed });
                host_extent = extent(lines::count(&given, &host));
                sandbox_extent = extent(lines::count(&given, &sandbox));
            }
        }
        let (given, sandbox) = (given.cloned(), sandbox.cloned());
        let path = path.to_vec();
        self.conflicts.push(Conflict { path, kind, given, host, sandbox, host_extent, sandbox_extent });
        Ok(())
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

fn discriminants_differ(one: &Kind, two: &Kind) -> bool {
    std::mem::discriminant(one) != std::mem::discriminant(two)
}

/// Returns the text of a file of the host, if it is one.
fn host_text(root: &Root, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let file = match root.file(path) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::XDEV) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut bytes = Vec::new();
    File::from(file).take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    let is_text = bytes.len() as u64 <= MAX_TEXT && !bytes.iter().take(8000).any(|byte| *byte == 0);
    Ok(is_text.then_some(bytes))
}

/// Joins the changes of the sandbox and of the host, if all are texts and they do not conflict.
pub(crate) fn merge_with_host(
    review: &Review,
    root: &Root,
    path: &[u8],
    old: &State,
    new: &State,
) -> io::Result<Option<Vec<u8>>> {
    if !matches!((&old.kind, &new.kind), (Kind::File(_), Kind::File(_))) {
        return Ok(None);
    }
    let (base, theirs) = (review.sources().text(Some(old))?, review.sources().text(Some(new))?);
    let (Some(base), Some(theirs), Some(ours)) = (base, theirs, host_text(root, path)?) else { return Ok(None) };
    Ok(merge(&base, &ours, &theirs))
}
