//! A temporary repository for the objects of a sandbox. They reach the user's repository only after git
//! has checked each of them, and only those that a new commit needs.

use super::{
    error::CommitsError,
    git::{Git, User, input},
    objects::{MAX_INFLATED, Objects},
    refs::Branch,
};
use crate::review::Review;
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, chown},
    },
    path::PathBuf,
};
use tempfile::TempDir;

/// Commits that the host lacks, in a temporary repository that is removed with this value.
#[derive(Debug)]
pub struct Gathered {
    place: TempDir,
    project: PathBuf,
    user: User,
    branches: Vec<(Branch, u64)>,
    /// Commits that the host has.
    known: Vec<u8>,
}

/// Takes the commits of these branches that the host lacks out of the sandbox's files.
pub(super) fn gather(review: &Review, branches: &[Branch]) -> Result<Option<Gathered>, CommitsError> {
    let project = PathBuf::from(OsStr::from_bytes(&review.index().root));
    let directory = project.join(".git");
    let about = fs::symlink_metadata(&directory).ok().filter(fs::Metadata::is_dir);
    let is_plain = !project.as_os_str().as_bytes().contains(&b'\n');
    let owner = about.filter(|_| is_plain).ok_or_else(|| CommitsError::NoRepository(directory.clone()))?;
    let place = tempfile::Builder::new().prefix("sandboxvm-commits-").tempdir()?;
    let user = if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        chown(place.path(), Some(owner.uid()), Some(owner.gid()))?;
        User::Other(owner.uid(), owner.gid())
    } else {
        User::Caller
    };
    let mut gathered = Gathered { place, project, user, branches: Vec::new(), known: Vec::new() };
    gathered.receive(review)?;
    gathered.known = gathered.known_commits()?;
    for branch in branches {
        let count = gathered.count_new(branch)?;
        if count > 0 {
            gathered.branches.push((branch.clone(), count));
        }
    }
    Ok((!gathered.branches.is_empty()).then_some(gathered))
}

impl Gathered {
    /// Returns the branches with commits that the host lacks, and the number of these commits.
    #[must_use]
    pub fn branches(&self) -> &[(Branch, u64)] {
        &self.branches
    }

    /// Fetches the commits into the repository of the project, as `refs/remotes/sandboxvm/REMOTE/BRANCH`.
    /// Branches of an earlier fetch of the same name are replaced.
    ///
    /// # Errors
    /// [`CommitsError::Git`] and [`CommitsError::NoGit`]. Then no reference has changed.
    pub fn fetch(&self, remote: &str) -> Result<(), CommitsError> {
        let bundle = self.place.path().join("commits.bundle");
        let updates = input(|out| {
            self.each_branch(|branch| writeln!(out, "update refs/heads/{} {}", branch.name, branch.commit))
        })?;
        self.in_quarantine(&["update-ref".as_ref(), "--stdin".as_ref()], Some(updates))?;
        let wanted = input(|out| {
            self.each_branch(|branch| writeln!(out, "refs/heads/{}", branch.name))?;
            Ok(out.write_all(&excluded(&self.known))?)
        })?;
        let bundling = ["bundle".as_ref(), "create".as_ref(), "--quiet".as_ref(), bundle.as_ref(), "--stdin".as_ref()];
        self.in_quarantine(&bundling, Some(wanted))?;
        let wanted = self.branches.iter().map(|(branch, _)| {
            OsString::from(format!("+refs/heads/{0}:refs/remotes/sandboxvm/{remote}/{0}", branch.name))
        });
        let wanted: Vec<_> = wanted.collect();
        let mut arguments: Vec<&OsStr> =
            ["fetch", "--quiet", "--atomic", "--no-tags", "--no-write-fetch-head"].map(OsStr::new).into();
        arguments.extend(["--no-recurse-submodules", "--no-auto-gc"].map(OsStr::new));
        arguments.push(bundle.as_ref());
        arguments.extend(wanted.iter().map(OsString::as_os_str));
        self.git().run(&self.project, &arguments, None).map(drop)
    }

    fn git(&self) -> Git<'_> {
        Git { user: self.user, home: self.place.path(), objects: None }
    }

    /// Runs git in the temporary repository, which reads the objects of the project's. Only git writes there:
    /// the directory is the user's, who could lead the caller elsewhere by a link.
    fn in_quarantine(&self, arguments: &[&OsStr], input: Option<File>) -> Result<Vec<u8>, CommitsError> {
        let objects = self.project.join(".git/objects");
        let git = Git { objects: Some(&objects), ..self.git() };
        git.run(&self.place.path().join("repository"), arguments, input)
    }

    fn each_branch(&self, mut act: impl FnMut(&Branch) -> io::Result<()>) -> Result<(), CommitsError> {
        Ok(self.branches.iter().try_for_each(|(branch, _)| act(branch))?)
    }

    /// Makes the temporary repository, and has git check and index the new objects.
    fn receive(&self, review: &Review) -> Result<(), CommitsError> {
        let arguments = ["init", "--quiet", "--bare", "--template=", "repository"].map(OsStr::new);
        self.git().run(self.place.path(), &arguments, None)?;
        let limit = format!("--max-input-size={MAX_INFLATED}");
        let index = ["index-pack", "--stdin", "--fix-thin", "--fsck-objects", &limit].map(OsStr::new);
        let objects = Objects::of(review);
        for mut pack in objects.packs() {
            let pack = input(|out| Ok(io::copy(&mut pack, out).map(drop)?))?;
            self.in_quarantine(&index, Some(pack))?;
        }
        if objects.has_loose() {
            self.in_quarantine(&index, Some(input(|out| objects.write_loose(out))?))?;
        }
        Ok(())
    }

    /// Lists what the references of the project lead to, one on each line.
    fn known_commits(&self) -> Result<Vec<u8>, CommitsError> {
        let arguments = ["for-each-ref", "--format=%(objectname)"].map(OsStr::new);
        self.git().run(&self.project, &arguments, None)
    }

    fn count_new(&self, branch: &Branch) -> Result<u64, CommitsError> {
        let arguments = ["rev-list", "--count", "--stdin"].map(OsStr::new);
        let commits = input(|out| {
            writeln!(out, "{}", branch.commit)?;
            Ok(out.write_all(&excluded(&self.known))?)
        })?;
        let output = self.in_quarantine(&arguments, Some(commits))?;
        let count = std::str::from_utf8(&output).ok().and_then(|count| count.trim().parse().ok());
        count.ok_or_else(|| CommitsError::Git { command: "rev-list".into(), message: "it printed no number".into() })
    }
}

/// Returns the lines that exclude these commits, and those before them, from a list of commits.
fn excluded(known: &[u8]) -> Vec<u8> {
    let lines = known.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.flat_map(|line| [b"^", line].concat()).collect()
}
