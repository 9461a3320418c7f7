//! Deletes a sandbox's files: renames the directory into the trash, which hides it in one step, then deletes file by file.
//! A SIGKILL in between leaves only what a sweep deletes.

use crate::{
    audit::{Event, Trail},
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
        names,
    },
    limits::cpu_share,
    supervision,
    vmm::{
        end::Remains,
        family,
        group::{self, Group},
        state::{self, State},
    },
};
use sandboxvm_protocol::ids::{SandboxId, SandboxName};
use std::{fs, io, path::Path, time::Duration};

/// In a sandbox's directory, the files without which its processes could not be found.
const NAMES_OF_PROCESSES: [&str; 3] = [group::LINK, family::FILE, cpu_share::GROUP];
/// A VMM that was killed is there until its machine is taken down: some 15 ms, on a loaded host more.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Takes a directory, its name and its mark away. One that is gone already is no error.
pub(crate) fn discard(
    home: &Home,
    mut directory: SandboxDirectory,
    id: &SandboxId,
    name: Option<&SandboxName>,
) -> Result<(), DirectoryError> {
    supervision::forget(&directory);
    let trash = home.trash().join(id.as_str());
    let ended = state::read(&directory).ok();
    match directory.rename_to(trash.clone()) {
        Ok(()) => log_removal(&Trail::of(home, id), ended),
        Err(error) if !error.is_not_found() => return Err(error),
        Err(_) => {}
    }
    if let Some(name) = name {
        names::release(home, name, id)?;
    }
    delete_mark(home, id)?;
    delete(home, &trash)
}

fn log_removal(trail: &Trail, ended: Option<State>) {
    if let Some(reason) = ended.as_ref().and_then(State::end) {
        trail.note_if_any(Event::MachineEnded { reason });
    }
    trail.note_if_any(Event::Removed);
}

pub(crate) fn delete_mark(home: &Home, id: &SandboxId) -> Result<(), DirectoryError> {
    let mark = home.ephemeral_mark(id);
    gone(fs::remove_file(&mark)).map_err(|e| DirectoryError::new("remove", mark, e))
}

/// Deletes a directory tree, which others may be deleting too, after ending what is left of the machine in it. It stays for
/// the next sweep, with what names the machine's processes, while one of those is there.
pub(crate) fn delete(home: &Home, path: &Path) -> Result<(), DirectoryError> {
    let directory = match SandboxDirectory::open(path.to_owned()) {
        Ok(directory) => directory,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    if NAMES_OF_PROCESSES.iter().any(|name| directory.has(name)) {
        let remains = Remains::of(home, &directory);
        remains.kill();
        // While the kernel takes the machine down; its open files do not mind.
        for name in
            directory.names().unwrap_or_default().iter().filter(|name| !NAMES_OF_PROCESSES.contains(&name.as_str()))
        {
            // What else is there goes below.
            let _ = directory.unlink(name);
        }
        if !remains.gone_within(GONE_WITHIN) || !cpu_share::release(&directory) || !Group::release(&directory) {
            return Ok(());
        }
    }
    gone(fs::remove_dir_all(path)).map_err(|e| DirectoryError::new("remove", path, e))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
