//! The bundle: the files every sandbox is made of, the program behind its network card, the program that reads the layers
//! of container images, and the program that serves live shares; where they are looked for, and the check of each before use.
//! Files are checked through the descriptor that is handed on, so what was checked is what boots.

use crate::{
    erofs::{self, ErofsError},
    file_version::FileVersion,
    kernel::{self, KernelError},
    regular::{self, RegularFileError},
};
use rustix::fs::{Access, access};
use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Where to look. Every field may be absent; `cli` fills them from its environment and flags.
#[derive(Debug, Clone, Default)]
pub struct BundleSources {
    /// The bundle directory, when stated.
    pub directory: Option<PathBuf>,
    /// Directory of the running program: the bundle is then in `../lib/sandboxvm` or `bundle`.
    pub program_directory: Option<PathBuf>,
    /// The VMM, whatever the directory holds.
    pub vmm: Option<PathBuf>,
    /// The guest kernel, likewise.
    pub kernel: Option<PathBuf>,
    /// The base image, likewise.
    pub image: Option<PathBuf>,
    /// The agent disk, likewise.
    pub agent: Option<PathBuf>,
    /// The egress process, likewise.
    pub egress: Option<PathBuf>,
    /// The layer process, likewise.
    pub layers: Option<PathBuf>,
    /// The process of a share, likewise.
    pub share: Option<PathBuf>,
}

/// The paths of a bundle's files, not yet looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// `sandboxvm-vmm`, the program.
    pub vmm: PathBuf,
    /// `vmlinux`, the guest kernel.
    pub kernel: PathBuf,
    /// `base.erofs`, the image the guest's processes see.
    pub image: PathBuf,
    /// `agent.erofs`, the disk with the guest agent.
    pub agent: PathBuf,
    /// `sandboxvm-egress`, the program behind a network card. Only a sandbox with a network needs it, so a bundle of an older
    /// version is complete without it.
    pub egress: PathBuf,
    /// `sandboxvm-layers`, the program that reads the layers of container images. No sandbox needs it.
    pub layers: PathBuf,
    /// `sandboxvm-share`, the program that serves live shares. Only a sandbox with a share needs it, so a bundle of an older
    /// version is complete without it.
    pub share: PathBuf,
}

/// A part of the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The program that runs a VM.
    Vmm,
    /// The guest kernel.
    Kernel,
    /// The base image.
    Image,
    /// The agent disk.
    Agent,
    /// The program behind a network card.
    Egress,
    /// The program that reads the layers of container images.
    Layers,
    /// The program that serves live shares.
    Share,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 7] =
        [Self::Vmm, Self::Kernel, Self::Image, Self::Agent, Self::Egress, Self::Layers, Self::Share];

    /// Its file's name in a bundle directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Vmm => "sandboxvm-vmm",
            Self::Kernel => "vmlinux",
            Self::Image => "base.erofs",
            Self::Agent => "agent.erofs",
            Self::Egress => "sandboxvm-egress",
            Self::Layers => "sandboxvm-layers",
            Self::Share => "sandboxvm-share",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "VMM",
            Self::Kernel => "guest kernel",
            Self::Image => "base image",
            Self::Agent => "agent disk",
            Self::Egress => "egress process",
            Self::Layers => "layer process",
            Self::Share => "process of a share",
        })
    }
}

