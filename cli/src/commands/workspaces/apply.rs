//! `apply`: takes the changes of a sandbox's workspace over to the host.

use crate::{
    failure::Failure,
    runtime, stdio,
    workspace::{self, show},
};
use clap::Args;
use sandboxvm_manager::{Sandbox, State as StateOfSandbox, one_line};
use sandboxvm_workspace::{
    ApplyOptions, CommitsError, Conflict, ConflictKind, Extent, Gathered, Kind, LayerLimits, Plan, Reason, Review,
    State, apply, gather, plan,
};
use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::Path};

/// Apply the changes of a sandbox's workspace to the host
#[derive(Debug, Args)]
#[command(
    after_help = "All of the changes are applied, or none of them: a path that changed both on the host and in the sandbox is a conflict, and \
                  nothing is applied. An interrupted apply is finished or undone by the next `changes`, `apply`, `discard` or `rm` of the sandbox. Files in .git are never \
                  applied; new commits are fetched as remote-tracking branches sandboxvm/SANDBOX/BRANCH, unless PATHs are named. The sandbox keeps its changes; `discard` removes it."
)]
pub(crate) struct Apply {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Paths relative to the workspace, or absolute on the host, each with everything below it [default: all changes]
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// Apply without asking. Needed without a terminal
    #[arg(short, long)]
    yes: bool,
    /// Also apply what programs of the host execute: new executables, hooks, settings of editors and shells
    #[arg(long)]
    allow_exec: bool,
    /// Also apply symbolic links that may lead out of the directory
    #[arg(long)]
    allow_links: bool,
    /// Merge text files that changed both on the host and in the sandbox, where the changes do not touch
    #[arg(long)]
    merge: bool,
    /// Fetch commits, and do not apply files
    #[arg(long, conflicts_with_all = ["paths", "allow_exec", "allow_links", "merge"])]
    commits: bool,
}

impl Apply {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = workspace::find(&self.sandbox)?;
        if matches!(sandbox.state()?, StateOfSandbox::Creating | StateOfSandbox::Running) {
            stdio::notice(format_args!(
                "warning: the sandbox is running, and may have changed files since `changes` showed them"
            ));
        }
        let files = runtime::block_on(workspace::files(&sandbox))?;
        let review = Review::open(files, &LayerLimits::default())?;
        if self.commits {
            return self.only_commits(&sandbox, &review);
        }
        let options = ApplyOptions { paths: self.relative(&review), merge: self.merge };
        let plan = plan(&review, &options)?;
        self.consent(&plan)?;
        self.refuse_conflicts(&plan)?;
        show::note_left_out(review.changes());
        if plan.already() > 0 {
            stdio::notice(format_args!("skipped {} that the host already has", changes(plan.already())));
        }
        // A sandbox may have made its commits invalid: its files can be applied still.
        let gathered = if self.paths.is_empty() { gather(&review).unwrap_or_else(commits_stay) } else { None };
        let count = plan.planned().len() as u64;
        if count == 0 && gathered.is_none() {
            stdio::notice("there is nothing to apply");
            return Ok(0);
        }
        for planned in plan.planned() {
            let merged = if planned.is_merged { " (merged)" } else { "" };
            let target = planned.target.as_deref().map(show::target).unwrap_or_default();
            stdio::tell(&show::line(planned.kind, &format!("{}{target}{merged}", show::path(&planned.path))));
        }
        let root = plan.root().display();
        let question = match &gathered {
            Some(gathered) if count == 0 => format!("fetch {} into {root}?", commits(gathered)),
            Some(gathered) => format!("apply {} to {root}, and fetch {}?", changes(count), commits(gathered)),
            None => format!("apply {} to {root}?", changes(count)),
        };
        if !workspace::agrees(&question, self.yes)? {
            return Err(Failure::new("nothing was applied"));
        }
        if count > 0 {
            apply(&review, &plan, &sandbox.path())?;
            stdio::notice(format_args!("applied {} to {root}", changes(count)));
        }
        gathered.map_or(Ok(0), |gathered| fetch(&gathered, &sandbox))
    }

    fn only_commits(&self, sandbox: &Sandbox, review: &Review) -> Result<u8, Failure> {
        let Some(gathered) = gather(review)? else {
            stdio::notice("there are no new commits");
            return Ok(0);
        };
        if !workspace::agrees(&format!("fetch {}?", commits(&gathered)), self.yes)? {
            return Err(Failure::new("nothing was fetched"));
        }
        fetch(&gathered, sandbox)
    }

    /// Returns the paths relative to the workspace.
    fn relative(&self, review: &Review) -> Vec<Vec<u8>> {
        use std::os::unix::ffi::OsStrExt;
        let root = Path::new(std::ffi::OsStr::from_bytes(&review.index().root));
        let names = |path: &OsString| {
            let path = Path::new(path);
            let path = path.strip_prefix(root).unwrap_or(path);
            let path: std::path::PathBuf =
                path.components().filter(|part| *part != std::path::Component::CurDir).collect();
            path.into_os_string().into_vec()
        };
        self.paths.iter().map(names).collect()
    }

    /// Shows what needs consent, and fails unless the user gave it.
    fn consent(&self, plan: &Plan) -> Result<(), Failure> {
        let (mut executed, mut links) = (0, 0);
        for concern in plan.concerns() {
            let path = show::path(&concern.path);
            match &concern.reason {
                Reason::Executes(why) => {
                    executed += 1;
                    stdio::notice(format_args!("{path}: {why}"));
                }
                Reason::LeavesRoot { target } => {
                    links += 1;
                    stdio::notice(format_args!("{path}: symbolic link to {}", show::path(target)));
                }
            }
        }
        let hint = |flag: &str| format!("{flag} applies them; to leave them out, name the paths to apply");
        if executed > 0 && !self.allow_exec {
            let what = if executed == 1 { "1 changed file" } else { &format!("{executed} changed files") };
            let message = format!("nothing was applied: programs of the host may execute {what}");
            return Err(Failure::new(message).hinted(hint("--allow-exec")));
        }
        if links > 0 && !self.allow_links {
            let what = if links == 1 { "1 symbolic link" } else { &format!("{links} symbolic links") };
            let message = format!("nothing was applied: {what} may lead out of the directory or into .git");
            return Err(Failure::new(message).hinted(hint("--allow-links")));
        }
        Ok(())
    }

    /// Shows conflicts, and fails if there are any.
    fn refuse_conflicts(&self, plan: &Plan) -> Result<(), Failure> {
        if plan.conflicts().is_empty() {
            return Ok(());
        }
        for conflict in plan.conflicts() {
            stdio::tell(&conflict_text(conflict));
        }
        let count = plan.conflicts().len();
        let is_text = plan.conflicts().iter().any(|conflict| conflict.host_extent.is_some());
        let merge =
            if is_text && !self.merge { "`--merge` merges text files whose changes do not touch; or " } else { "" };
        let what = if count == 1 { "1 conflict".to_owned() } else { format!("{count} conflicts") };
        Err(Failure::new(format_args!("cannot apply: {what} with the host; nothing was applied"))
            .hinted(format!("{merge}name the paths without conflicts")))
    }
}

