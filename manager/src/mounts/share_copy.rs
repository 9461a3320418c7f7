//! The copy of a share that a fork has, in the directory of the fork: a directory that only confined processes go
//! into, since a sandbox writes its files. Belongs to the owner of what was shared, who serves it.
//!
//! Its limits are those of `share/src/copy`, and it leaves free what admission leaves free.

use super::{
    share_root::{ShareRoot, ShareRootError},
    spec::Share,
};
use crate::{
    home::{
        directory::{DirectoryError, SandboxDirectory},
        layout::Home,
    },
    shared_volumes,
};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, fstat, mkdirat, openat, statat},
    io::Errno,
    process::geteuid,
};
use sandboxvm_protocol::agent::share::ShareNumber;
use sandboxvm_share::FILES;
use std::{fs, io, os::fd::OwnedFd, os::unix::fs::chown, path::PathBuf};

fn name(number: ShareNumber) -> String {
    format!("share-{}", u8::from(number))
}

/// Returns the path of a copy.
pub(crate) fn path(directory: &SandboxDirectory, number: ShareNumber) -> PathBuf {
    directory.path().join(name(number))
}

/// Opens what the sandbox of `directory` shares: its copy, or what of the host.
pub(crate) fn open_share(
    home: &Home,
    directory: &SandboxDirectory,
    share: &Share<'_>,
) -> Result<ShareRoot, ShareRootError> {
    if !share.copied {
        return ShareRoot::of_host(home, share);
    }
    let failed = |source| ShareRootError::Open { path: path(directory, share.number), source };
    open(directory, share.number).map_err(failed)
}

/// Opens a copy, by a descriptor that only names it.
fn open(directory: &SandboxDirectory, number: ShareNumber) -> Result<ShareRoot, Errno> {
    let file = open_directory(directory, number)?;
    let files = statat(&file, FILES, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(ShareRoot { file, is_directory: FileType::from_raw_mode(files.st_mode) == FileType::Directory })
}

/// Opens the files of a copy, from which a fork of the fork gets its own copy.
pub(crate) fn open_files(directory: &SandboxDirectory, number: ShareNumber) -> Result<ShareRoot, Errno> {
    let copy = open(directory, number)?;
    let file = openat(&copy.file, FILES, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok(ShareRoot { file, ..copy })
}

fn open_directory(directory: &SandboxDirectory, number: ShareNumber) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory.fd(), &*name(number), flags, Mode::empty())
}

/// Makes the empty directory for a copy of `source`, and opens it by a descriptor that only names it.
pub(crate) fn make(directory: &SandboxDirectory, number: ShareNumber, source: &ShareRoot) -> io::Result<OwnedFd> {
    mkdirat(directory.fd(), &*name(number), Mode::RWXU)?;
    if geteuid().is_root() {
        let owner = fstat(&source.file)?;
        chown(path(directory, number), Some(owner.st_uid), Some(owner.st_gid))?;
    }
    Ok(open_directory(directory, number)?)
}

/// Removes what is in the copies of a sandbox that is being deleted.
pub(crate) fn clear_all(home: &Home, directory: &SandboxDirectory) -> Result<(), DirectoryError> {
    for number in ShareNumber::all() {
        let copy = path(directory, number);
        match open_directory(directory, number) {
            Ok(_) => {}
            // Nothing, or not a directory: a copy is one.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            // Its removal with the rest of the sandbox would go into it.
            Err(errno) => return Err(DirectoryError::new("open", copy, errno)),
        }
        let program = home.share_program().ok_or_else(|| io::Error::other("the bundle has no program that removes it"));
        program
            .and_then(|program| shared_volumes::clear(program, &copy))
            // Not what is in it, whatever that process says.
            .and_then(|()| fs::remove_dir(&copy))
            .map_err(|error| DirectoryError::new("remove", copy, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recursive removal of such a tree by this process overflows its stack.
    #[test]
    fn removal_of_a_sandbox_does_not_go_into_its_copies() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let directory = SandboxDirectory::create(root.path().join("sandbox")).unwrap();
        let number = ShareNumber::try_from(3).unwrap();
        let file = rustix::fs::open(root.path(), OFlags::PATH, Mode::empty()).unwrap();
        let source = ShareRoot { file, is_directory: true };
        let mut at = make(&directory, number, &source).unwrap();
        for _ in 0..20_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        // The removal of a tree of which the deepest directory is open takes the kernel ten times as long.
        drop(at);
        let with = |program: &str| home.clone().with_share_program(program.into());
        // There is no program, it fails, or it claims to have removed everything.
        for home in [&home, &with("/bin/false"), &with("/bin/true")] {
            clear_all(home, &directory).unwrap_err();
            assert!(path(&directory, number).join("d/d").exists());
        }
        // Neither does this test.
        let copy = path(&directory, number);
        assert!(std::process::Command::new("rm").arg("-rf").arg(copy.join("d")).status().unwrap().success());
        clear_all(&with("/bin/true"), &directory).unwrap();
        assert!(!copy.exists());
    }

    #[test]
    fn a_copy_that_cannot_be_opened_is_not_taken_for_absent() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let directory = SandboxDirectory::create(root.path().join("sandbox")).unwrap();
        fs::create_dir(path(&directory, ShareNumber::try_from(3).unwrap())).unwrap();
        let usual = getrlimit(Resource::Nofile);
        // No descriptor is left. Another test is in another process.
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..usual }).unwrap();
        let cleared = clear_all(&home, &directory);
        setrlimit(Resource::Nofile, usual).unwrap();
        assert!(cleared.unwrap_err().to_string().contains("share-"));
    }
}
