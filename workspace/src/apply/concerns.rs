//! What of a change a program of the host would execute or follow without being asked: hooks, editor
//! tasks, shell environments, new executables, and links that leave the project. Owns these rules; they
//! are a warning for a reader and no proof that all else is harmless.

use crate::{beneath::split, index::Kind, review::layer::State};

/// Why a change needs consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A program of the host executes it, or commands in it. The text says which.
    Executes(&'static str),
    /// A symbolic link that leads out of the project, or may do so through other links, or into a directory
    /// of git.
    LeavesRoot {
        /// The target.
        target: Vec<u8>,
    },
}

/// A change that needs consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concern {
    /// Path in the project.
    pub path: Vec<u8>,
    /// Why.
    pub reason: Reason,
}

/// Names of files and what executes them, wherever they are.
const NAMES: &[(&str, &str)] = &[
    (".gitattributes", "git runs filters that it names"),
    (".gitmodules", "git reads submodules from it"),
    (".gitconfig", "git runs commands in it"),
    (".lfsconfig", "git-lfs reads it"),
    (".envrc", "direnv runs it"),
    (".env.sh", "shells may run it"),
    (".autoenv", "autoenv runs it"),
    (".autoenv.zsh", "autoenv runs it"),
    (".rvmrc", "rvm runs it"),
    ("mise.toml", "mise runs hooks in it"),
    (".mise.toml", "mise runs hooks in it"),
    (".tool-versions", "asdf and mise read it"),
    (".exrc", "vim may run it"),
    (".vimrc", "vim may run it"),
    (".nvimrc", "nvim may run it"),
    (".nvim.lua", "nvim may run it"),
    (".dir-locals.el", "emacs evaluates it"),
    (".lvimrc", "vim may run it"),
    (".gdbinit", "gdb may run it"),
    (".lldbinit", "lldb may run it"),
    (".pre-commit-config.yaml", "pre-commit runs commands in it"),
    (".pre-commit-config.yml", "pre-commit runs commands in it"),
    ("lefthook.yml", "lefthook runs commands in it"),
    ("lefthook.yaml", "lefthook runs commands in it"),
    (".lefthook.yml", "lefthook runs commands in it"),
    (".npmrc", "npm takes settings from it"),
    (".yarnrc", "yarn takes settings from it"),
    (".yarnrc.yml", "yarn runs what it names"),
    (".pnpmfile.cjs", "pnpm runs it"),
    (".mcp.json", "clients of MCP start servers that it names"),
    (".bashrc", "shells run it"),
    (".zshrc", "shells run it"),
    (".profile", "shells run it"),
    (".devcontainer.json", "editors run commands in it"),
];

/// Directories, wherever they are, whose content programs execute.
const DIRECTORIES: &[(&str, &str)] = &[
    (".vscode", "editors run tasks and settings in it"),
    (".idea", "editors run configurations in it"),
    (".fleet", "editors run configurations in it"),
    (".zed", "editors run tasks and settings in it"),
    (".vs", "editors run settings in it"),
    (".devcontainer", "editors run commands in it"),
    (".husky", "git runs hooks in it"),
    (".githooks", "git may run hooks in it"),
    (".hooks", "git may run hooks in it"),
    (".cargo", "cargo runs programs that it names"),
    (".yarn", "yarn runs programs in it"),
    (".mise", "mise runs hooks in it"),
    (".direnv", "direnv runs files in it"),
];

/// As [`DIRECTORIES`], directly below the root: elsewhere the name is usual for source code.
const AT_ROOT: &[(&str, &str)] = &[("hooks", "git may run hooks in it")];

/// Ends of names.
const ENDS: &[(&str, &str)] =
    &[(".code-workspace", "editors run tasks in it"), (".sublime-project", "editors run build systems in it")];

