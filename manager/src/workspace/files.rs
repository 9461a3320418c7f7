//! The files of a workspace in the directory of a sandbox or snapshot: `slot.N`, one for each slot, and
//! `workspace.index`. Each directory has links to them, so that removing one never breaks another.
//! They may never be written.

use super::{
    record::{WorkspaceRecord, slot_name},
    spec::WorkspaceSpec,
};
use crate::home::directory::{DirectoryError, SandboxDirectory};
use rustix::{
    fs::{AtFlags, statat},
    io::Errno,
};
use sandboxvm_protocol::machine::SlotNumber;
use std::{fs::File, io, path::Path};

/// Says what the slots contain.
pub(super) const INDEX: &str = "workspace.index";

/// Links the files that a new sandbox's workspace is made of into its directory.
pub(crate) fn adopt(directory: &SandboxDirectory, spec: &WorkspaceSpec) -> Result<(), DirectoryError> {
    for (slot, path) in SlotNumber::all().zip(&spec.slots) {
        link_or_copy(directory, path, &slot_name(slot))?;
    }
    spec.index.as_ref().map_or(Ok(()), |path| link_or_copy(directory, path, INDEX))
}

fn link_or_copy(directory: &SandboxDirectory, path: &Path, name: &str) -> Result<(), DirectoryError> {
    let file = File::open(path).map_err(|error| DirectoryError::new("open", path, error))?;
    let is_file = file.metadata().map_err(|error| DirectoryError::new("examine", path, error))?.is_file();
    if !is_file {
        return Err(DirectoryError::new("use", path, io::Error::other("it is not a regular file")));
    }
    if directory.link(&file, name).is_ok() {
        return Ok(());
    }
    // Another file system, or a file of another user. A copy shares its blocks where that is possible.
    let mut copy = directory.create_file(name)?;
    io::copy(&mut &file, &mut copy).map_err(|error| directory.error("write", name, error))?;
    Ok(())
}

/// Creates the empty files of a machine that becomes a ready snapshot.
pub(crate) fn make_empty(directory: &SandboxDirectory, record: &WorkspaceRecord) -> Result<(), DirectoryError> {
    record.slots.iter().try_for_each(|name| directory.create_file(name).map(drop))
}

/// Opens the files in the slots of a machine, bottom up.
pub(crate) fn open(
    directory: &SandboxDirectory,
    record: Option<&WorkspaceRecord>,
) -> Result<Vec<File>, DirectoryError> {
    record.iter().flat_map(|record| &record.slots).map(|name| directory.open_shared(name)).collect()
}

/// Links the files of a workspace from one directory to another that has none of them. Does nothing
/// if there is no workspace.
pub(crate) fn share(from: &SandboxDirectory, to: &SandboxDirectory) -> Result<(), DirectoryError> {
    for slot in SlotNumber::all().map(slot_name).take_while(|name| from.has(name)) {
        to.link_from(from, &slot, &slot)?;
    }
    if from.has(INDEX) { to.link_from(from, INDEX, INDEX) } else { Ok(()) }
}

/// Returns true if the directory has the files of a workspace.
pub(crate) fn are_in(directory: &SandboxDirectory) -> bool {
    directory.has(&slot_name(SlotNumber::FIRST))
}

/// Returns true if the slots of both directories have the same files: a guest's memory has parts of
/// them, so no other files may take their place.
pub(crate) fn are_shared(
    record: &WorkspaceRecord,
    a: &SandboxDirectory,
    b: &SandboxDirectory,
) -> Result<bool, DirectoryError> {
    let identity =
        |directory: &SandboxDirectory, name: &str| match statat(directory.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(directory.error("examine", name, error)),
        };
    for name in &record.slots {
        let there = identity(a, name)?;
        if there.is_none() || there != identity(b, name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::spec::tests::example;
    use std::fs;

    #[test]
    fn files_are_linked_and_outlive_those_they_came_from() {
        let home = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| SandboxDirectory::create(home.path().join(name)).unwrap());
        let paths: Vec<_> = (0..2).map(|n| home.path().join(format!("layer.{n}"))).collect();
        for path in &paths {
            fs::write(path, path.to_str().unwrap()).unwrap();
        }
        let index = home.path().join("index");
        fs::write(&index, "of both").unwrap();
        let spec = WorkspaceSpec { slots: paths.clone(), index: Some(index), ..example(0) };
        let record = WorkspaceRecord::of(&spec);
        assert!(record.is_valid());
        adopt(&a, &spec).unwrap();
        share(&a, &b).unwrap();
        share(&c, &b).unwrap();
        for path in &paths {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(b.read("slot.1", 999).unwrap(), paths[1].to_str().unwrap().as_bytes());
        assert_eq!(b.read(INDEX, 99).unwrap(), b"of both");
        assert_eq!(open(&b, Some(&record)).unwrap().len(), 2);
        assert!(open(&c, None).unwrap().is_empty() && are_in(&b) && !are_in(&c));
        assert!(are_shared(&record, &a, &b).unwrap());
        assert!(!are_shared(&record, &a, &c).unwrap());
        // The same content is not the same file.
        for name in ["slot.0", "slot.1"] {
            c.write_new(name, &a.read(name, 999).unwrap()).unwrap();
        }
        assert!(!are_shared(&record, &a, &c).unwrap());
    }

    #[test]
    fn what_is_not_a_file_is_no_slot() {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("a")).unwrap();
        for path in ["/dev/null", "/no/such/file", "/tmp"] {
            adopt(&directory, &WorkspaceSpec { slots: vec![path.into()], ..example(0) }).unwrap_err();
        }
        assert!(!are_in(&directory));
    }
}
