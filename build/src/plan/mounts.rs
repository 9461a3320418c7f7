//! What `RUN --mount` puts where: mounts with their variables expanded, and which places are refused.
//! A cache ends as a file of the host, so none may lie where secrets or the kernel's files are. Touches
//! no file.

use super::{Base, resolve::Scope, stages::find_from};
use crate::dockerfile;

/// Maximum number of mounts of a `RUN`.
const MAX_MOUNTS: usize = 100;
/// Directory of secrets for which no target is stated.
pub(crate) const SECRETS: &str = "/run/secrets";
/// Directory with the content of all secrets, which is in memory.
const IN_MEMORY: &str = "/run/sandboxvm/secrets";
/// Directories in which there is no mount but a secret: of secrets, of the agent, or the kernel's.
const NO_MOUNTS: [&str; 5] = [SECRETS, "/run/sandboxvm", "/proc", "/sys", "/dev"];

/// A mount of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A directory that is kept between builds.
    Cache {
        /// Name of the cache.
        id: String,
        /// Absolute path of a directory.
        target: String,
    },
    /// A secret.
    Secret {
        /// Name of the secret.
        id: String,
        /// Absolute path of the file that the step reads.
        target: String,
        /// Absolute path of the file with the content, which is in memory. The target is a link to it.
        in_memory: String,
        /// Whether the build fails without it.
        required: bool,
    },
    /// Files that are not part of the result.
    Bind {
        /// Where the files are. `None`: in the context.
        from: Option<Base>,
        /// File or directory there.
        source: String,
        /// Absolute path of the file or directory in the machine.
        target: String,
        /// Whether the step may write to it. What it writes is lost.
        writable: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Absolute path of a directory.
        target: String,
        /// Maximum size in bytes. `None`: half of the memory.
        size: Option<u64>,
    },
}

impl Scope<'_> {
    /// Expands the mounts of a `RUN`.
    ///
    /// # Errors
    /// Fails if a variable cannot be expanded, if a place is refused, or if two mounts overlap.
    pub(super) fn mounts(&self, mounts: &[dockerfile::Mount]) -> Result<Vec<Mount>, String> {
        if mounts.len() > MAX_MOUNTS {
            return Err(format!("RUN has {} mounts: the maximum is {MAX_MOUNTS}", mounts.len()));
        }
        let expanded: Result<Vec<_>, String> = mounts.iter().map(|mount| self.mount(mount)).collect();
        let expanded = expanded?;
        for (at, mount) in expanded.iter().enumerate() {
            if let Some(other) = expanded[..at].iter().find(|other| overlap(mount, other)) {
                return Err(format!("the mounts at {} and {} overlap", target(other), target(mount)));
            }
        }
        Ok(expanded)
    }

    fn mount(&self, mount: &dockerfile::Mount) -> Result<Mount, String> {
        match mount {
            dockerfile::Mount::Cache { id, target } => {
                let target = self.plain_target(target)?;
                let id = id.as_ref().map(|id| self.word(id)).transpose()?.filter(|id| !id.is_empty());
                Ok(Mount::Cache { id: id.unwrap_or_else(|| target.clone()), target })
            }
            dockerfile::Mount::Bind { from, source, target, writable } => {
                let target = self.plain_target(target)?;
                let source = source.as_ref().map(|source| self.word(source)).transpose()?;
                let from = from.as_ref().map(|name| find_from(self.file, self.stage, name));
                Ok(Mount::Bind { from, source: source.unwrap_or_else(|| "/".into()), target, writable: *writable })
            }
            dockerfile::Mount::Tmpfs { target, size } => {
                Ok(Mount::Tmpfs { target: self.plain_target(target)?, size: *size })
            }
            dockerfile::Mount::Secret { id, target, required } => {
                let target = target.as_ref().map(|target| self.target(target)).transpose()?;
                let id = id.as_ref().map(|id| self.word(id)).transpose()?;
                let id = id.or_else(|| target.as_ref().and_then(|path| path.rsplit('/').next().map(str::to_owned)));
                let id = id.filter(|id| !matches!(id.as_str(), "" | "." | "..") && !id.contains('/'));
                let id = id.ok_or("--mount=type=secret has no id: expected id=NAME without a slash")?;
                let target = target.unwrap_or_else(|| format!("{SECRETS}/{id}"));
                let in_memory = format!("{IN_MEMORY}/{id}");
                Ok(Mount::Secret { id, target, in_memory, required: *required })
            }
        }
    }

    /// Returns the absolute path of the target of what is not a secret.
    fn plain_target(&self, word: &str) -> Result<String, String> {
        let target = self.target(word)?;
        match NO_MOUNTS.into_iter().find(|refused| is_nested(&target, refused)) {
            None => Ok(target),
            Some(refused) => Err(format!(
                "invalid target {target:?} of a mount: expected a path outside of {refused}, and not above it"
            )),
        }
    }

    /// Returns the absolute path of a target.
    fn target(&self, word: &str) -> Result<String, String> {
        let path = self.word(word)?;
        let whole = self.path(&path);
        let whole = whole.trim_end_matches('/');
        if path.split('/').any(|part| part == "..") || whole.is_empty() {
            return Err(format!("invalid target {path:?} of a mount: expected a path without .., and not /"));
        }
        Ok(whole.to_owned())
    }
}

