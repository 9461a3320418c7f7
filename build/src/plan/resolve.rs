//! The steps of a stage, and the configuration of its image, once the configuration of its base image is
//! known. What all stages of a file expand to is bounded.

use super::{
    Action, BuildArgs, Resolved, Step,
    places::{is_remote, joined},
    stages::{fail, find_from, globals},
};
use crate::dockerfile::{
    Check, Command, Copy, Dockerfile, DockerfileError, Instruction, Run, expand, expand_document, split,
};
use sandboxvm_oci::{
    Digest,
    config::{Healthcheck, ImageConfig},
};
use std::{cell::Cell, collections::BTreeMap};

/// Variables that exist without `ARG`. They are not part of a key unless an `ARG` names them.
const PREDEFINED: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Maximum number of bytes that the variables and steps of all stages have together. A short file could
/// otherwise expand to any size.
const MAX_EXPANDED: usize = 64 << 20;

fn too_long() -> String {
    format!("the values and commands of all stages have more than {} MiB", MAX_EXPANDED >> 20)
}

/// What the stages of a file may still expand to.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_EXPANDED)
    }
}

/// Expands the instructions of one stage on the configuration of its base.
///
/// # Errors
/// Fails with the line if a variable cannot be expanded, if the base has triggers, or if values and
/// commands have more than 64 MiB.
pub fn resolve(
    file: &Dockerfile,
    stage: usize,
    base: &ImageConfig,
    args: &BuildArgs,
) -> Result<Resolved, DockerfileError> {
    resolve_within(file, stage, base, args, &mut Budget::default())
}

/// Expands the instructions of a stage, within what other stages of the file left.
pub(crate) fn resolve_within(
    file: &Dockerfile,
    stage: usize,
    base: &ImageConfig,
    args: &BuildArgs,
    budget: &mut Budget,
) -> Result<Resolved, DockerfileError> {
    let from = &file.stages[stage];
    if !base.on_build.is_empty() {
        return Err(fail(file, from.line, "the base image has ONBUILD triggers, which are not supported"));
    }
    let mut scope = Scope {
        file,
        stage,
        args,
        globals: globals(file, args)?,
        declared: BTreeMap::new(),
        config: base.clone(),
        has_cmd: false,
        budget: Cell::new(budget.0),
    };
    // Each stage keeps its configuration.
    if scope.spend(size(base)) == 0 {
        return Err(fail(file, from.line, too_long()));
    }
    let mut steps = Vec::new();
    for located in &from.instructions {
        let action = scope.apply(&located.instruction).map_err(|message| fail(file, located.line, message))?;
        if scope.spend(action.as_ref().map_or(0, Action::size)) == 0 {
            return Err(fail(file, located.line, too_long()));
        }
        steps.extend(action.map(|action| Step { line: located.line, text: located.text.clone(), action }));
    }
    *budget = Budget(scope.budget.get());
    Ok(Resolved { steps, config: scope.config })
}

/// Returns the number of bytes of what a Dockerfile can make large.
fn size(config: &ImageConfig) -> usize {
    let lists = [&config.env, &config.cmd, &config.entrypoint, &config.volumes, &config.exposed_ports, &config.shell];
    let words = lists.into_iter().flatten().chain(config.labels.iter().flat_map(|(name, value)| [name, value]));
    words.map(String::len).sum()
}

pub(super) struct Scope<'a> {
    pub(super) file: &'a Dockerfile,
    pub(super) stage: usize,
    args: &'a BuildArgs,
    globals: BTreeMap<String, String>,
    /// The `ARG` of this stage that have a value.
    declared: BTreeMap<String, String>,
    config: ImageConfig,
    /// Whether this stage has a `CMD`, which an `ENTRYPOINT` after it keeps.
    has_cmd: bool,
    /// Bytes that values and commands may still have. Looking up a value costs its length.
    budget: Cell<usize>,
}

/// Adds `item` to a set that keeps its order.
fn insert(set: &mut Vec<String>, item: String) {
    if !set.contains(&item) {
        set.push(item);
    }
}

/// Returns a variable of an image.
fn variable<'a>(config: &'a ImageConfig, name: &str) -> Option<&'a str> {
    config.env.iter().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// Sets a variable of an image.
