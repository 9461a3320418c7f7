//! What applying changes would do: operations, conflicts with the host, and what needs consent. Owns
//! these decisions; it only reads the project.

mod conflict;
mod error;
mod joined;
mod select;
mod sides;
mod step;

pub use conflict::{Conflict, ConflictKind};
pub use error::PlanError;
pub(crate) use joined::merge_with_host;
pub use select::ApplyOptions;
pub use step::Planned;
pub(crate) use step::{Source, Step};

use super::{
    concerns::{self, Concern, Surroundings},
    host::{self, Found, HostFile, Names},
};
use crate::{
    beneath::{Root, STAGING_PREFIX, look_at},
    index::Kind,
    review::{Extent, Review, compare::ChangeKind, layer::State, lines},
};
use joined::host_text;
use rustix::{fd::AsFd, fs::Dir};
use select::{Pair, select};
use sides::{Decision, Sides, discriminants_differ};
use std::{io, path::Path};

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
        sides: Sides { review, root, merges: options.merge, pairs: select(review, options)? },
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
    let pairs = planner.sides.pairs.clone();
    for (path, pair) in &pairs {
        planner.one(path, *pair).map_err(|error| PlanError::File { path: path.to_vec(), error })?;
    }
    // Files go before their directories, and directories come before their files. Permissions come last, from
    // below, since they may close a directory.
    planner.directories.reverse();
    planner.modes.reverse();
    let steps = [planner.first, planner.directories, planner.middle, planner.modes].concat();
    let Planner { sides, planned, conflicts, concerns, already, .. } = planner;
    Ok(Plan { root: sides.root, steps, planned, conflicts, concerns, already })
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

struct Planner<'a> {
    sides: Sides<'a>,
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

impl Planner<'_> {
    fn one(&mut self, path: &[u8], (old, new): Pair<'_>) -> io::Result<()> {
        let found = match host::look(&self.sides.root, path)? {
            // What is to be deleted is not there.
            Found::Blocked if new.is_none() || self.sides.replaces_above(path) => Found::Nothing,
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
        let decision = self.sides.decide(path, (old, new), host.as_ref())?;
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
                let directory = self.sides.root.directory(above);
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
            None => host::owner_above(&self.sides.root, path)?,
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
            let sources = self.sides.review.sources();
            let texts = (sources.text(Some(given))?, sources.text(Some(sandbox))?, host_text(&self.sides.root, path)?);
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
