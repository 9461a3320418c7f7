//! The only module that reads the environment of the caller: the home, the bundle, how much of the host may be used, and what
//! a server logs.

use crate::{failure::Failure, options::values};
use sandboxvm_images::bundle::{Bundle, BundleSources, Part};
use sandboxvm_manager::{AdmissionRules, Manager};
use std::{env, ffi::OsString, path::PathBuf};
use tracing_subscriber::filter::Targets;

/// `SANDBOXVM_HOME`, else `/var/lib/sandboxvm` as root, else `$XDG_DATA_HOME/sandboxvm`.
pub(crate) fn home() -> Result<PathBuf, Failure> {
    let root = rustix::process::geteuid().is_root();
    home_from(root, |name| env::var_os(name).filter(|value| !value.is_empty()))
        .ok_or_else(|| Failure::new("cannot find a home directory").hinted("set SANDBOXVM_HOME".to_owned()))
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

/// Opens the home.
pub(crate) fn manager() -> Result<Manager, Failure> {
    let rules = rules_from(|name| env::var_os(name).filter(|value| !value.is_empty())).map_err(Failure::new)?;
    let manager = Manager::open(&home()?)?.with_rules(rules);
    Ok(manager.with_share_program(bundle(None, None).path(Part::Share).to_owned()))
}

/// Returns the path of a file of the user's configuration: in `sandboxvm/` below `$XDG_CONFIG_HOME`, else `~/.config`.
pub(crate) fn configuration(file: &str) -> Option<PathBuf> {
    let config = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")))?;
    Some(config.join("sandboxvm").join(file))
}

/// Returns the path of the user's policy file.
pub(crate) fn policy_file() -> Option<PathBuf> {
    configuration("network.toml")
}

/// Returns the path of docker's configuration: `config.json` in `$DOCKER_CONFIG`, else in `~/.docker`.
pub(crate) fn docker_configuration() -> Option<PathBuf> {
    let directory = path("DOCKER_CONFIG").or_else(|| Some(path("HOME")?.join(".docker")))?;
    Some(directory.join("config.json"))
}

/// Returns the socket of docker's daemon: that of `$DOCKER_HOST`, else the usual one.
pub(crate) fn docker_socket() -> Result<PathBuf, Failure> {
    let Some(host) = path("DOCKER_HOST") else { return Ok("/var/run/docker.sock".into()) };
    let socket = host.to_str().and_then(|host| host.strip_prefix("unix://"));
    let expected = || Failure::new(format_args!("unsupported DOCKER_HOST {}: expected unix://PATH", host.display()));
    socket.map(PathBuf::from).ok_or_else(expected)
}

fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Returns the limits for new sandboxes: `SANDBOXVM_MAX_SANDBOXES`, `SANDBOXVM_OVERCOMMIT`, `SANDBOXVM_MIN_FREE_MEMORY` and
/// `SANDBOXVM_MIN_FREE_DISK`. 0 switches a limit off.
fn rules_from(var: impl Fn(&str) -> Option<OsString>) -> Result<AdmissionRules, String> {
    let read = |name: &str, what: &str, parse: &dyn Fn(&str) -> Option<u64>| match var(name) {
        None => Ok(None),
        Some(value) => match value.to_str().and_then(parse) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("invalid {name} {value:?}: expected {what}")),
        },
    };
    let number = |text: &str| text.parse::<u32>().ok().map(u64::from);
    let size = |text: &str| values::size(text).ok();
    let factor = |text: &str| {
        let factor = text.parse::<f64>().ok().filter(|factor| (0.0..=1000.0).contains(factor))?;
        // At most 100,000, and not negative.
        Some((factor * 100.0).ceil() as u64)
    };
    let default = AdmissionRules::default();
    let or = |stated: Option<u64>, default: u32| stated.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
    Ok(AdmissionRules {
        sandboxes: or(read("SANDBOXVM_MAX_SANDBOXES", "a number", &number)?, default.sandboxes),
        overcommit_percent: or(
            read("SANDBOXVM_OVERCOMMIT", "a factor from 0 to 1000", &factor)?,
            default.overcommit_percent,
        ),
        free_memory: read("SANDBOXVM_MIN_FREE_MEMORY", "a size such as 2G", &size)?,
        free_disk: read("SANDBOXVM_MIN_FREE_DISK", "a size such as 2G", &size)?,
    })
}

/// Returns the token of clients of `mcp --http`: `SANDBOXVM_MCP_TOKEN`, if it is set.
pub(crate) fn mcp_token() -> Option<Result<String, Failure>> {
    let token = env::var_os("SANDBOXVM_MCP_TOKEN").filter(|value| !value.is_empty())?;
    let is_plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
    let token = token.into_string().ok().filter(is_plain);
    Some(
        token.ok_or_else(|| {
            Failure::new("invalid SANDBOXVM_MCP_TOKEN: expected printable ASCII characters without spaces")
        }),
    )
}

/// Returns what the log of a server shows: `SANDBOXVM_LOG`, if it is set to a level or to levels by target.
pub(crate) fn log_filter() -> Option<Targets> {
    env::var("SANDBOXVM_LOG").ok()?.parse().ok()
}

/// Finds the bundle. Files on the command line take precedence over those of the environment.
pub(crate) fn bundle(kernel: Option<PathBuf>, image: Option<PathBuf>) -> Bundle {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Bundle::find(&BundleSources {
        directory: var("SANDBOXVM_BUNDLE"),
        program_directory: env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned())),
        vmm: var("SANDBOXVM_VMM"),
        kernel: kernel.or_else(|| var("SANDBOXVM_KERNEL")),
        image: image.or_else(|| var("SANDBOXVM_IMAGE")),
        agent: var("SANDBOXVM_AGENT"),
        egress: var("SANDBOXVM_EGRESS"),
        layers: var("SANDBOXVM_LAYERS"),
        share: var("SANDBOXVM_SHARE"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn admission_rules_are_parsed_and_invalid_ones_are_named() {
        let with = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        assert_eq!(rules_from(with(&[])), Ok(AdmissionRules::default()));
        let rules = rules_from(with(&[
            ("SANDBOXVM_MAX_SANDBOXES", "7"),
            ("SANDBOXVM_OVERCOMMIT", "1.499"),
            ("SANDBOXVM_MIN_FREE_MEMORY", "2G"),
            ("SANDBOXVM_MIN_FREE_DISK", "0"),
        ]));
        let wanted =
            AdmissionRules { sandboxes: 7, overcommit_percent: 150, free_memory: Some(2 << 30), free_disk: Some(0) };
        assert_eq!(rules, Ok(wanted));
        let all =
            ["SANDBOXVM_MAX_SANDBOXES", "SANDBOXVM_OVERCOMMIT", "SANDBOXVM_MIN_FREE_MEMORY", "SANDBOXVM_MIN_FREE_DISK"];
        for name in all {
            let message = rules_from(|asked| (asked == name).then(|| "-1x".into())).unwrap_err();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn home_depends_on_user_and_variables() {
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