fn set_variable(config: &mut ImageConfig, name: &str, value: &str) {
    let line = format!("{name}={value}");
    match config.env.iter_mut().find(|entry| entry.split('=').next() == Some(name)) {
        Some(entry) => *entry = line,
        None => config.env.push(line),
    }
}

impl Scope<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        let value = variable(&self.config, name).or_else(|| self.declared.get(name).map(String::as_str))?;
        // An exhausted budget is an error after the instruction.
        (self.spend(value.len()) > 0).then(|| value.to_owned())
    }

    fn spend(&self, bytes: usize) -> usize {
        self.budget.set(self.budget.get().saturating_sub(bytes));
        self.budget.get()
    }

    pub(super) fn word(&self, word: &str) -> Result<String, String> {
        expand(word, self.file.escape, &|name| self.lookup(name)).map_err(|error| error.to_string())
    }

    fn words(&self, words: &[String]) -> Result<Vec<String>, String> {
        words.iter().map(|word| self.word(word)).collect()
    }

    pub(super) fn path(&self, path: &str) -> String {
        joined(&format!("/{}", self.config.working_dir), path)
    }

    /// Returns what the digest of the one file of `ADD` has to be.
    fn checksum(&self, copy: &Copy) -> Result<Option<Digest>, String> {
        let Some(word) = &copy.checksum else { return Ok(None) };
        let is_file = matches!(&copy.sources[..], [source] if self.word(source).is_ok_and(|source| is_remote(&source)));
        if !is_file || !copy.inline.is_empty() {
            return Err("ADD --checksum needs a single source, which is a URL".into());
        }
        let text = self.word(word)?;
        let invalid = |_| format!("invalid checksum {text:?}: expected sha256: and 64 digits (0-9, a-f)");
        text.parse().map(Some).map_err(invalid)
    }

    fn program(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(list) => list.clone(),
            Command::Shell(text) if self.config.shell.is_empty() => vec!["/bin/sh".into(), "-c".into(), text.clone()],
            Command::Shell(text) => [self.config.shell.clone(), vec![text.clone()]].concat(),
        }
    }

    fn apply(&mut self, instruction: &Instruction) -> Result<Option<Action>, String> {
        match instruction {
            Instruction::Arg(list) => {
                for (name, default) in list {
                    let default = default.as_ref().map(|word| self.word(word)).transpose()?;
                    let value = self.args.get(name).cloned().or(default).or_else(|| self.globals.get(name).cloned());
                    self.declared.extend(value.map(|value| (name.clone(), value)));
                }
            }
            Instruction::Env(list) => {
                // All values of one instruction see the environment before it.
                let pairs: Result<Vec<_>, String> =
                    list.iter().map(|(name, word)| Ok((self.word(name)?, self.word(word)?))).collect();
                pairs?.iter().for_each(|(name, value)| set_variable(&mut self.config, name, value));
            }
            Instruction::Label(list) => {
                for (name, word) in list {
                    let (name, value) = (self.word(name)?, self.word(word)?);
                    self.config.labels.insert(name, value);
                }
            }
            Instruction::Shell(shell) => self.config.shell.clone_from(shell),
            Instruction::User(word) => self.config.user = self.word(word)?,
            Instruction::Workdir(word) => {
                let path = self.path(&self.word(word)?);
                let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
                self.config.working_dir.clone_from(&path);
                return Ok(Some(Action::Directory { path, user: self.config.user.clone() }));
            }
            Instruction::Entrypoint(command) => {
                self.config.entrypoint = self.program(command);
                // The arguments of the base image belong to its entry point.
                if !self.has_cmd {
                    self.config.cmd.clear();
                }
            }
            Instruction::Cmd(command) => {
                self.config.cmd = self.program(command);
                self.has_cmd = true;
            }
            Instruction::Expose(ports) => {
                for word in ports {
                    for port in split(&self.word(word)?, self.file.escape).map_err(|error| error.to_string())? {
                        let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                        insert(&mut self.config.exposed_ports, port);
                    }
                }
            }
            Instruction::Volume(paths) => {
                for path in self.words(paths)? {
                    insert(&mut self.config.volumes, path);
                }
            }
            Instruction::StopSignal(word) => self.config.stop_signal = self.word(word)?,
            Instruction::Healthcheck(check) => self.config.healthcheck = Some(healthcheck(check.as_ref())),
            Instruction::Maintainer(_) => {}
            Instruction::Run(run) => return self.run(run).map(Some),
            Instruction::Copy(copy) => return self.copy(copy).map(Some),
        }
        Ok(None)
    }

    fn run(&self, run: &Run) -> Result<Action, String> {
        let mut env = self.config.env.clone();
        for (name, value) in &self.declared {
            if variable(&self.config, name).is_none() {
                env.push(format!("{name}={value}"));
            }
        }
        let is_proxy = |name: &str| PREDEFINED.contains(&name.to_ascii_uppercase().as_str());
        let proxies = self.args.iter().filter(|(name, _)| is_proxy(name) && !self.declared.contains_key(*name));
        Ok(Action::Run {
            command: self.program(&run.command),
            mounts: self.mounts(&run.mounts)?,
            env,
            proxies: proxies.map(|(name, value)| format!("{name}={value}")).collect(),
            user: self.config.user.clone(),
            workdir: if self.config.working_dir.is_empty() { "/".into() } else { self.config.working_dir.clone() },
            no_network: run.no_network,
        })
    }

    fn copy(&self, copy: &Copy) -> Result<Action, String> {
        let mut inline = copy.inline.clone();
        for document in inline.iter_mut().filter(|document| document.expand) {
            // Quotes of a here-document are content. Only variables are replaced.
            document.content = expand_document(&document.content, self.file.escape, &|name| self.lookup(name))
                .map_err(|error| error.to_string())?;
        }
        Ok(Action::Copy {
            from: copy.from.as_ref().map(|name| find_from(self.file, self.stage, name)),
            sources: self.words(&copy.sources)?,
            inline,
            target: self.path(&self.word(&copy.target)?),
            checksum: self.checksum(copy)?,
            chown: copy.chown.as_ref().map(|word| self.word(word)).transpose()?,
            chmod: copy.chmod,
            is_add: copy.is_add,
        })
    }
}