fn target(mount: &Mount) -> &str {
    match mount {
        Mount::Cache { target, .. }
        | Mount::Secret { target, .. }
        | Mount::Bind { target, .. }
        | Mount::Tmpfs { target, .. } => target,
    }
}

fn overlap(one: &Mount, other: &Mount) -> bool {
    if let (Mount::Secret { id, target, .. }, Mount::Secret { id: other_id, target: other_target, .. }) = (one, other)
        && id == other_id
        && target != other_target
    {
        // The same secret at two places shares the file in memory.
        return is_nested(target, other_target);
    }
    let places = |mount| match mount {
        Mount::Cache { target, .. } | Mount::Bind { target, .. } | Mount::Tmpfs { target, .. } => vec![target],
        Mount::Secret { target, in_memory, .. } => vec![target, in_memory],
    };
    let others = places(other.clone());
    places(one.clone()).iter().any(|place| others.iter().any(|other| is_nested(place, other)))
}

fn is_nested(one: &str, other: &str) -> bool {
    is_within(one, other) || is_within(other, one)
}

fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Action, BuildArgs, resolve};
    use sandboxvm_oci::config::ImageConfig;

    fn mounts(flags: &str) -> Result<Vec<Mount>, String> {
        let text = format!("FROM a\nARG N=name\nENV HOME=/root\nWORKDIR /w\nRUN {flags} x\n");
        let file = dockerfile::Dockerfile::parse("D", &text).unwrap();
        let resolved = resolve(&file, 0, &ImageConfig::default(), &BuildArgs::new()).map_err(|e| e.to_string())?;
        let Action::Run { mounts, .. } = &resolved.steps[1].action else { panic!() };
        Ok(mounts.clone())
    }

    #[test]
    fn variables_are_expanded_and_relative_targets_are_below_the_directory() {
        let cache = |id: &str, target: &str| Mount::Cache { id: id.into(), target: target.into() };
        let secret = |id: &str, target: &str, in_memory: &str| Mount::Secret {
            id: id.into(),
            target: target.into(),
            in_memory: in_memory.into(),
            required: false,
        };
        assert_eq!(mounts("--mount=type=cache,target=$HOME/.cache/").unwrap(), [cache("/root/.cache", "/root/.cache")]);
        assert_eq!(mounts("--mount=type=cache,id=$N-${N},target=c").unwrap(), [cache("name-name", "/w/c")]);
        let in_memory = "/run/sandboxvm/secrets/name";
        assert_eq!(mounts("--mount=type=secret,id=$N").unwrap(), [secret("name", "/run/secrets/name", in_memory)]);
        assert_eq!(mounts("--mount=type=secret,target=$HOME/$N").unwrap(), [secret("name", "/root/name", in_memory)]);
        let twice = mounts("--mount=type=secret,id=k,target=/a --mount=type=secret,id=k,target=/run/b").unwrap();
        assert_eq!(
            twice,
            [secret("k", "/a", "/run/sandboxvm/secrets/k"), secret("k", "/run/b", "/run/sandboxvm/secrets/k")]
        );
    }

    #[test]
    fn places_that_are_secret_or_the_kernels_are_refused() {
        for target in [
            "/",
            "/run",
            "/run/secrets/x",
            "/run/sandboxvm",
            "/proc/1",
            "/sys",
            "/dev/shm/x",
            "/a/../run",
            "..",
            "$UNSET",
        ] {
            let target = target.replace("$UNSET", "/$UNSET");
            let error = mounts(&format!("--mount=type=cache,target={target}")).unwrap_err();
            assert!(error.starts_with("D:5: invalid target"), "{error}");
        }
        assert!(mounts("--mount=type=secret,id=k,target=/a/../k").is_err());
        assert!(mounts("--mount=type=secret,id=$HOME").unwrap_err().contains("without a slash"));
        assert!(mounts("--mount=type=cache,target=/runner").is_ok());
        assert!(mounts("--mount=type=cache,target=/run/cache").is_ok());
        for overlapping in [
            "--mount=type=cache,target=/c --mount=type=cache,target=/c/d",
            "--mount=type=cache,target=/c,id=1 --mount=type=cache,target=/c,id=2",
            "--mount=type=secret,id=k,target=/c/k --mount=type=cache,target=/c",
            "--mount=type=secret,id=k --mount=type=secret,id=other,target=/run/secrets/k",
        ] {
            let error = mounts(overlapping).unwrap_err();
            assert!(error.ends_with("overlap"), "{error}");
        }
        let many = "--mount=type=secret,id=k ".repeat(MAX_MOUNTS + 1);
        assert!(mounts(&many).unwrap_err().contains("the maximum is 100"));
    }
}
