//! What of a change a program of the host would execute or follow without being asked: hooks, editor
//! tasks, shell environments, new executables, and links that leave the project. Owns these rules; they
//! are a warning for a reader and no proof that all else is harmless.

use crate::{
    beneath::{ancestors, split},
    index::Kind,
    review::{compare::folded, layer::State},
};
use std::{
    collections::{BTreeMap, HashSet},
    iter,
};

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
    (".zshenv", "shells run it"),
    (".zprofile", "shells run it"),
    (".bash_profile", "shells run it"),
    (".bash_login", "shells run it"),
    (".bash_logout", "shells run it"),
    ("rust-toolchain", "cargo runs the compiler that it names"),
    ("rust-toolchain.toml", "cargo runs the compiler that it names"),
    // Also alone: with other files of the host, or of another apply, they make a repository.
    ("HEAD", "git may take its directory for a repository"),
    ("commondir", "git may take settings from the directory that it names"),
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
    (".hg", "Mercurial runs commands in it"),
    (".jj", "Jujutsu runs commands in it"),
    (".sl", "Sapling runs commands in it"),
    (".claude", "agents run commands in it"),
    (".cursor", "agents run commands in it"),
    (".gemini", "agents run commands in it"),
    (".codex", "agents run commands in it"),
];

/// As [`DIRECTORIES`], directly below the root: elsewhere the name is usual for source code.
const AT_ROOT: &[(&str, &str)] = &[("hooks", "git may run hooks in it")];

/// Ends of names, in lower case.
const ENDS: &[(&str, &str)] =
    &[(".code-workspace", "editors run tasks in it"), (".sublime-project", "editors run build systems in it")];

/// Returns why programs execute a file, or what is in it if it is a directory, by its name and those above it.
fn by_name(path: &[u8], is_directory: bool) -> Option<&'static str> {
    let (above, name) = split(path);
    let name = folded(name);
    let is_name = |known: &&(&str, &str)| name.eq_ignore_ascii_case(known.0.as_bytes());
    let is_end = |known: &&(&str, &str)| name.ends_with(known.0.as_bytes());
    if let Some((_, why)) = NAMES.iter().find(is_name).or_else(|| ENDS.iter().find(is_end)) {
        return Some(why);
    }
    let directories = if is_directory { path } else { above };
    directories.split(|byte| *byte == b'/').enumerate().find_map(|(depth, directory)| {
        let directory = folded(directory);
        let mut all = DIRECTORIES.iter().chain(if depth == 0 { AT_ROOT } else { &[] });
        all.find(|known| *directory == *known.0.as_bytes()).map(|(_, why)| *why)
    })
}

/// What a project has, or is to have, that gives other names a meaning.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// Targets of links whose names are known, and why programs execute these.
    targets: BTreeMap<Vec<u8>, &'static str>,
    /// Directories with a part of a repository of git.
    repositories: HashSet<Vec<u8>>,
}

/// Names in a repository of git.
pub(crate) const PARTS: [&str; 3] = ["HEAD", "objects", "refs"];

impl Surroundings {
    /// Adds a file.
    pub(crate) fn add(&mut self, path: &[u8], kind: &Kind) {
        let (above, name) = split(path);
        let name = folded(name);
        if PARTS.iter().any(|part| name.eq_ignore_ascii_case(part.as_bytes())) {
            self.repositories.insert(above.to_vec());
        }
        if let Kind::Symlink(target) = kind
            && let Some(why) = by_name(path, true)
            && let Some(target) = resolved(above, target)
        {
            self.targets.insert(target, why);
        }
    }
}

/// Returns the path in the project to which a link leads, if no other link is on its way.
fn resolved(above: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut path: Vec<&[u8]> = above.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    if target.starts_with(b"/") {
        return None;
    }
    for name in target.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if name == b".." {
            path.pop()?;
        } else {
            path.push(name);
        }
    }
    Some(path.join(&b'/'))
}

/// Returns why a new state of a path needs consent. `is_repository` says whether the host has a part of a
/// repository of git in a directory.
pub(crate) fn of(
    path: &[u8],
    old: Option<&State>,
    new: &State,
    surroundings: &Surroundings,
    is_repository: impl FnOnce(&[u8]) -> bool,
) -> Option<Reason> {
    match &new.kind {
        Kind::Symlink(target) if leaves(path, target) => {
            return Some(Reason::LeavesRoot { target: target.clone() });
        }
        Kind::Directory => return None,
        _ => {}
    }
    let (above, name) = split(path);
    // A link may stand for a directory.
    if let Some(why) = by_name(path, matches!(new.kind, Kind::Symlink(_))) {
        return Some(Reason::Executes(why));
    }
    if !surroundings.targets.is_empty() {
        let known = iter::once(path).chain(ancestors(path)).find_map(|path| surroundings.targets.get(path));
        if let Some(why) = known {
            return Some(Reason::Executes(why));
        }
    }
    if *folded(name) == *b"config" && (surroundings.repositories.contains(above) || is_repository(above)) {
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
        super::of(path.as_bytes(), Some(&file(0o644)), new, &Surroundings::default(), |_| false).is_some()
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
        let none = Surroundings::default();
        assert!(super::of(b"tool", Some(&file(0o755)), &file(0o755), &none, |_| false).is_none());
    }

    #[test]
    fn names_are_known_in_every_spelling() {
        for path in [".hg/hgrc", ".claude/settings.json", "a/rust-toolchain.toml", ".zshenv", ".\u{200d}envrc"] {
            assert!(of(path, &file(0o644)), "{path}");
        }
        assert!(of(".HU\u{17f}\u{212a}Y/x", &file(0o644)), "letters with the same upper case");
    }

    #[test]
    fn parts_of_a_repository_need_consent_one_by_one() {
        for path in ["HEAD", "b/head", "b/commondir"] {
            assert!(of(path, &file(0o644)), "{path}");
        }
        for part in ["b/refs", "b/Objects", "b/HEAD"] {
            let mut with = Surroundings::default();
            with.add(part.as_bytes(), &Kind::Directory);
            assert!(super::of(b"b/config", None, &file(0o644), &with, |_| false).is_some(), "{part}");
            assert!(super::of(b"c/config", None, &file(0o644), &with, |_| false).is_none(), "{part}");
        }
        let none = Surroundings::default();
        assert!(super::of(b"b/config", None, &file(0o644), &none, |above| above == b"b").is_some());
    }

    #[test]
    fn links_with_known_names_and_their_targets_need_consent() {
        let link = |target: &str| State { kind: Kind::Symlink(target.into()), mode: 0o777 };
        for path in [".cargo", ".vscode", "a/.Husky", "hooks", ".envrc"] {
            assert!(of(path, &link("cfg")), "{path}");
        }
        assert!(!of("cargo", &link("cfg")) && !of("a/hooks", &link("cfg")));
        let mut with = Surroundings::default();
        with.add(b"a/.vscode", &link("../cfg/./editor").kind);
        with.add(b".envrc", &link("env").kind);
        with.add(b"plain", &link("free").kind);
        let of = |path: &[u8]| super::of(path, Some(&file(0o644)), &file(0o644), &with, |_| false).is_some();
        assert!(of(b"cfg/editor/tasks.json") && of(b"env"));
        assert!(!of(b"cfg/other") && !of(b"free") && !of(b"environment"));
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