/// Why a bundle cannot be used. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not there.
    #[error("cannot use the {part} {}: the file does not exist", .path.display())]
    Missing {
        /// Which part.
        part: Part,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A directory, device or the like.
    #[error("cannot use the {part} {}: not a regular file", .path.display())]
    NotAFile {
        /// Which part.
        part: Part,
        /// Its path.
        path: PathBuf,
    },
    /// No execute permission.
    #[error("cannot use the {part} {}: the file is not executable", .path.display())]
    NotExecutable {
        /// Which part.
        part: Part,
        /// Its path.
        path: PathBuf,
    },
    /// Not a bootable kernel.
    #[error("cannot use the {} {}: {source}", Part::Kernel, .path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: KernelError,
    },
    /// Not a whole EROFS image.
    #[error("cannot use the {part} {}: {source}", .path.display())]
    Erofs {
        /// Which part.
        part: Part,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: ErofsError,
    },
    /// Opening failed for another reason.
    #[error("cannot open the {part} {}: {source}", .path.display())]
    Io {
        /// Which part.
        part: Part,
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A bundle's files, open and checked.
#[derive(Debug)]
pub struct OpenBundle {
    /// Path of the VMM program.
    pub vmm: PathBuf,
    /// The guest kernel.
    pub kernel: File,
    /// The base image.
    pub image: File,
    /// The agent disk.
    pub agent: File,
    /// Which kernel this is.
    pub kernel_identity: FileVersion,
    /// Which base image this is.
    pub image_identity: FileVersion,
    /// Which agent disk this is.
    pub agent_identity: FileVersion,
}

impl Bundle {
    /// The files of the stated directory, else of the first of the usual ones that exists, each replaced by the file
    /// stated for it. What does not exist is found out when the bundle is opened.
    #[must_use]
    pub fn find(sources: &BundleSources) -> Self {
        let usual = || {
            let beside = sources.program_directory.as_deref().unwrap_or(Path::new("/usr/bin"));
            let candidates = [beside.join("../lib/sandboxvm"), beside.join("bundle")];
            candidates.iter().find(|path| path.is_dir()).unwrap_or(&candidates[0]).clone()
        };
        let directory = sources.directory.clone().unwrap_or_else(usual);
        let part = |stated: &Option<PathBuf>, part: Part| {
            let path = stated.clone().unwrap_or_else(|| directory.join(part.file_name()));
            // The VMM is started in another directory, and records outlive ours. Fails for an empty path alone.
            std::path::absolute(&path).unwrap_or(path)
        };
        Self {
            vmm: part(&sources.vmm, Part::Vmm),
            kernel: part(&sources.kernel, Part::Kernel),
            image: part(&sources.image, Part::Image),
            agent: part(&sources.agent, Part::Agent),
            egress: part(&sources.egress, Part::Egress),
            layers: part(&sources.layers, Part::Layers),
            share: part(&sources.share, Part::Share),
        }
    }

    /// Path of one part.
    #[must_use]
    pub fn path(&self, part: Part) -> &Path {
        match part {
            Part::Vmm => &self.vmm,
            Part::Kernel => &self.kernel,
            Part::Image => &self.image,
            Part::Agent => &self.agent,
            Part::Egress => &self.egress,
            Part::Layers => &self.layers,
            Part::Share => &self.share,
        }
    }

    /// Opens and checks one part.
    ///
    /// # Errors
    /// Every [`BundleError`].
    pub fn open_part(&self, part: Part) -> Result<File, BundleError> {
        let path = self.path(part).to_owned();
        let file = match regular::open(&path) {
            Ok(file) => file,
            Err(RegularFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BundleError::Missing { part, path });
            }
            Err(RegularFileError::Io(source)) => return Err(BundleError::Io { part, path, source }),
            Err(RegularFileError::NotAFile) => return Err(BundleError::NotAFile { part, path }),
        };
        match part {
            Part::Vmm | Part::Egress | Part::Layers | Part::Share => {
                if access(&path, Access::EXEC_OK).is_err() {
                    return Err(BundleError::NotExecutable { part, path });
                }
            }
            Part::Kernel => kernel::check(&file).map_err(|source| BundleError::Kernel { path, source })?,
            Part::Image | Part::Agent => {
                erofs::check(&file).map_err(|source| BundleError::Erofs { part, path, source })?;
            }
        }
        Ok(file)
    }

    /// Opens and checks everything that every sandbox needs.
    ///
    /// # Errors
    /// Every [`BundleError`], for the first part that has one.
    pub fn open(&self) -> Result<OpenBundle, BundleError> {
        self.open_part(Part::Vmm)?;
        let kernel = self.open_part(Part::Kernel)?;
        let image = self.open_part(Part::Image)?;
        let agent = self.open_part(Part::Agent)?;
        let identity = |file: &File, part: Part| match file.metadata() {
            Ok(metadata) => Ok(FileVersion::from(&metadata)),
            Err(source) => Err(BundleError::Io { part, path: self.path(part).to_owned(), source }),
        };
        Ok(OpenBundle {
            kernel_identity: identity(&kernel, Part::Kernel)?,
            image_identity: identity(&image, Part::Image)?,
            agent_identity: identity(&agent, Part::Agent)?,
            vmm: self.vmm.clone(),
            kernel,
            image,
            agent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn stated_files_win_over_the_stated_directory_and_that_over_the_usual_ones() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir_all(bin.join("bundle")).unwrap();
        let mut sources = BundleSources { program_directory: Some(bin.clone()), ..BundleSources::default() };
        assert_eq!(Bundle::find(&sources).kernel, bin.join("bundle/vmlinux"));
        fs::create_dir_all(dir.path().join("lib/sandboxvm")).unwrap();
        assert_eq!(Bundle::find(&sources).kernel, bin.join("../lib/sandboxvm/vmlinux"));
        sources.directory = Some("/b".into());
        sources.image = Some("/i".into());
        let bundle = Bundle::find(&sources);
        assert_eq!(bundle.agent, Path::new("/b/agent.erofs"));
        assert_eq!(bundle.image, Path::new("/i"));
        sources.directory = Some("relative".into());
        assert_eq!(Bundle::find(&sources).vmm, std::env::current_dir().unwrap().join("relative/sandboxvm-vmm"));
    }

    #[test]
    fn each_bad_part_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let sources = BundleSources { directory: Some(dir.path().to_owned()), ..BundleSources::default() };
        let bundle = Bundle::find(&sources);
        let message = bundle.open().unwrap_err().to_string();
        assert!(message.contains("VMM") && message.contains("does not exist"), "{message}");
        fs::write(&bundle.vmm, "").unwrap();
        assert!(matches!(bundle.open_part(Part::Vmm), Err(BundleError::NotExecutable { .. })));
        fs::write(&bundle.kernel, "not a kernel").unwrap();
        assert!(bundle.open_part(Part::Kernel).unwrap_err().to_string().contains("not an ELF"));
        fs::write(&bundle.image, "").unwrap();
        assert!(bundle.open_part(Part::Image).unwrap_err().to_string().contains("file is empty"));
        fs::create_dir(&bundle.agent).unwrap();
        assert!(matches!(bundle.open_part(Part::Agent), Err(BundleError::NotAFile { .. })));
    }

    #[test]
    fn a_fifo_in_the_place_of_a_part_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sources = BundleSources { directory: Some(dir.path().to_owned()), ..BundleSources::default() };
        let bundle = Bundle::find(&sources);
        assert!(std::process::Command::new("mkfifo").arg(&bundle.image).status().unwrap().success());
        let (tell, told) = std::sync::mpsc::channel();
        // Opening a FIFO would wait for a writer.
        std::thread::spawn(move || tell.send(bundle.open_part(Part::Image).map(drop)));
        let opened = told.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits for a writer");
        assert!(matches!(opened, Err(BundleError::NotAFile { .. })), "{opened:?}");
    }
}
