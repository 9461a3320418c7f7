//! The workspace of a new sandbox: copies a directory of the host in, and stores what the sandbox
//! changed when its command has ended. Never writes to the directory.

use crate::{
    environment, failure::Failure, options::mounts, output::progress, process_io::signals::Signals, stdio, workspace,
};
use clap::Args;
use sandboxvm_manager::{Sandbox, SandboxName, StoredChanges, WorkspaceSpec};
use sandboxvm_workspace::{CopiedIn, CopyOptions, copy_in};
use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, RandomState},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

/// Where a workspace is in the guest.
const AT: &str = "/workspace";
/// Where copies of workspaces are, in the home.
const CACHE: &str = "workspaces";
/// Number of letters that make a name unique.
const LETTERS: usize = 5;
/// Maximum number of characters that a name has from the directory.
const FROM_DIRECTORY: usize = 40;

/// The workspace of a new sandbox.
#[derive(Debug, Args)]
#[command(next_help_heading = "Workspace")]
pub(crate) struct WorkspaceOptions {
    /// Copy this directory into the sandbox, at PATH [default: /workspace], which is also the working directory of `run`. The host
    /// changes only by `apply`
    #[arg(long, value_name = "HOSTDIR[:PATH]", conflicts_with = "from")]
    workspace: Option<OsString>,
    /// Do not copy what .gitignore files and .git/info/exclude name. .sandboxvmignore files always apply
    #[arg(long, requires = "workspace")]
    gitignore: bool,
}

/// A directory that was copied in. Its files may be gone when this value is dropped.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) spec: WorkspaceSpec,
    _copied: CopiedIn,
}

impl WorkspaceOptions {
    /// Returns true if the sandbox gets a workspace.
    pub(crate) fn is_given(&self) -> bool {
        self.workspace.is_some()
    }

    /// Returns the directory of the host, and the path in the guest.
    fn paths(&self) -> Option<Result<(PathBuf, String), Failure>> {
        let given = self.workspace.as_ref()?.as_bytes();
        let colon = given.windows(2).rposition(|pair| pair == b":/");
        let (host, guest) = colon.map_or((given, AT.as_bytes()), |colon| (&given[..colon], &given[colon + 1..]));
        let host = PathBuf::from(OsString::from_vec(host.to_vec()));
        let guest = String::from_utf8(guest.to_vec())
            .map_err(|_| Failure::new("invalid --workspace: the path in the sandbox is not valid UTF-8"));
        Some(guest.map(|guest| (host, guest)))
    }

    /// Returns the path in the guest, for the working directory of a command.
    pub(crate) fn directory(&self) -> Result<Option<String>, Failure> {
        Ok(self.paths().transpose()?.map(|(_, guest)| guest))
    }

    /// Returns a name for a sandbox that gets this workspace and no other name.
    pub(crate) fn generated_name(&self) -> Result<Option<SandboxName>, Failure> {
        let Some((host, _)) = self.paths().transpose()? else { return Ok(None) };
        let host = host.canonicalize().unwrap_or(host);
        Ok(generated_name(host.file_name().unwrap_or_default(), RandomState::new().hash_one(0)))
    }

    /// Copies the directory in. Its files belong to `user` in the guest, if that is a number, and else
    /// to root. Returns `None` if a signal arrived first, and if there is no workspace.
    pub(crate) async fn copy_in(
        &self,
        user: Option<&OsStr>,
        signals: &mut Signals,
    ) -> Result<Option<Workspace>, Failure> {
        let Some((host, at)) = self.paths().transpose()? else { return Ok(None) };
        let failed = |error| {
            let message = format_args!("invalid --workspace {}: {error}", host.display()).to_string();
            Failure::new(message)
        };
        let origin = host.canonicalize().map_err(failed)?;
        let owner = owner(user);
        let spec = WorkspaceSpec { slots: vec![PathBuf::new()], index: None, at, owner, origin: origin.clone() };
        // What is wrong with the paths is said before anything is copied.
        spec.check()?;
        // Also creates the home.
        environment::manager()?;
        let cache = environment::home()?.join(CACHE);
        let options = CopyOptions { gitignore: self.gitignore, ..CopyOptions::default() };
        let copying = tokio::task::spawn_blocking(move || copy_in(&origin, &cache, owner, &options));
        let copied = tokio::select! {
            copied = progress::during("copying the workspace", copying) => copied,
            _ = signals.next() => return Ok(None),
        };
        let copied = copied.map_err(Failure::new)??;
        if copied.left_out > 0 {
            stdio::notice(format_args!(
                "warning: not copied: {} of sockets, pipes, devices and mounted directories",
                copied.left_out
            ));
        }
        if copied.is_half_applied {
            stdio::notice(format_args!(
                "warning: the directory has .sandboxvm-apply-*: an apply was interrupted, or is running, and \
                 some files may be old"
            ));
        }
        let spec = WorkspaceSpec { slots: copied.layers.clone(), index: Some(copied.index.clone()), ..spec };
        Ok(Some(Workspace { spec, _copied: copied }))
    }
}

