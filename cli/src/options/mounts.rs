//! What a new sandbox has mounted beside its root: `-v`, `--tmpfs` and `--read-only`. Only reads the command
//! line: whether a directory or a volume exists is for the manager to say.

use crate::{
    failure::Failure,
    options::values::{shortened, size},
    output::progress,
};
use clap::Args;
use sandboxvm_manager::{MountPath, MountSource, MountSpec, Mounts, Sandbox, StopError, Stopped, Tmpfs, VolumeName};
use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

/// Time that processes which the command left running get to end.
const PROCESSES_END_WITHIN: Duration = Duration::from_secs(1);

/// The mounts of a new sandbox.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(crate) struct MountOptions {
    /// Mount a volume, or a directory or file of the host, at PATH. A SOURCE that starts with '/', '.' or '~' is a
    /// path of the host, which the sandbox reads and writes itself; any other is the name of a volume, which is
    /// created with 10G if it does not exist. OPTIONS: ro, rw [default: rw]. With --from, give one
    /// for each live share of the snapshot, at the same PATH, and no others
    #[arg(short, long = "volume", value_name = "SOURCE:PATH[:OPTIONS]")]
    volume: Vec<OsString>,
    /// Mount an empty file system in memory at PATH. OPTIONS, separated by commas: size=SIZE [default: half of the memory],
    /// mode=MODE [default: 1777], exec
    #[arg(long, value_name = "PATH[:OPTIONS]", conflicts_with = "from")]
    tmpfs: Vec<String>,
    /// Make the root read-only for the processes of the sandbox; mounts and the workspace stay writable
    #[arg(long, conflicts_with = "from")]
    read_only: bool,
}

impl MountOptions {
    /// Returns true if processes cannot write the root.
    pub(crate) fn read_only_root(&self) -> bool {
        self.read_only
    }

    /// Returns the mounts.
    pub(crate) fn mounts(&self) -> Result<Mounts, Failure> {
        let volumes = self.volume.iter().map(|given| {
            let invalid =
                |problem: String| Failure::new(format_args!("invalid --volume {}: {problem}", shortened(given)));
            volume(given).map_err(invalid)
        });
        let in_memory = self.tmpfs.iter().map(|given| {
            let invalid =
                |problem: String| Failure::new(format_args!("invalid --tmpfs {}: {problem}", shortened(&given.into())));
            tmpfs(given).map_err(invalid)
        });
        Ok(Mounts::new(volumes.chain(in_memory).collect::<Result<_, _>>()?)?)
    }
}

/// Ends a sandbox whose command has ended, so that its volumes are unmounted: otherwise they would lose what
/// the guest has not written yet. Does nothing for a sandbox that cannot write a volume.
pub(crate) async fn unmount(sandbox: &Sandbox) {
    if !writes_volume(sandbox) {
        return;
    }
    let problem = match progress::during("unmounting the volumes", sandbox.stop(PROCESSES_END_WITHIN)).await {
        Ok(Stopped::InOrder) | Err(StopError::NotRunning { .. }) => return,
        Ok(Stopped::ByForce(cause)) => cause.to_string(),
        Ok(Stopped::Otherwise(how)) => how,
        Err(error) => error.to_string(),
    };
    Failure::new(format_args!("warning: the volumes were not unmounted: {problem}")).report();
}

/// Returns true if the sandbox can write a volume.
pub(crate) fn writes_volume(sandbox: &Sandbox) -> bool {
    sandbox.record().mounts.volumes().any(|volume| !volume.read_only)
}

/// Parses `SOURCE:PATH[:OPTIONS]`. The path follows the last colon before a slash, so that the path of a
/// directory of the host may contain colons.
fn volume(given: &OsStr) -> Result<MountSpec, String> {
    let text = given.to_str().ok_or("not valid UTF-8")?;
    let Some(colon) = text.rfind(":/") else {
        return Err(if text.starts_with('/') {
            "a volume needs a name: expected SOURCE:PATH".to_owned()
        } else {
            "expected SOURCE:PATH, with an absolute path in the sandbox".to_owned()
        });
    };
    let (source, rest) = (&text[..colon], &text[colon + 1..]);
    let (at, options) = rest.split_once(':').unwrap_or((rest, ""));
    let at = MountPath::try_from(at.to_owned()).map_err(|error| error.to_string())?;
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        read_only = match option {
            "ro" => true,
            "rw" => false,
            other => return Err(format!("unknown option {other:?}: expected ro or rw")),
        };
    }
    let source = if source.is_empty() {
        return Err("the source is empty: expected SOURCE:PATH".to_owned());
    } else if source.starts_with(['/', '.', '~']) {
        MountSource::HostDirectory { path: absolute(source)?, read_only, uid: 0, gid: 0, copied: false }
    } else if source.contains('/') {
        return Err("a directory of the host starts with '/', './', '../' or '~/'".to_owned());
    } else {
        let name = VolumeName::try_from(source.to_owned()).map_err(|error| error.to_string())?;
        MountSource::Volume { name, read_only, version: None }
    };
    Ok(MountSpec { at, source })
}

