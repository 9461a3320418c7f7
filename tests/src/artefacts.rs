//! Finds the programs and guest images under test: those that `scripts/test` names in the
//! environment, or those in the target directory of this test.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

/// The CLI under test and its bundle.
#[derive(Debug, Clone)]
pub struct Artefacts {
    /// Path of `sandboxvm`.
    pub program: PathBuf,
    /// Directory with `sandboxvm-vmm`, `vmlinux`, `base.erofs` and `agent.erofs`.
    pub bundle: PathBuf,
}

/// Returns false if `SANDBOXVM_NO_KVM=1` is set: the user then wants no test that needs KVM.
#[must_use]
pub fn kvm_is_wanted() -> bool {
    std::env::var_os("SANDBOXVM_NO_KVM").is_none_or(|value| value != "1")
}

impl Artefacts {
    /// Finds the CLI and the bundle, and checks that KVM can be used.
    ///
    /// # Panics
    /// Panics if one is missing or `/dev/kvm` cannot be opened. An end-to-end test must fail then,
    /// not pass without running.
    #[must_use]
    pub fn find() -> Self {
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if let Err(error) = kvm {
            panic!(
                "cannot open /dev/kvm: {error}. End-to-end tests need it; run them as root on a machine with KVM, or \
                 set SANDBOXVM_NO_KVM=1 to leave them out"
            );
        }
        let stated = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let release = target_directory().join("release");
        let program = stated("SANDBOXVM_BIN").unwrap_or_else(|| release.join("sandboxvm"));
        let bundle = stated("SANDBOXVM_BUNDLE").unwrap_or_else(|| release.join("bundle"));
        for path in [&program, &bundle.join("sandboxvm-vmm"), &bundle.join("vmlinux"), &bundle.join("base.erofs")] {
            assert!(
                path.is_file(),
                "{} is missing: scripts/test builds it and sets SANDBOXVM_BIN and SANDBOXVM_BUNDLE",
                path.display()
            );
        }
        Self { program, bundle }
    }

    /// Returns the path of a file of the bundle.
    #[must_use]
    pub fn part(&self, name: &str) -> PathBuf {
        self.bundle.join(name)
    }

    /// Returns `uname -r` of the guest kernel, read from the kernel file.
    #[must_use]
    pub fn kernel_release(&self) -> String {
        let vmlinux = fs::read(self.part("vmlinux")).expect("the kernel is readable");
        let marker = b"Linux version ";
        let mut banners = vmlinux.windows(marker.len()).enumerate().filter(|(_, window)| window == marker);
        banners
            .find_map(|(at, _)| {
                let release = vmlinux[at + marker.len()..].split(|b| *b == b' ').next()?;
                let text = std::str::from_utf8(release).ok()?;
                text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.to_owned())
            })
            .expect("a kernel states its version")
    }

    /// Creates a bundle directory like this one in which `replacement` replaces `name`.
    #[must_use]
    pub fn bundle_with(&self, into: &Path, name: &str, replacement: &Path) -> PathBuf {
        fs::create_dir(into).expect("a new directory");
        for entry in fs::read_dir(&self.bundle).expect("the bundle is readable") {
            let entry = entry.expect("the bundle is readable");
            if entry.file_name() != name {
                let target = fs::canonicalize(entry.path()).expect("a bundle has no dangling links");
                std::os::unix::fs::symlink(target, into.join(entry.file_name())).expect("a new link");
            }
        }
        std::os::unix::fs::symlink(replacement, into.join(name)).expect("a new link");
        into.to_owned()
    }
}

/// Returns `target/` of the build of this program, whose path is `target/PROFILE/deps/NAME` or
/// `target/PROFILE/NAME`.
pub(crate) fn target_directory() -> PathBuf {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut profile = program.parent().expect("an executable is in a directory");
    if profile.ends_with("deps") {
        profile = profile.parent().expect("deps is in a directory");
    }
    profile.parent().expect("a profile is in a directory").to_owned()
}
