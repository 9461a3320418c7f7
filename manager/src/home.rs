//! The home directory's layout: which path means what, and nothing of what is in the files.
//!
//! ```text
//! sandboxes/<id>/   one per sandbox (see `directory`)
//! names/<name>      symbolic link to ../sandboxes/<id>
//! ephemeral/<id>    empty file: the sandbox belongs to a `run` and goes with it
//! staging/<id>/     a sandbox being made; renamed into sandboxes/ when whole
//! trash/<id>/       a sandbox being deleted; renamed out of sandboxes/ first
//! snapshots/<name>/ a snapshot (see `snapshot`)
//! ready/<key>/      the snapshot that new sandboxes of one kind start from (see `ready`)
//! templates/        writable-disk templates (see `sandboxvm_images::template`)
//! contents/         remembered hashes of files (see `content`)
//! audit/            what was done with each sandbox, longer than it is there (see `audit`)
//! groups/           links to control groups that wait for a VMM (see `group::pool`)
//! admitted          who was promised memory (see `ledger`)
//! ```
//! All directories are 0700: whoever may enter the home owns every guest in it.

use crate::admission::AdmissionRules;
use sandboxvm_protocol::identity::{SandboxId, SandboxName};
use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Creating a directory failed.
    #[error("cannot create {}: {source}", .path.display())]
    Create {
        /// Which directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Who else could change what is in it could run anything as whoever uses it.
    #[error("cannot use the home {}: {problem}", .path.display())]
    Untrusted {
        /// Which directory.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// A home directory that exists with all its parts, by which rules sandboxes are admitted to it, and how much is logged of
/// each.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    rules: AdmissionRules,
    max_audit_log: u64,
}

/// Maximum size of the audit log of one sandbox in bytes, unless its caller wants less.
const MAX_AUDIT_LOG: u64 = 1 << 30;

impl Home {
    /// Makes what is missing under `root`.
    ///
    /// # Errors
    /// Every [`HomeError`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        let create = |path: &Path, parents: bool| {
            let made = DirBuilder::new().mode(0o700).recursive(parents).create(path);
            match made {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    Err(HomeError::Create { path: path.to_owned(), source })
                }
                _ => Ok(()),
            }
        };
        // Absolute, because a long-running process may change its directory.
        let root = std::path::absolute(root).map_err(|source| HomeError::Create { path: root.to_owned(), source })?;
        create(&root, true)?;
        check_owner(&root)?;
        let home = Self { root, rules: AdmissionRules::default(), max_audit_log: MAX_AUDIT_LOG };
        for path in [
            home.sandboxes(),
            home.names(),
            home.ephemeral_marks(),
            home.staging(),
            home.trash(),
            home.snapshots(),
            home.ready(),
            home.templates(),
            home.contents(),
            home.audit(),
            home.groups(),
        ] {
            create(&path, false)?;
        }
        Ok(home)
    }

    pub(crate) fn with_rules(self, rules: AdmissionRules) -> Self {
        Self { rules, ..self }
    }

    pub(crate) fn with_max_audit_log(self, bytes: u64) -> Self {
        Self { max_audit_log: bytes.min(MAX_AUDIT_LOG), ..self }
    }

    pub(crate) fn max_audit_log(&self) -> u64 {
        self.max_audit_log
    }

    pub(crate) fn rules(&self) -> &AdmissionRules {
        &self.rules
    }

    pub(crate) fn admitted(&self) -> PathBuf {
        self.root.join("admitted")
    }

    /// The home itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub(crate) fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    pub(crate) fn ephemeral_marks(&self) -> PathBuf {
        self.root.join("ephemeral")
    }

    pub(crate) fn ephemeral_mark(&self, id: &SandboxId) -> PathBuf {
        self.ephemeral_marks().join(id.as_str())
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn staged(&self, id: &SandboxId) -> PathBuf {
        self.staging().join(id.as_str())
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn snapshot(&self, name: &SandboxName) -> PathBuf {
        self.snapshots().join(name.as_str())
    }

    pub(crate) fn ready(&self) -> PathBuf {
        self.root.join("ready")
    }

    pub(crate) fn contents(&self) -> PathBuf {
        self.root.join("contents")
    }

    pub(crate) fn groups(&self) -> PathBuf {
        self.root.join("groups")
    }

    /// What was done with sandboxes.
    pub(crate) fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }
}

/// One that existed may be anybody's. What is in it was made below a directory that only its owner could change.
fn check_owner(root: &Path) -> Result<(), HomeError> {
    let metadata = std::fs::metadata(root).map_err(|source| HomeError::Create { path: root.to_owned(), source })?;
    let (owner, user, mode) = (metadata.uid(), rustix::process::geteuid().as_raw(), metadata.mode() & 0o7777);
    let problem = if owner != user {
        format!("it belongs to user {owner}, not to user {user}")
    } else if mode & 0o022 != 0 {
        format!("users other than its owner can write to it (mode {mode:04o})")
    } else {
        return Ok(());
    };
    Err(HomeError::Untrusted { path: root.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn everything_is_private_and_opening_twice_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let home = Home::open(&root).unwrap();
        Home::open(&root).unwrap();
        for path in [home.root(), &home.sandboxes(), &home.names(), &home.trash()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_file_in_the_way_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("file/home");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let message = Home::open(&root).unwrap_err().to_string();
        assert!(message.contains("file/home"), "{message}");
    }

    #[test]
    fn a_home_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("home");
        Home::open(&root).unwrap();
        for (mode, is_used) in [(0o777, false), (0o770, false), (0o702, false), (0o755, true), (0o700, true)] {
            std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).unwrap();
            let opened = Home::open(&root);
            assert_eq!(opened.is_ok(), is_used, "{mode:o}: {opened:?}");
        }
    }

    #[test]
    fn another_users_home_is_refused() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("home");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::chown(&root, Some(64_999), None).unwrap();
        let message = Home::open(&root).unwrap_err().to_string();
        assert!(message.contains("belongs to user 64999"), "{message}");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing was made in it");
    }
}
