//! The sandboxes of a home, found by ID, name or prefix. Other modules add their methods to
//! [`Manager`].

use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::{Home, HomeError},
        names,
        rules::AdmissionRules,
    },
    network::operator::{NetworkOperator, present},
    record::{RecordError, SandboxRecord},
    sandbox::Sandbox,
};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Minimum length of an ID prefix.
const MIN_PREFIX: usize = 4;

/// Why a sandbox was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// No sandbox has this name or ID.
    #[error("no sandbox has the name or ID {0:?}")]
    Unknown(String),
    /// Several IDs start with this prefix.
    #[error("sandbox ID {prefix:?} is ambiguous: it matches {first}, {second} and possibly others")]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// One of the IDs.
        first: SandboxId,
        /// Another of the IDs.
        second: SandboxId,
    },
    /// The record of the sandbox cannot be read.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// The sandboxes of one home.
#[derive(Debug, Clone)]
pub struct Manager {
    pub(crate) home: Home,
}

impl Manager {
    /// Opens the home at `root`, and creates it if it is missing.
    ///
    /// # Errors
    /// Every [`HomeError`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        Ok(Self { home: Home::open(root)? })
    }

    /// Sets the rules for new sandboxes.
    #[must_use]
    pub fn with_rules(self, rules: AdmissionRules) -> Self {
        Self { home: self.home.with_rules(rules) }
    }

    /// Sets the maximum size in bytes of the audit log of each sandbox. A sandbox whose log is full
    /// cannot run anything new.
    #[must_use]
    pub fn with_max_audit_log(self, bytes: u64) -> Self {
        Self { home: self.home.with_max_audit_log(bytes) }
    }

    /// Sets what the operator provides and permits on the network, and writes it to the home: sandboxes
    /// that exist lose what is not permitted any more when the processes of their network begin next.
    #[must_use]
    pub fn with_network(self, operator: NetworkOperator) -> Self {
        let home = self.home.with_network(operator);
        // An error is reported when a sandbox gets a network.
        let _ = present::write(&home);
        Self { home }
    }

    /// Sets the program of egress process and dialer, for a supervisor.
    #[must_use]
    pub fn with_network_program(self, program: PathBuf) -> Self {
        let operator = NetworkOperator { program: Some(program), ..self.home.network().clone() };
        Self { home: self.home.with_network(operator) }
    }

    /// Sets the program that serves live shares, for a supervisor.
    #[must_use]
    pub fn with_share_program(self, program: PathBuf) -> Self {
        Self { home: self.home.with_share_program(program) }
    }

    /// Returns the path of the home.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.home.root()
    }

    /// Finds a sandbox by ID, name, or a prefix of its ID (at least four characters).
    ///
    /// # Errors
    /// Every [`FindError`].
    pub fn find(&self, reference: &str) -> Result<Sandbox, FindError> {
        let id = self.resolve(reference)?;
        self.open_sandbox(&id)?.ok_or_else(|| FindError::Unknown(reference.to_owned()))
    }

    /// Returns the ID of the sandbox that `reference` names. It may be removed before it is opened.
    pub(crate) fn resolve(&self, reference: &str) -> Result<SandboxId, FindError> {
        if let Ok(id) = SandboxId::try_from(reference.to_owned())
            && self.home.sandbox(&id).exists()
        {
            return Ok(id);
        }
        let by_name = SandboxName::try_from(reference.to_owned()).ok();
        if let Some(id) = by_name.and_then(|name| names::resolve(&self.home, &name)) {
            return Ok(id);
        }
        let mut matching = self.ids()?.into_iter().filter(|id| id.as_str().starts_with(reference));
        match (matching.next(), matching.next()) {
            (Some(id), None) if reference.len() >= MIN_PREFIX => Ok(id),
            (Some(first), Some(second)) if reference.len() >= MIN_PREFIX => {
                Err(FindError::Ambiguous { prefix: reference.to_owned(), first, second })
            }
            _ => Err(FindError::Unknown(reference.to_owned())),
        }
    }

    pub(crate) fn ids(&self) -> Result<Vec<SandboxId>, DirectoryError> {
        let path = self.home.sandboxes();
        let entries = fs::read_dir(&path).map_err(|e| DirectoryError::new("list", &path, e))?;
        Ok(entries.flatten().filter_map(|e| SandboxId::try_from(e.file_name().into_string().ok()?).ok()).collect())
    }

    /// Opens a sandbox. Returns `None` if no sandbox has this ID.
    pub(crate) fn open_sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, FindError> {
        let directory = match SandboxDirectory::open(self.home.sandbox(id)) {
            Ok(directory) => directory,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match SandboxRecord::read(&directory) {
            Ok(record) => Ok(Some(Sandbox { home: self.home.clone(), directory, record })),
            // It was deleted between the two steps.
            Err(RecordError::Directory(error)) if error.is_not_found() && !directory.exists() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::tests::example;

    pub(crate) fn manager_with(ids: &[&str]) -> (tempfile::TempDir, Manager) {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::open(dir.path()).unwrap();
        for id in ids {
            let record = example(id);
            let directory = SandboxDirectory::create(manager.home.sandbox(&record.id)).unwrap();
            record.write(&directory).unwrap();
        }
        (dir, manager)
    }

    #[test]
    fn sandboxes_are_found_by_id_name_and_prefix() {
        let (_dir, manager) = manager_with(&["abcdefgh", "abcdxxxx", "zzzzzzzz"]);
        let zz = SandboxId::try_from("zzzzzzzz".to_owned()).unwrap();
        names::claim(&manager.home, &SandboxName::try_from("demo".to_owned()).unwrap(), &zz).unwrap();
        assert_eq!(manager.find("demo").unwrap().id(), &zz);
        assert_eq!(manager.find("zzzzzzzz").unwrap().id(), &zz);
        assert_eq!(manager.find("zzzz").unwrap().id(), &zz);
        assert!(matches!(manager.find("abcd"), Err(FindError::Ambiguous { .. })));
        for unknown in ["zzz", "", "yyyyyyyy", "../../etc", "a\nb", "-"] {
            assert!(matches!(manager.find(unknown), Err(FindError::Unknown(_))), "{unknown:?}");
        }
    }
}