/// Returns the user and group ID that files have: those of the user, if they are numbers, and else root's.
pub(crate) fn owner(user: Option<&OsStr>) -> (u32, u32) {
    let ids = |user: &str| match user.split_once(':') {
        Some((user, group)) => Some((user.parse().ok()?, group.parse().ok()?)),
        None => user.parse().ok().map(|id| (id, id)),
    };
    user.and_then(OsStr::to_str).and_then(ids).unwrap_or((0, 0))
}

fn generated_name(directory: &OsStr, random: u64) -> Option<SandboxName> {
    let stem: String =
        directory.to_string_lossy().to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let stem = if stem.is_empty() { "workspace" } else { &stem[..stem.len().min(FROM_DIRECTORY)] };
    let letter = |position: usize| char::from(b'a' + (random / 26_u64.pow(position as u32) % 26) as u8);
    let letters: String = (0..LETTERS).map(letter).collect();
    SandboxName::try_from(format!("{stem}-{letters}")).ok()
}

/// Stores the changes of a sandbox whose command has ended, stops it, and says what the user can do.
pub(crate) async fn conclude(sandbox: &Sandbox, signals: &mut Signals) -> Result<(), Failure> {
    let name = sandbox.record().name.as_ref().map_or_else(|| sandbox.id().to_string(), ToString::to_string);
    let max_bytes = workspace::max_layer(sandbox);
    let stays = format!("sandbox {name} is still running; `sandboxvm stop {name}` stores the changes and stops it");
    let stored = tokio::select! {
        stored = progress::during("storing the changes", sandbox.store_workspace_changes(max_bytes)) => stored,
        _ = signals.next() => return Err(Failure::new("the changes of the workspace were not stored").hinted(stays)),
    };
    let stored = stored.map_err(|error| Failure::new(error).hinted(stays))?;
    mounts::unmount(sandbox).await;
    sandbox.kill().await?;
    stdio::tell(&said(&name, stored));
    Ok(())
}

fn said(name: &str, StoredChanges { written, removed, .. }: StoredChanges) -> String {
    let files = |count: u64| if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
    if written + removed == 0 {
        return format!(
            "sandboxvm: no file changed in the workspace of {name}\nsandboxvm: hint: `sandboxvm discard {name}` removes it\n"
        );
    }
    format!(
        "sandboxvm: {} written and {} removed in the workspace of {name}\n\
         sandboxvm: hint: review with `sandboxvm changes {name}`, then `sandboxvm apply {name}` or `sandboxvm discard {name}`\n",
        files(written),
        files(removed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> (PathBuf, String) {
        WorkspaceOptions { workspace: Some(text.into()), gitignore: false }.paths().unwrap().unwrap()
    }

    #[test]
    fn path_in_the_sandbox_follows_the_last_colon_before_a_slash() {
        assert_eq!(paths("."), (".".into(), "/workspace".into()));
        assert_eq!(paths("my project:/src/my project"), ("my project".into(), "/src/my project".into()));
        assert_eq!(paths("a:b"), ("a:b".into(), "/workspace".into()));
        assert_eq!(paths("a:/b:/c"), ("a:/b".into(), "/c".into()));
    }

    #[test]
    fn files_belong_to_the_user_if_it_is_a_number() {
        let of = |user: &str| owner(Some(OsStr::new(user)));
        assert_eq!([of("1000"), of("1000:50"), of("0")], [(1000, 1000), (1000, 50), (0, 0)]);
        assert_eq!([of("root"), of("user"), of("1000:users"), owner(None)], [(0, 0); 4]);
    }

    #[test]
    fn generated_names_are_valid() {
        for directory in ["my Project", "", "ÄÖ", "-", &"x".repeat(200)] {
            for random in [0, 1, u64::MAX] {
                generated_name(OsStr::new(directory), random).unwrap();
            }
        }
        assert_eq!(generated_name(OsStr::new("My Project"), 0).unwrap().as_str(), "myproject-aaaaa");
    }

    #[test]
    fn message_at_the_end_counts_files_and_names_the_next_commands() {
        let some = said("demo", StoredChanges { bytes: 9, written: 2, removed: 1 });
        assert!(some.starts_with("sandboxvm: 2 files written and 1 file removed in the workspace of demo\n"), "{some}");
        let none = said("demo", StoredChanges { bytes: 9, written: 0, removed: 0 });
        assert!(none.contains("no file changed"), "{none}");
    }
}
