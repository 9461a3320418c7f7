//! The sandboxes of one home: finding and listing them. Making and removing them is in `create` and `remove`.

use crate::{
    admission::AdmissionRules,
    directory::{DirectoryError, SandboxDirectory},
    home::{Home, HomeError},
    names,
    record::{RecordError, SandboxRecord},
    sandbox::Sandbox,
    state::State,
    supervision::status::SupervisionStatus,
};
use sandboxvm_protocol::identity::{SandboxId, SandboxName};
use serde::Serialize;
use std::{fs, path::Path};

/// Shortest ID prefix that is looked up.
const MIN_PREFIX: usize = 4;

/// Why a sandbox was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None is called that.
    #[error("no sandbox has the name or ID {0:?}")]
    Unknown(String),
    /// Several IDs begin like that.
    #[error("sandbox ID {prefix:?} is ambiguous: it matches {first}, {second} and possibly others")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// One.
        first: SandboxId,
        /// Another.
        second: SandboxId,
    },
    /// Its record cannot be read.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// A sandbox whose files say no more what it is: it may run, and can be removed by its ID.
#[derive(Debug)]
pub struct Unreadable {
    /// Its ID.
    pub id: SandboxId,
    /// What is wrong with it.
    pub error: FindError,
}

/// One row of `ls`.
#[derive(Debug, Clone, Serialize)]
pub struct SandboxSummary {
    /// What it was made as.
    #[serde(flatten)]
    pub record: SandboxRecord,
    /// What it does.
    #[serde(flatten)]
    pub state: State,
    /// What is kept up for it.
    pub supervision: Option<SupervisionStatus>,
}

/// The sandboxes of one home.
#[derive(Debug, Clone)]
pub struct Manager {
    pub(crate) home: Home,
}

impl Manager {
    /// Opens the home at `root`, making it first where it is missing.
    ///
    /// # Errors
    /// [`HomeError::Create`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        Ok(Self { home: Home::open(root)? })
    }

    /// The same, with other rules for new sandboxes.
    #[must_use]
    pub fn with_rules(self, rules: AdmissionRules) -> Self {
        Self { home: self.home.with_rules(rules) }
    }

    /// The same, with at most so many bytes of audit log for each sandbox. One whose log is full runs nothing new.
    #[must_use]
    pub fn with_max_audit_log(self, bytes: u64) -> Self {
        Self { home: self.home.with_max_audit_log(bytes) }
    }

    /// Path of the home.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.home.root()
    }

    /// Finds a sandbox by ID, name, or the beginning of an ID (at least four characters).
    ///
    /// # Errors
    /// Every [`FindError`].
    pub fn find(&self, reference: &str) -> Result<Sandbox, FindError> {
        let id = self.resolve(reference)?;
        self.open_sandbox(&id)?.ok_or_else(|| FindError::Unknown(reference.to_owned()))
    }

    /// Which sandbox is meant; it may be gone by the time it is opened.
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

    /// All sandboxes, oldest first, with what they do. Those that cannot be read are in [`Self::list_with_unreadable`].
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn list(&self) -> Result<Vec<SandboxSummary>, DirectoryError> {
        Ok(self.list_with_unreadable()?.0)
    }

    /// The same, and those that cannot be read.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn list_with_unreadable(&self) -> Result<(Vec<SandboxSummary>, Vec<Unreadable>), DirectoryError> {
        let (mut summaries, mut unreadable) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.summary(&id) {
                Ok(summary) => summaries.extend(summary),
                Err(error) => unreadable.push(Unreadable { id, error }),
            }
        }
        summaries.sort_by(|a, b| (a.record.created_at, &a.record.id).cmp(&(b.record.created_at, &b.record.id)));
        unreadable.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((summaries, unreadable))
    }

    /// `None` when there is none with this ID.
    fn summary(&self, id: &SandboxId) -> Result<Option<SandboxSummary>, FindError> {
        let Some(sandbox) = self.open_sandbox(id)? else { return Ok(None) };
        let supervision = sandbox.supervision().ok().flatten();
        Ok(Some(SandboxSummary { state: sandbox.state()?, supervision, record: sandbox.record }))
    }

    pub(crate) fn ids(&self) -> Result<Vec<SandboxId>, DirectoryError> {
        let path = self.home.sandboxes();
        let entries = fs::read_dir(&path).map_err(|e| DirectoryError::new("list", &path, e))?;
        Ok(entries.flatten().filter_map(|e| SandboxId::try_from(e.file_name().into_string().ok()?).ok()).collect())
    }

    /// `None` when there is none with this ID.
    fn open_sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, FindError> {
        let directory = match SandboxDirectory::open(self.home.sandbox(id)) {
            Ok(directory) => directory,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match SandboxRecord::read(&directory) {
            Ok(record) => Ok(Some(Sandbox { home: self.home.clone(), directory, record })),
            // Deleted between the two steps.
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
    fn sandboxes_are_found_by_id_name_and_beginning() {
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

    #[test]
    fn the_list_is_in_order_and_leaves_out_what_cannot_be_read() {
        let (_dir, manager) = manager_with(&["bbbbbbbb", "aaaaaaaa"]);
        fs::create_dir(manager.home.sandboxes().join("cccccccc")).unwrap();
        let ids: Vec<String> = manager.list().unwrap().iter().map(|s| s.record.id.to_string()).collect();
        assert_eq!(ids, ["aaaaaaaa", "bbbbbbbb"]);
    }
}
