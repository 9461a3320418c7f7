//! Deletes the files of a sandbox: renames the directory into the trash, which hides it in one
//! step, then deletes file by file. A SIGKILL in between leaves only files that a sweep deletes.
//! May not delete the files that identify processes of the sandbox while one of these still runs.

use crate::{
    audit::{Event, Trail},
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
        names,
    },
    limits::cpu_share,
    mounts::share_copy,
    network::secrets,
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

/// The files in a sandbox's directory without which its processes could not be found.
const NAMES_OF_PROCESSES: [&str; 3] = [group::LINK, family::FILE, cpu_share::GROUP];
/// Maximum time until a killed VMM has ended. It exists until its machine is taken down, which
/// takes some 15 ms, and more on a loaded host.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Deletes a directory, its name and its mark. Succeeds if it does not exist any more.
pub(crate) fn discard(
    home: &Home,
    mut directory: SandboxDirectory,
    id: &SandboxId,
    name: Option<&SandboxName>,
) -> Result<(), DirectoryError> {
    supervision::forget(&directory);
    secrets::wipe(&directory);
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

/// Ends the processes that are left of the machine in a directory, then deletes the directory,
/// which others may be deleting too. While one of these processes still runs, the directory stays
/// for the next sweep, with the files that identify them.
pub(crate) fn delete(home: &Home, path: &Path) -> Result<(), DirectoryError> {
    let directory = match SandboxDirectory::open(path.to_owned()) {
        Ok(directory) => directory,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    if NAMES_OF_PROCESSES.iter().any(|name| directory.has(name)) {
        let remains = Remains::of(home, &directory);
        remains.kill();
        // Deletes files while the kernel takes the machine down; this does not affect its open
        // files.
        for name in
            directory.names().unwrap_or_default().iter().filter(|name| !NAMES_OF_PROCESSES.contains(&name.as_str()))
        {
            // An entry that cannot be unlinked here is removed below.
            let _ = directory.unlink(name);
        }
        if !remains.gone_within(GONE_WITHIN) || !cpu_share::release(&directory) || !Group::release(&directory) {
            return Ok(());
        }
    }
    share_copy::clear_all(home, &directory)?;
    gone(fs::remove_dir_all(path)).map_err(|e| DirectoryError::new("remove", path, e))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
