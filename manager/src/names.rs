//! Names: a name is a symbolic link `names/<name>` to its sandbox. Making a link either succeeds or finds another, so
//! two sandboxes never get one name. A link is dead when its sandbox is neither there nor being made; then the name is
//! free, and whoever wants it takes the link away under the lock of `names/`.

use crate::{directory::DirectoryError, home::Home};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use sandboxvm_protocol::identity::{SandboxId, SandboxName};
use std::{fs, io, os::fd::OwnedFd, path::Path};

/// Why a name was not given.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Another sandbox has it.
    #[error("the name \"{name}\" is already used by sandbox {holder}")]
    Taken {
        /// The name.
        name: SandboxName,
        /// Who has it.
        holder: SandboxId,
    },
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Gives `name` to `id`, whose directory is being made.
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

/// Takes `name` from `id`; nothing happens when another sandbox has it by now.
pub(crate) fn release(home: &Home, name: &SandboxName, id: &SandboxId) -> Result<(), DirectoryError> {
    let _lock = lock(home)?;
    if resolve(home, name).as_ref() == Some(id) {
        remove_link(&home.names().join(name.as_str()))?;
    }
    Ok(())
}

/// Who has `name`.
pub(crate) fn resolve(home: &Home, name: &SandboxName) -> Option<SandboxId> {
    let target = fs::read_link(home.names().join(name.as_str())).ok()?;
    SandboxId::try_from(target.file_name()?.to_str()?.to_owned()).ok()
}

/// The name of `id`, from the links themselves: its record may be damaged.
pub(crate) fn of(home: &Home, id: &SandboxId) -> Result<Option<SandboxName>, DirectoryError> {
    Ok(all(home)?.into_iter().find(|name| resolve(home, name).as_ref() == Some(id)))
}

/// Takes away the names of sandboxes that are gone; says how many.
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

/// Staging first: a sandbox moves from there to `sandboxes/`, never back.
fn is_dead(home: &Home, id: &SandboxId) -> bool {
    !home.staged(id).exists() && !home.sandbox(id).exists()
}

fn lock(home: &Home) -> Result<OwnedFd, DirectoryError> {
    let names = home.names();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&names, flags, Mode::empty())
        .and_then(|fd| flock(&fd, FlockOperation::LockExclusive).map(|()| fd))
        .map_err(|e| DirectoryError::new("lock", &names, e))
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
    fn of_many_who_want_a_name_one_gets_it() {
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
    fn a_name_is_taken_while_its_sandbox_is_made_and_while_it_exists_and_free_after() {
        let (_dir, home) = home();
        let (a, b) = (id("aaaaaaaa"), id("bbbbbbbb"));
        fs::create_dir(home.staged(&a)).unwrap();
        claim(&home, &name("demo"), &a).unwrap();
        assert!(matches!(claim(&home, &name("demo"), &b), Err(NameError::Taken { holder, .. }) if holder == a));
        fs::rename(home.staged(&a), home.sandbox(&a)).unwrap();
        let message = claim(&home, &name("demo"), &b).unwrap_err().to_string();
        assert!(message.contains("used by sandbox aaaaaaaa"), "{message}");
        // Killed between deleting the directory and the name.
        fs::remove_dir(home.sandbox(&a)).unwrap();
        fs::create_dir(home.staged(&b)).unwrap();
        claim(&home, &name("demo"), &b).unwrap();
        release(&home, &name("demo"), &a).unwrap();
        assert_eq!(resolve(&home, &name("demo")), Some(b.clone()), "released by one who does not have it");
        release(&home, &name("demo"), &b).unwrap();
        assert_eq!(resolve(&home, &name("demo")), None);
    }

    #[test]
    fn sweeping_takes_dead_names_only() {
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