/// Returns why a new state of a path needs consent. `is_bare` says that its directory has a file `HEAD`, and
/// so may be taken for a repository of git.
pub(crate) fn of(path: &[u8], old: Option<&State>, new: &State, is_bare: impl FnOnce(&[u8]) -> bool) -> Option<Reason> {
    match &new.kind {
        Kind::Symlink(target) if leaves(path, target) => {
            return Some(Reason::LeavesRoot { target: target.clone() });
        }
        Kind::Directory => return None,
        _ => {}
    }
    let (above, name) = split(path);
    let is_name = |known: &&(&str, &str)| name.eq_ignore_ascii_case(known.0.as_bytes());
    if let Some((_, why)) = NAMES.iter().find(is_name) {
        return Some(Reason::Executes(why));
    }
    let is_end = |known: &&(&str, &str)| name.to_ascii_lowercase().ends_with(known.0.as_bytes());
    if let Some((_, why)) = ENDS.iter().find(is_end) {
        return Some(Reason::Executes(why));
    }
    for (depth, directory) in above.split(|byte| *byte == b'/').enumerate() {
        let mut all = DIRECTORIES.iter().chain(if depth == 0 { AT_ROOT } else { &[] });
        let known = all.find(|known| directory.eq_ignore_ascii_case(known.0.as_bytes()));
        if let Some((_, why)) = known {
            return Some(Reason::Executes(why));
        }
    }
    if name.eq_ignore_ascii_case(b"config") && is_bare(above) {
        return Some(Reason::Executes("git takes its directory for a repository and runs commands in it"));
    }
    let is_executable = |state: &State| matches!(state.kind, Kind::File(_)) && state.mode & 0o111 != 0;
    (is_executable(new) && !old.is_some_and(is_executable)).then_some(Reason::Executes("it is a new executable"))
}

/// Returns true if a link may lead out of the project, or into a directory of git. A `..` behind a name may
/// leave through another link, so only leading ones are followed.
fn leaves(path: &[u8], target: &[u8]) -> bool {
    let depth = path.iter().filter(|byte| **byte == b'/').count();
    let (mut ups, mut has_name) = (0, false);
    for name in target.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if name == b".." {
            ups += 1;
            if has_name || ups > depth {
                return true;
            }
        } else {
            has_name = true;
        }
    }
    target.starts_with(b"/") || crate::review::compare::is_in_git(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Content;

    fn file(mode: u32) -> State {
        State { kind: Kind::File(Content { size: 1, digest: [1; 32], layer: 0, offset: 0 }), mode }
    }

    fn of(path: &str, new: &State) -> bool {
        super::of(path.as_bytes(), Some(&file(0o644)), new, |_| false).is_some()
    }

    #[test]
    fn what_the_host_executes_needs_consent() {
        for path in
            [".envrc", "a/.ENVRC", ".vscode/tasks.json", "x/.Vscode/deep/settings.json", "p.code-workspace", "hooks/x"]
        {
            assert!(of(path, &file(0o644)), "{path}");
        }
        for path in ["Makefile", "src/main.rs", "vscode/tasks.json", "envrc", "config", "src/hooks/x"] {
            assert!(!of(path, &file(0o644)), "{path}");
        }
        assert!(of("tool", &file(0o755)));
        assert!(super::of(b"tool", Some(&file(0o755)), &file(0o755), |_| false).is_none());
        assert!(super::of(b"b/config", None, &file(0o644), |above| above == b"b").is_some());
    }

    #[test]
    fn links_that_may_leave_the_project_need_consent() {
        let link = |path: &str, target: &str| of(path, &State { kind: Kind::Symlink(target.into()), mode: 0o777 });
        for (path, target) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("a/b", "../../x"),
            ("a/b", "c/../../x"),
            ("a", "sub/../x"),
            ("a", ".git/hooks"),
            ("a/b", "../.GIT"),
        ] {
            assert!(link(path, target), "{path} -> {target}");
        }
        for (path, target) in [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b//c")] {
            assert!(!link(path, target), "{path} -> {target}");
        }
    }
}
