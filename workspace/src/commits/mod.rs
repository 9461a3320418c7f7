//! Commits that a sandbox made in its copy of a repository, as a bundle that git fetches into the
//! repository on the host. Owns the way from the files of a hostile `.git` to references below
//! `refs/remotes`; it never changes a branch, the index or a file of the user.
//!
//! ```text
//! .git of the sandbox ── refs ──> branches
//!                     └─ objects ──> packs ── git index-pack --fsck-objects ──> quarantine
//!                                      quarantine ── git bundle create ──> bundle ── git fetch ──> project
//! ```
//! Of the sandbox's `.git`, only objects and the names and commits of branches are read: never a
//! setting, a hook, or a path that leads to other objects.

mod error;
mod git;
mod objects;
mod quarantine;
mod refs;

pub use error::CommitsError;
pub use quarantine::Gathered;
pub use refs::{Branch, ObjectId};

use crate::review::Review;

/// Returns the branches that the sandbox made or moved, from the files of its `.git`. Whether they have
/// commits that the host lacks is known after [`gather`].
///
/// # Errors
/// [`CommitsError::Review`] and [`CommitsError::Io`], if a file cannot be read.
pub fn branches(review: &Review) -> Result<Vec<Branch>, CommitsError> {
    refs::moved(review)
}

/// Takes the commits that the host lacks out of the sandbox's files, into a temporary repository.
/// Returns `None` if there are none.
///
/// # Errors
/// [`CommitsError`].
pub fn gather(review: &Review) -> Result<Option<Gathered>, CommitsError> {
    let branches = refs::moved(review)?;
    if branches.is_empty() { Ok(None) } else { quarantine::gather(review, &branches) }
}
