//! Walks a project and describes every file of it, without reading content. Owns what is left out:
//! sockets, devices, pipes, what is mounted below the root, and what rules name.

use super::{
    options::CopyOptions,
    rules::{Rules, RulesError},
};
use crate::beneath::{About, Root, STAGING_PREFIX, look_at};
use rustix::{
    fd::AsFd,
    fs::{Dir, FileType, readlinkat},
    io::Errno,
};
use std::{collections::BTreeMap, rc::Rc};

/// Maximum length of a path in bytes (Linux `PATH_MAX` without its NUL).
const MAX_PATH: usize = 4095;

/// Why a project cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The system refuses it.
    #[error("cannot {step} \"{}\": {errno}", .path.escape_ascii())]
    File {
        /// What failed.
        step: &'static str,
        /// Path below the root.
        path: Vec<u8>,
        /// The reason.
        errno: Errno,
    },
    /// There are too many files.
    #[error("cannot copy the directory: it has more than {0} files")]
    TooMany(u64),
    /// The files are too large.
    #[error("cannot copy the directory: its files have more than {0} bytes")]
    TooLarge(u64),
    /// A path is too long.
    #[error("the path \"{}\" is longer than {MAX_PATH} bytes, or deeper than {depth} directories", .path.escape_ascii())]
    TooDeep {
        /// The path below the root.
        path: Vec<u8>,
        /// Maximum number of directories.
        depth: u16,
    },
    /// Rules that leave out files are invalid.
    #[error(transparent)]
    Rules(#[from] RulesError),
}

/// A file that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) about: About,
    /// Target of a symbolic link.
    pub(super) target: Option<Vec<u8>>,
}

/// All files of a project by their path.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) found: BTreeMap<Vec<u8>, Found>,
    pub(super) bytes: u64,
    pub(super) left_out: u64,
    /// An apply to the project was interrupted, or is running.
    pub(super) has_staging: bool,
}

/// Walks a project.
pub(super) fn scan(root: &Root, options: &CopyOptions) -> Result<Scan, ScanError> {
    let mut scan = Scan::default();
    let mut pending = vec![(Vec::new(), 0, None)];
    while let Some((path, depth, rules)) = pending.pop() {
        scan.directory(root, &path, depth, rules, options, &mut pending)?;
    }
    Ok(scan)
}

type Pending = (Vec<u8>, u16, Option<Rc<Rules>>);

impl Scan {
    fn directory(
        &mut self,
        root: &Root,
        path: &[u8],
        depth: u16,
        above: Option<Rc<Rules>>,
        options: &CopyOptions,
        pending: &mut Vec<Pending>,
    ) -> Result<(), ScanError> {
        let fail = |step, path: &[u8]| {
            let path = path.to_vec();
            move |errno| ScanError::File { step, path, errno }
        };
        let directory = match root.directory(path) {
            Ok(directory) => directory,
            // It was removed or replaced since its parent was listed.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if depth > 0 => return Ok(()),
            Err(errno) => return Err(fail("open", path)(errno)),
        };
        let rules = Rules::of(root, path, above, options)?;
        let listing = Dir::read_from(&directory).map_err(fail("list", path))?;
        for item in listing {
            let item = item.map_err(fail("list", path))?;
            let name = item.file_name().to_bytes();
            let is_staging = path.is_empty() && name.starts_with(STAGING_PREFIX.as_bytes());
            self.has_staging |= is_staging;
            if matches!(name, b"." | b"..") || is_staging {
                continue;
            }
            let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            if path.len() > MAX_PATH || depth >= options.max_depth {
                return Err(ScanError::TooDeep { path, depth: options.max_depth });
            }
            let about = match look_at(directory.as_fd(), name) {
                Ok(about) => about,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(fail("look at", &path)(errno)),
            };
            let is_directory = about.kind == FileType::Directory;
            if rules.as_ref().is_some_and(|rules| rules.leave_out(&path, is_directory)) {
                continue;
            }
            let target = match about.kind {
                _ if about.is_mount => {
                    self.left_out += 1;
                    continue;
                }
                FileType::Directory | FileType::RegularFile => None,
                FileType::Symlink => match readlinkat(&directory, name, Vec::new()) {
                    Ok(target) => Some(target.into_bytes()),
                    Err(Errno::NOENT | Errno::INVAL) => continue,
                    Err(errno) => return Err(fail("read the link", &path)(errno)),
                },
                _ => {
                    self.left_out += 1;
                    continue;
                }
            };
            if is_directory {
                pending.push((path.clone(), depth + 1, rules.clone()));
            } else if target.is_none() {
                self.bytes = self.bytes.saturating_add(about.size);
            }
            if self.bytes > options.max_bytes {
                return Err(ScanError::TooLarge(options.max_bytes));
            }
            self.found.insert(path, Found { about, target });
            if self.found.len() as u64 > options.max_files {
                return Err(ScanError::TooMany(options.max_files));
            }
        }
        Ok(())
    }
}
