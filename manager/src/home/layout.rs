//! The layout of the home directory: what each path means. Knows nothing about the content of the
//! files.
//!
//! ```text
//! sandboxes/<id>/   one per sandbox (see `directory`)
//! names/<name>      symbolic link to ../sandboxes/<id>
//! ephemeral/<id>    empty file: the sandbox belongs to a `run` and is removed with it
//! staging/<id>/     a sandbox being created; renamed into sandboxes/ when complete
//! trash/<id>/       a sandbox being deleted; renamed out of sandboxes/ first
//! snapshots/<name>/ a snapshot (see `snapshot`)
//! ready/<key>/      the snapshot that new sandboxes of one kind start from (see `ready_snapshot`)
//! templates/        writable-disk templates (see `sandboxvm_images::template`)
//! contents/         stored hashes of files (see `content`)
//! audit/            audit logs, which outlive their sandboxes (see `audit`)
//! workspaces/       copies of directories that sandboxes got as workspaces (see `sandboxvm_workspace`)
//! volumes/          named volumes (see `volumes`)
//! images/           container images and the disks made of them (see `sandboxvm_oci::store`)
//! build/            what builds keep: records of layers, content of cache mounts (see `sandboxvm_build`)
//! server/volumes/   volumes of the server (see `shared_volumes`)
//! groups/           links to control groups that wait for a VMM (see `group::pool`)
//! operator-*.json   what the operator permits on the network (see `network::present`)
//! admitted          which sandboxes have reserved memory (see `ledger`)
//! ```
//! All directories have mode 0700: a user who can enter the home controls every guest in it.

use crate::{home::rules::AdmissionRules, network::operator::NetworkOperator, shared_volumes::SharedVolumeId};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Creating a directory failed.
    #[error("cannot create {}: {source}", .path.display())]
    Create {
        /// Path of the directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The home is not safe to use: another user who can change its content could run anything as
    /// the user of the home.
    #[error("cannot use the home {}: {problem}", .path.display())]
    Untrusted {
        /// Path of the directory.
        path: PathBuf,
        /// Why it is not safe.
        problem: String,
    },
}

/// A home directory with all its parts, the rules for admitting sandboxes to it, the maximum size of
/// their audit logs, and what the operator permits them on the network.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    rules: AdmissionRules,
    max_audit_log: u64,
    network: Arc<NetworkOperator>,
    share_program: Option<PathBuf>,
}

/// Maximum size of the audit log of one sandbox in bytes, unless the caller sets a lower one.
const MAX_AUDIT_LOG: u64 = 1 << 30;

impl Home {
    /// Opens the home at `root`, and creates what is missing.
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
        // Absolute, because a long-running process may change its working directory.
        let root = std::path::absolute(root).map_err(|source| HomeError::Create { path: root.to_owned(), source })?;
        create(&root, true)?;
        check_owner(&root)?;
        let network = Arc::default();
        let home =
            Self { root, rules: AdmissionRules::default(), max_audit_log: MAX_AUDIT_LOG, network, share_program: None };
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
            home.volumes(),
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

    pub(crate) fn with_network(self, operator: NetworkOperator) -> Self {
        Self { network: Arc::new(operator), ..self }
    }

    pub(crate) fn with_share_program(self, program: PathBuf) -> Self {
        Self { share_program: Some(program), ..self }
    }

    /// Returns the program that serves a live share.
    pub(crate) fn share_program(&self) -> Option<&PathBuf> {
        self.share_program.as_ref()
    }

    pub(crate) fn network(&self) -> &NetworkOperator {
        &self.network
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

    /// Returns the path of the home.
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

    pub(crate) fn shared_volumes(&self) -> PathBuf {
        self.root.join("server/volumes")
    }

    pub(crate) fn shared_volume(&self, id: &SharedVolumeId) -> PathBuf {
        self.shared_volumes().join(id.as_str())
    }

    pub(crate) fn ready(&self) -> PathBuf {
        self.root.join("ready")
    }

    pub(crate) fn contents(&self) -> PathBuf {
        self.root.join("contents")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn groups(&self) -> PathBuf {
        self.root.join("groups")
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Returns the directory of the audit logs.
    pub(crate) fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }
}

/// Checks a directory that may have existed before and belong to any user. Its content was made
/// below a directory that only its owner could change.
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
    fn home_is_private_and_can_be_opened_twice() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let home = Home::open(&root).unwrap();
        Home::open(&root).unwrap();
        for path in [home.root(), &home.sandboxes(), &home.names(), &home.trash()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn file_in_place_of_a_directory_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("file/home");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let message = Home::open(&root).unwrap_err().to_string();
        assert!(message.contains("file/home"), "{message}");
    }

    #[test]
    fn home_that_others_can_write_to_is_rejected() {
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
    fn home_of_another_user_is_rejected() {
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