/// Says why the commits are not fetched.
fn commits_stay(error: CommitsError) -> Option<Gathered> {
    stdio::notice(format_args!("warning: {}", one_line(&error.to_string())));
    None
}

/// Fetches commits into the repository of the project.
fn fetch(gathered: &Gathered, sandbox: &Sandbox) -> Result<u8, Failure> {
    let remote = sandbox.record().name.as_ref().map_or_else(|| sandbox.id().to_string(), ToString::to_string);
    gathered.fetch(&remote)?;
    for (branch, count) in gathered.branches() {
        let (name, count) = (&branch.name, number(*count, "commit"));
        stdio::notice(format_args!("fetched {count} of {name} as sandboxvm/{remote}/{name}"));
    }
    Ok(0)
}

/// Describes commits that the host lacks.
fn commits(gathered: &Gathered) -> String {
    match gathered.branches() {
        [(branch, count)] => format!("{} of {}", number(*count, "commit"), branch.name),
        branches => format!("commits of {} branches", branches.len()),
    }
}

fn number(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn changes(count: u64) -> String {
    number(count, "change")
}

/// Describes a conflict with both sides.
fn conflict_text(conflict: &Conflict) -> String {
    let path = show::path(&conflict.path);
    let why = match conflict.kind {
        ConflictKind::Content => "both sides changed it",
        ConflictKind::Mode => "both sides changed its permissions",
        ConflictKind::Special => "the host has a device, socket, pipe or mount point there",
        ConflictKind::Blocked => "a directory of the path is a symbolic link, a file or a mount point on the host",
        ConflictKind::OtherCase => "the host has the same file under a name that differs only by case",
        ConflictKind::NotEmpty => "the directory has files on the host that the sandbox never had",
    };
    let given = conflict.given.as_ref();
    let mut text = format!("sandboxvm: conflict: {path}: {why}\n");
    if matches!(conflict.kind, ConflictKind::Content | ConflictKind::Mode) {
        text.push_str(&format!("  host:    {}\n", side(given, conflict.host.as_ref(), conflict.host_extent)));
        text.push_str(&format!("  sandbox: {}\n", side(given, conflict.sandbox.as_ref(), conflict.sandbox_extent)));
    }
    text
}

/// Describes what one side did to a path.
fn side(given: Option<&State>, now: Option<&State>, extent: Option<Extent>) -> String {
    let what = match now.map(|now| &now.kind) {
        None => return if given.is_some() { "deleted".into() } else { "not there".into() },
        Some(Kind::File(content)) => format!("file of {}", number(content.size, "byte")),
        Some(Kind::Directory) => "directory".into(),
        Some(Kind::Symlink(target)) => format!("symbolic link to {}", show::path(target)),
    };
    let verb = match (given, now) {
        (None, _) => "added",
        (Some(given), Some(now)) if given.has_same_content(now) && given.mode == now.mode => "unchanged",
        _ => "changed",
    };
    let mode = now.map_or(0, |now| now.mode);
    let lines = match extent {
        Some(Extent::Lines { added, removed }) => format!(", +{added} -{removed} lines"),
        _ => String::new(),
    };
    format!("{verb}: {what}, mode {mode:03o}{lines}")
}