fn healthcheck(check: Option<&Check>) -> Healthcheck {
    let Some(Check { command, interval, timeout, start_period, retries }) = check else {
        return Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() };
    };
    let test = match command {
        Command::Exec(list) => [vec!["CMD".into()], list.clone()].concat(),
        Command::Shell(text) => vec!["CMD-SHELL".into(), text.clone()],
    };
    let (interval, timeout, start_period, retries) = (*interval, *timeout, *start_period, *retries);
    Healthcheck { test, interval, timeout, start_period, retries }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::base;

    #[test]
    fn variables_come_from_the_image_and_from_arguments() {
        let text = "FROM a\nARG N=n\nENV P=$P:/x Q=$N\nWORKDIR /w\nWORKDIR v\nUSER $Q\nRUN x $P\nCOPY a ${N}/\nENTRYPOINT e\nCMD [\"c\"]\nEXPOSE 80\n";
        let file = Dockerfile::parse("D", text).unwrap();
        let image = ImageConfig { env: vec!["P=/bin".into()], cmd: vec!["old".into()], ..ImageConfig::default() };
        let args = BuildArgs::from([("HTTP_PROXY".into(), "p".into()), ("OTHER".into(), "o".into())]);
        let resolved = resolve(&file, 0, &image, &args).unwrap();
        let Action::Run { command, env, proxies, user, workdir, .. } = &resolved.steps[2].action else { panic!() };
        assert_eq!(command, &["/bin/sh", "-c", "x $P"]);
        assert_eq!(env, &["P=/bin:/x", "Q=n", "N=n"]);
        assert_eq!((proxies.join(",").as_str(), user.as_str(), workdir.as_str()), ("HTTP_PROXY=p", "n", "/w/v"));
        let Action::Copy { target, .. } = &resolved.steps[3].action else { panic!() };
        assert_eq!(target, "/w/v/n/");
        assert_eq!(resolved.config.cmd, ["c"]);
        assert_eq!(resolved.config.entrypoint, ["/bin/sh", "-c", "e"]);
        assert_eq!(resolved.config.exposed_ports, ["80/tcp"]);
    }

    #[test]
    fn entrypoint_clears_only_an_inherited_cmd() {
        let image = ImageConfig { cmd: vec!["old".into()], ..ImageConfig::default() };
        let cmd = |text: &str| {
            let file = Dockerfile::parse("D", text).unwrap();
            resolve(&file, 0, &image, &BuildArgs::new()).unwrap().config.cmd
        };
        assert!(cmd("FROM a\nENTRYPOINT [\"e\"]\n").is_empty());
        assert_eq!(cmd("FROM a\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n"), ["c"]);
        assert_eq!(cmd("FROM a\nENTRYPOINT [\"e\"]\nCMD [\"c\"]\n"), ["c"]);
    }

    #[test]
    fn short_file_cannot_expand_to_any_size() {
        let doubled = |count: usize| "ENV A=$A$A\n".repeat(count);
        let error = |text: String| {
            let file = Dockerfile::parse("D", &text).unwrap();
            resolve(&file, 0, &ImageConfig::default(), &BuildArgs::new()).unwrap_err().to_string()
        };
        assert!(error(format!("FROM a\nENV A=xxxxxxxx\n{}", doubled(60))).contains("longer than 1 MiB"));
        let large = format!("FROM a\nENV A=xxxxxxxx\n{}", doubled(16));
        let many: String = (0..200).map(|n| format!("ENV V{n}=$A\n")).collect();
        assert!(error(format!("{large}{many}")).contains("more than 64 MiB"));
        let tests = format!("RUN x\nLABEL l={}\n", "${A:+x}".repeat(1000));
        assert!(error(format!("{large}{tests}")).contains("more than 64 MiB"));
        assert!(error(format!("{large}{}", "RUN x\n".repeat(200))).contains("more than 64 MiB"));
    }

    #[test]
    fn stages_share_one_budget() {
        let doubled = "ENV A=$A$A\n".repeat(16);
        let values: String = (0..60).map(|n| format!("LABEL L{n}=$A\n")).collect();
        let text = format!("FROM a AS one\nENV A=xxxxxxxx\n{doubled}{values}FROM one AS two\nFROM two\n");
        let file = Dockerfile::parse("D", &text).unwrap();
        let (mut budget, args) = (Budget::default(), BuildArgs::new());
        let one = resolve_within(&file, 0, &ImageConfig::default(), &args, &mut budget).unwrap();
        let two = resolve_within(&file, 1, &one.config, &args, &mut budget).unwrap();
        let error = resolve_within(&file, 2, &two.config, &args, &mut budget).map(drop).unwrap_err().to_string();
        assert!(error.ends_with("all stages have more than 64 MiB"), "{error}");
        // Each step repeats the shell and the directory.
        let long = "x".repeat(400_000);
        for text in [format!("FROM a\nSHELL [\"{long}\"]\n"), format!("FROM a\nWORKDIR /{long}\n")] {
            let file = Dockerfile::parse("D", &format!("{text}{}", "RUN x\n".repeat(200))).unwrap();
            assert!(resolve(&file, 0, &ImageConfig::default(), &args).is_err());
        }
        let globals: String = (0..20).map(|n| format!("ARG G{n}={}\n", "x".repeat(40_000))).collect();
        let file = Dockerfile::parse("D", &format!("{globals}ARG A=$G1$G2$G3$G4$G5$G6$G7\nFROM a\n")).unwrap();
        assert!(base(&file, 0, &args).unwrap_err().to_string().contains("ARG before FROM have more than 1 MiB"));
    }

    #[test]
    fn healthcheck_has_its_times() {
        let text = "FROM a\nHEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD true\n";
        let file = Dockerfile::parse("D", text).unwrap();
        let check = resolve(&file, 0, &ImageConfig::default(), &BuildArgs::new()).unwrap().config.healthcheck.unwrap();
        assert_eq!((check.interval, check.timeout, check.retries), (90_000_000_000, 500_000_000, 3));
        assert_eq!(check.test, ["CMD-SHELL", "true"]);
        assert!(Dockerfile::parse("D", "FROM a\nHEALTHCHECK --interval=soon CMD true\n").is_err());
    }
}
