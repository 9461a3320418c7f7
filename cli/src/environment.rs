//! The only place that reads the caller's environment: where the home and the bundle are.

use crate::failure::Failure;
use sandboxvm_images::bundle::{Bundle, BundleSources};
use sandboxvm_manager::Manager;
use std::{env, ffi::OsString, path::PathBuf};

/// `SANDBOXVM_HOME`, else `/var/lib/sandboxvm` as root, else `$XDG_DATA_HOME/sandboxvm`.
pub(crate) fn home() -> Result<PathBuf, Failure> {
    let root = rustix::process::geteuid().is_root();
    home_from(root, |name| env::var_os(name).filter(|value| !value.is_empty()))
        .ok_or_else(|| Failure::new("no home directory is known: set SANDBOXVM_HOME"))
}

fn home_from(root: bool, var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(home) = var("SANDBOXVM_HOME") {
        return Some(home.into());
    }
    if root {
        return Some("/var/lib/sandboxvm".into());
    }
    let data = var("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.or_else(|| Some(PathBuf::from(var("HOME")?).join(".local/share")))?;
    Some(data.join("sandboxvm"))
}

/// The manager of the home.
pub(crate) fn manager() -> Result<Manager, Failure> {
    Ok(Manager::open(&home()?)?)
}

/// The bundle, with files stated on the command line before those of the environment.
pub(crate) fn bundle(kernel: Option<PathBuf>, image: Option<PathBuf>) -> Bundle {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Bundle::find(&BundleSources {
        directory: var("SANDBOXVM_BUNDLE"),
        program_directory: env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())),
        vmm: var("SANDBOXVM_VMM"),
        kernel: kernel.or_else(|| var("SANDBOXVM_KERNEL")),
        image: image.or_else(|| var("SANDBOXVM_IMAGE")),
        agent: var("SANDBOXVM_AGENT"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_home_follows_its_rules() {
        let with = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        let own = with(&[("SANDBOXVM_HOME", "/h"), ("HOME", "/u")]);
        assert_eq!(home_from(true, own).as_deref(), Some(Path::new("/h")));
        assert_eq!(home_from(true, with(&[])).as_deref(), Some(Path::new("/var/lib/sandboxvm")));
        let xdg = with(&[("XDG_DATA_HOME", "/x"), ("HOME", "/u")]);
        assert_eq!(home_from(false, xdg).as_deref(), Some(Path::new("/x/sandboxvm")));
        let plain = with(&[("HOME", "/u")]);
        assert_eq!(home_from(false, plain).as_deref(), Some(Path::new("/u/.local/share/sandboxvm")));
        assert_eq!(home_from(false, with(&[])), None);
    }
}