/// Returns the absolute path of a directory of the host, with its symbolic links resolved: links that appear
/// later must not change what the sandbox has. The manager reports what does not exist.
fn absolute(source: &str) -> Result<PathBuf, String> {
    let path = match source.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = env::var_os("HOME").ok_or("the home directory is not known: HOME is not set")?;
            PathBuf::from(home).join(rest.trim_start_matches('/'))
        }
        Some(_) => return Err("home directories of other users are not known: write their path".to_owned()),
        None => PathBuf::from(source),
    };
    path.canonicalize().or_else(|_| std::path::absolute(path)).map_err(|error| error.to_string())
}

/// Parses `PATH[:OPTIONS]`.
fn tmpfs(given: &str) -> Result<MountSpec, String> {
    let (at, options) = given.split_once(':').unwrap_or((given, ""));
    let at = MountPath::try_from(at.to_owned()).map_err(|error| error.to_string())?;
    let mut tmpfs = Tmpfs::default();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", given)) => tmpfs.size = Some(size(given)?),
            Some(("mode", mode)) => {
                let mode = u32::from_str_radix(mode, 8);
                tmpfs.mode = Some(mode.map_err(|_| "the mode is not an octal number such as 1777".to_owned())?);
            }
            None if option == "exec" => tmpfs.exec = true,
            // As docker's defaults, which cannot be turned off.
            None if matches!(option, "noexec" | "nosuid" | "nodev" | "rw") => tmpfs.exec &= option != "noexec",
            _ => return Err(format!("unknown option {option:?}: expected size=SIZE, mode=MODE or exec")),
        }
    }
    Ok(MountSpec { at, source: MountSource::Tmpfs(tmpfs) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(volume: &[&str], tmpfs: &[&str]) -> MountOptions {
        let (volume, tmpfs) =
            (volume.iter().map(OsString::from).collect(), tmpfs.iter().map(|&s| s.to_owned()).collect());
        MountOptions { volume, tmpfs, read_only: false }
    }

    fn one(given: &str) -> MountSpec {
        volume(OsStr::new(given)).unwrap()
    }

    #[test]
    fn words_are_volumes_and_paths_are_directories_of_the_host() {
        let cache = one("cache:/root/.cache");
        let MountSource::Volume { name, read_only: false, version: None } = cache.source else { panic!("{cache:?}") };
        assert_eq!((name.as_str(), cache.at.as_str()), ("cache", "/root/.cache"));
        assert!(matches!(one("cache:/x:ro").source, MountSource::Volume { read_only: true, .. }));
        assert!(matches!(one("cache:/x:ro,rw").source, MountSource::Volume { read_only: false, .. }));
        let here = env::current_dir().unwrap();
        let home = PathBuf::from(env::var_os("HOME").unwrap()).canonicalize().unwrap();
        for (given, expected) in [
            (".:/data", here.clone()),
            ("./my data:/data", here.join("my data")),
            ("/a:/b:/data:ro", "/a:/b".into()),
            ("~/x:/data", home.join("x")),
            ("~:/data", home),
        ] {
            let MountSource::HostDirectory { path, .. } = one(given).source else { panic!("{given}") };
            assert_eq!(path, expected, "{given}");
        }
    }

    #[test]
    fn links_to_directories_of_the_host_are_resolved_once() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let MountSource::HostDirectory { path, .. } = one(&format!("{}:/data", link.display())).source else {
            panic!("not a directory of the host")
        };
        assert_eq!(path, real);
    }

    #[test]
    fn invalid_volumes_are_refused() {
        for (given, problem) in [
            ("cache", "SOURCE:PATH"),
            ("/data", "needs a name"),
            (":/data", "source is empty"),
            ("cache:data", "absolute path"),
            ("cache:/x:z", "unknown option \"z\""),
            ("a/b:/x", "starts with '/'"),
            ("-c:/x", "invalid volume name"),
            ("cache:/proc/x", "machine's own"),
            ("cache:/a/../b", "invalid path"),
            ("~other/x:/data", "other users"),
        ] {
            let message = volume(OsStr::new(given)).unwrap_err();
            assert!(message.contains(problem), "{given}: {message}");
        }
        let message = format!("{:?}", options(&["a:/x", "b:/x"], &[]).mounts().unwrap_err());
        assert!(message.contains("two things at /x"), "{message}");
    }

    #[test]
    fn file_systems_in_memory_have_size_mode_and_exec() {
        let MountSource::Tmpfs(given) = tmpfs("/scratch:size=64M,mode=0700,exec").unwrap().source else { panic!() };
        assert_eq!(given, Tmpfs { size: Some(64 << 20), mode: Some(0o700), exec: true });
        let MountSource::Tmpfs(given) = tmpfs("/scratch:noexec,nosuid").unwrap().source else { panic!() };
        assert_eq!(given, Tmpfs::default());
        for (given, problem) in
            [("/x:size=big", "size"), ("/x:mode=9", "octal"), ("/x:dev", "unknown option"), ("x", "path")]
        {
            let message = tmpfs(given).unwrap_err();
            assert!(message.contains(problem), "{given}: {message}");
        }
        assert_eq!(options(&["c:/c"], &["/t"]).mounts().unwrap().iter().count(), 2);
    }
}
