//! Names of sandboxes. A name is a symbolic link `names/<name>` to its sandbox. Making a link
//! either succeeds or finds another link, so two sandboxes can never get the same name. A link is
//! dead when its sandbox neither exists nor is being created. Then the name is free, and a process
//! that wants it removes the link under the lock of `names/`.

use crate::home::{
    directory::DirectoryError,
    flock::Sharing,
    layout::Home,
    locks::{FileLock, LockClass, directory_file},
};
use sandboxvm_protocol::identity::{SandboxId, SandboxName};
use std::{fs, io, path::Path};

/// Why a name was not assigned.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Another sandbox has the name.
    #[error("the name \"{name}\" is already used by sandbox {holder}")]
    Taken {
        /// The name.
        name: SandboxName,
        /// The sandbox that has it.
        holder: SandboxId,
    },
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Assigns `name` to `id`, whose directory is being made.
pub(crate) fn claim(home: &Home, name: &SandboxName, id: &SandboxId) -> Result<(), NameError> {
    let link = home.names().join(name.as_str());
    let target = Path::new("../sandboxes").join(id.as_str());
    loop {
        match std::os::unix::fs::symlink(&target, &link) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(DirectoryError::new("create", &link, error).into()),
        }
        let _lock = lock(home)?;
        match resolve(home, name) {
            Some(holder) if !is_dead(home, &holder) => return Err(NameError::Taken { name: name.clone(), holder }),
            _ => remove_link(&link)?,
        }
    }
}

/// Removes `name` from `id`. Does nothing if another sandbox has it by now.
pub(crate) fn release(home: &Home, name: &SandboxName, id: &SandboxId) -> Result<(), DirectoryError> {
    let _lock = lock(home)?;
    if resolve(home, name).as_ref() == Some(id) {
        remove_link(&home.names().join(name.as_str()))?;
    }
    Ok(())
}

/// Returns the sandbox that has `name`.
pub(crate) fn resolve(home: &Home, name: &SandboxName) -> Option<SandboxId> {
    let target = fs::read_link(home.names().join(name.as_str())).ok()?;
    SandboxId::try_from(target.file_name()?.to_str()?.to_owned()).ok()
}

/// Returns the name of `id`. Reads the links, because the record of the sandbox may be damaged.
pub(crate) fn of(home: &Home, id: &SandboxId) -> Result<Option<SandboxName>, DirectoryError> {
    Ok(all(home)?.into_iter().find(|name| resolve(home, name).as_ref() == Some(id)))
}

/// Removes the names of sandboxes that do not exist any more. Returns their number.
pub(crate) fn sweep(home: &Home) -> Result<usize, DirectoryError> {
    let mut removed = 0;
    for name in all(home)? {
        if resolve(home, &name).is_some_and(|id| !is_dead(home, &id)) {
            continue;
        }
        let _lock = lock(home)?;
        if resolve(home, &name).is_none_or(|id| is_dead(home, &id)) {
            remove_link(&home.names().join(name.as_str()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn all(home: &Home) -> Result<Vec<SandboxName>, DirectoryError> {
    let names = home.names();
    let entries = fs::read_dir(&names).map_err(|e| DirectoryError::new("list", &names, e))?;
    Ok(entries.flatten().filter_map(|e| SandboxName::try_from(e.file_name().into_string().ok()?).ok()).collect())
}

/// Returns true if the sandbox neither is being created nor exists. Staging is checked first: a
/// sandbox moves from there to `sandboxes/`, never back.
fn is_dead(home: &Home, id: &SandboxId) -> bool {
    !home.staged(id).exists() && !home.sandbox(id).exists()
}

fn lock(home: &Home) -> Result<FileLock, DirectoryError> {
    let names = home.names();
    FileLock::wait(LockClass::Names, Sharing::Exclusive, directory_file(&names)?)
        .map_err(|error| DirectoryError::new("lock", names, error))
}

fn remove_link(link: &Path) -> Result<(), DirectoryError> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DirectoryError::new("remove", link, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        (dir, home)
    }

    fn name(text: &str) -> SandboxName {
        SandboxName::try_from(text.to_owned()).unwrap()
    }

    fn id(text: &str) -> SandboxId {
        SandboxId::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn concurrent_claims_of_a_name_have_one_winner() {
        let (_dir, home) = home();
        let winners = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|n| {
                    let home = &home;
                    scope.spawn(move || {
                        let id = id(&format!("aaaaaaa{n:02}"));
                        fs::create_dir(home.staged(&id)).unwrap();
                        claim(home, &name("demo"), &id).map(|()| id)
                    })
                })
                .collect();
            threads.into_iter().filter_map(|t| t.join().unwrap().ok()).collect::<Vec<_>>()
        });
        assert_eq!(winners.len(), 1);
        assert_eq!(resolve(&home, &name("demo")).as_ref(), winners.first());
    }

    #[test]
    fn name_is_taken_from_creation_to_removal_of_its_sandbox() {
        let (_dir, home) = home();
        let (a, b) = (id("aaaaaaaa"), id("bbbbbbbb"));
        fs::create_dir(home.staged(&a)).unwrap();
        claim(&home, &name("demo"), &a).unwrap();
        assert!(matches!(claim(&home, &name("demo"), &b), Err(NameError::Taken { holder, .. }) if holder == a));
        fs::rename(home.staged(&a), home.sandbox(&a)).unwrap();
        let message = claim(&home, &name("demo"), &b).unwrap_err().to_string();
        assert!(message.contains("used by sandbox aaaaaaaa"), "{message}");
        // As if its process was killed between deleting the directory and the name.
        fs::remove_dir(home.sandbox(&a)).unwrap();
        fs::create_dir(home.staged(&b)).unwrap();
        claim(&home, &name("demo"), &b).unwrap();
        release(&home, &name("demo"), &a).unwrap();
        assert_eq!(resolve(&home, &name("demo")), Some(b.clone()), "released by one who does not have it");
        release(&home, &name("demo"), &b).unwrap();
        assert_eq!(resolve(&home, &name("demo")), None);
    }

    #[test]
    fn sweeping_removes_only_dead_names() {
        let (_dir, home) = home();
        let (a, b) = (id("aaaaaaaa"), id("bbbbbbbb"));
        fs::create_dir(home.sandbox(&a)).unwrap();
        claim(&home, &name("alive"), &a).unwrap();
        claim(&home, &name("dead"), &b).unwrap();
        assert_eq!(sweep(&home).unwrap(), 1);
        assert_eq!(resolve(&home, &name("alive")), Some(a));
        assert_eq!(resolve(&home, &name("dead")), None);
    }
}
