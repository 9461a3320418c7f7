//! `build`: an image from a Dockerfile. Each step runs in a sandbox. What steps write goes to stderr, escaped, since it is a
//! guest's; stdout has the digest of the image.

use crate::{
    environment,
    failure::Failure,
    images::{self, RegistryOptions},
    options::{
        network::{Network, Targets},
        supervision,
        values::{disk, memory, vcpus},
    },
    output::progress,
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::{Args, ValueEnum};
use sandboxvm_build::{
    context::Context,
    dockerfile::{Dockerfile, MAX_DOCKERFILE},
    engine::{self, BuildError, BuildRequest, Built, Event, MachineError, Progress, Secrets, StepProblem},
    machines::{MachineOptions, Pull, SandboxMachines},
    plan::BuildArgs,
};
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{MemorySize, VcpuCount, printable};
use std::{
    env, fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// What a user can do about a file that cannot be downloaded.
const DOWNLOADS: &str =
    "a build downloads what --net and --allow let it reach; a server without TLS needs --plain-http";
/// Maximum size of a secret in bytes.
const MAX_SECRET: u64 = 1 << 20;
/// Bytes of a line of output that are kept while it has no end.
const MAX_LINE: usize = 64 << 10;

/// Build an image from a Dockerfile
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0; 1 if a step failed; 125 if sandboxvm failed.")]
pub(crate) struct Build {
    /// Directory with the files that COPY and ADD take
    context: PathBuf,
    /// Reference that the image receives
    #[arg(short, long, value_name = "REFERENCE")]
    tag: Option<String>,
    /// Dockerfile; - reads it from stdin [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set the value of an ARG; KEY alone passes on the caller's variable. Can be repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    build_arg: Vec<String>,
    /// Stage to build, by name or position from 0 [default: the last one]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Provide a secret for RUN --mount=type=secret: the content of a file, or of a variable of the caller. Can be repeated
    #[arg(long, value_name = "id=ID,src=FILE|env=NAME")]
    secret: Vec<String>,
    /// Execute all steps, instead of using results of earlier builds
    #[arg(long)]
    no_cache: bool,
    /// What is shown of the build
    #[arg(long, value_enum, default_value = "plain")]
    progress: Shown,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    network: Targets,
    #[command(flatten)]
    registry: RegistryOptions,
}

/// The machine in which steps run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
struct Machine {
    /// Guest memory (64M-64G)
    #[arg(short, long, value_name = "SIZE", default_value = "1G", allow_hyphen_values = true, value_parser = memory)]
    memory: MemorySize,
    /// Number of vCPUs (1-8)
    #[arg(short, long, value_name = "N", default_value = "1", allow_hyphen_values = true, value_parser = vcpus)]
    cpus: VcpuCount,
    /// Size of the writable disk (64M-1T); it takes up space on the host only as it is written
    #[arg(long, value_name = "SIZE", default_value = "4G", allow_hyphen_values = true, value_parser = disk)]
    disk: DiskSize,
}

/// Values of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shown {
    /// Steps and their output, line by line
    Plain,
    /// Nothing but the output of a step that failed
    None,
}

/// What a build reads before it begins.
pub(super) struct Inputs {
    file: Dockerfile,
    context: Context,
    args: BuildArgs,
    secrets: Secrets,
    created: Option<u64>,
}

impl Build {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let inputs = self.inputs()?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let built = tokio::select! {
                built = self.build(&inputs) => built,
                _ = signals.next() => return Ok(signals.exit_code()),
            };
            match built? {
                Ok(built) => {
                    stdio::print(&format!("{}\n", built.digest))?;
                    Ok(0)
                }
                Err(error) => self.failed(&error),
            }
        })
    }

    pub(super) fn inputs(&self) -> Result<Inputs, Failure> {
        let text = self.dockerfile()?;
        let name = self.file.as_deref().unwrap_or(Path::new("Dockerfile")).display().to_string();
        let file = Dockerfile::parse(&name, &text)?;
        let args = build_args(&self.build_arg, |name| env::var(name).ok())?;
        let secrets = secrets(&self.secret)?;
        let context = Context::open(&self.context)?;
        let created = args.get("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse().ok());
        Ok(Inputs { file, context, args, secrets, created })
    }

    /// Builds the image.
    pub(super) async fn build(&self, inputs: &Inputs) -> Result<Result<Built, BuildError>, Failure> {
        let request = BuildRequest {
            file: &inputs.file,
            context: &inputs.context,
            args: &inputs.args,
            target: self.target.as_deref(),
            secrets: &inputs.secrets,
            use_cache: !self.no_cache,
            tag: self.tag.as_deref(),
            created: inputs.created,
        };
        let machines = self.machines(self.network.network()?)?;
        Ok(match self.progress {
            Shown::Plain => engine::build(&request, &machines, &Plain::default()).await,
            Shown::None => progress::during("building", engine::build(&request, &machines, &Silent)).await,
        })
    }

    /// Returns the network of the machines, or `None` for machines without a card.
    pub(super) fn network(&self) -> Result<Option<Network>, Failure> {
        self.network.network()
    }

    /// Returns machines with this network.
    pub(super) fn machines(&self, network: Option<Network>) -> Result<SandboxMachines, Failure> {
        let opened = images::open(&self.registry, None)?;
        if let Some(tag) = &self.tag {
            // A build takes long, and its tag is needed at its end.
            opened.settings.reference(tag)?;
        }
        let mut manager = environment::manager()?;
        let mut options = MachineOptions {
            vcpus: self.machine.cpus,
            memory: self.machine.memory,
            disk: self.machine.disk,
            pull: Some(pull(self.registry.clone())),
            ..MachineOptions::default()
        };
        if let Some(Network { spec, operator }) = network {
            options.downloads = Some(opened.downloads(&self.registry, &spec, &operator)?);
            options.supervisor = Some(supervision::program()?);
            options.network = Some(spec);
            manager = manager.with_network(operator);
        }
        Ok(SandboxMachines::open(manager, environment::bundle(None, None), opened.store, options)?)
    }

    /// Reports a failure of a build. Returns the exit code if a step failed.
    pub(super) fn failed(&self, error: &BuildError) -> Result<u8, Failure> {
        if let BuildError::Step { problem: StepProblem::Exit { tail, .. }, text, .. } = error {
            if self.progress == Shown::None {
                show(&format!("{text}\n{tail}\n"));
            }
            Failure::new(error).report();
            return Ok(1);
        }
        let failure = Failure::new(error);
        Err(match error {
            BuildError::Step { problem: StepProblem::Download { .. }, .. } => failure.hinted(DOWNLOADS.to_owned()),
            _ => failure,
        })
    }

    fn dockerfile(&self) -> Result<String, Failure> {
        let path = self.file.clone().unwrap_or_else(|| self.context.join("Dockerfile"));
        let fail = |error: io::Error| Failure::new(format_args!("cannot read {}: {error}", path.display()));
        let mut text = String::new();
        let maximum = MAX_DOCKERFILE as u64 + 1;
        if path == Path::new("-") {
            io::stdin().lock().take(maximum).read_to_string(&mut text).map_err(fail)?;
        } else {
            fs::File::open(&path).and_then(|file| file.take(maximum).read_to_string(&mut text)).map_err(fail)?;
        }
        Ok(text)
    }
}

/// Returns a function that pulls an image with the credentials of the user.
fn pull(registry: RegistryOptions) -> Pull {
    Arc::new(move |text| {
        let registry = registry.clone();
        Box::pin(async move {
            let pulled = async {
                // The options are for the registry of each image.
                let opened = images::open(&registry, Some(&text))?;
                opened.pull(&opened.settings.reference(&text)?).await.map(drop)
            };
            pulled.await.map_err(|failure: Failure| MachineError::new(failure.text()))
        })
    })
}

fn build_args(given: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<BuildArgs, Failure> {
    let mut args = BuildArgs::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), variable(text)),
        };
        if name.is_empty() {
            return Err(Failure::new(format_args!("invalid --build-arg {text:?}: expected KEY or KEY=VALUE")));
        }
        args.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(args)
}

fn secrets(given: &[String]) -> Result<Secrets, Failure> {
    let mut secrets = Secrets::default();
    for text in given {
        let invalid =
            || Failure::new(format_args!("invalid --secret {text:?}: expected id=ID,src=FILE or id=ID,env=NAME"));
        let (mut id, mut file, mut variable) = (None, None, None);
        for field in text.split(',') {
            match field.split_once('=').ok_or_else(invalid)? {
                ("id", value) => id = Some(value.to_owned()),
                ("src" | "source", value) => file = Some(PathBuf::from(value)),
                ("env", value) => variable = Some(value.to_owned()),
                ("type", "file" | "env") => {}
                _ => return Err(invalid()),
            }
        }
        let id = id.filter(|id| !id.is_empty()).ok_or_else(invalid)?;
        let fail = |error: &dyn std::fmt::Display| Failure::new(format_args!("cannot read the secret {id}: {error}"));
        let value = match (file, variable) {
            (Some(_), Some(_)) => return Err(invalid()),
            (Some(file), None) => {
                let mut value = Vec::new();
                let read = fs::File::open(file).and_then(|file| file.take(MAX_SECRET + 1).read_to_end(&mut value));
                read.map_err(|error| fail(&error))?;
                if value.len() as u64 > MAX_SECRET {
                    return Err(fail(&format_args!("it has more than {MAX_SECRET} bytes")));
                }
                value
            }
            // As docker: a variable of the name of the secret.
            (None, variable) => {
                let name = variable.unwrap_or_else(|| id.clone());
                env::var(name).map_err(|error| fail(&error))?.into_bytes()
            }
        };
        secrets.insert(id, value);
    }
    Ok(secrets)
}

/// Writes to stderr; a reader that left does not end the build.
pub(super) fn show(text: &str) {
    let _ = io::stderr().lock().write_all(printable(text).as_bytes());
}

/// Shows steps and whole lines of output.
#[derive(Default)]
pub(super) struct Plain {
    /// The line without its end, for each stream.
    line: Mutex<String>,
}

impl Plain {
    fn end_line(&self) {
        let mut line = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !line.is_empty() {
            show(&format!("  {line}\n"));
            line.clear();
        }
    }
}

impl Progress for Plain {
    fn notify(&self, event: Event<'_>) {
        match event {
            Event::Output(_, bytes) => {
                let mut line = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                line.push_str(&String::from_utf8_lossy(bytes));
                show(&whole_lines(&mut line));
            }
            Event::Step { stage, number, of, text, cached } => {
                self.end_line();
                let cached = if cached { "CACHED " } else { "" };
                show(&format!("sandboxvm: [stage {stage}, {number}/{of}] {cached}{}\n", text.replace('\n', " ")));
            }
            Event::Note(text) => {
                self.end_line();
                show(&format!("sandboxvm: {}\n", text.replace('\n', " ")));
            }
            Event::Stored(_) => self.end_line(),
        }
    }
}

/// Takes the whole lines off the beginning of a text, indented. A guest may never end a line, so a long one is cut.
fn whole_lines(text: &mut String) -> String {
    let end = match text.rfind('\n') {
        Some(at) => at + 1,
        None if text.len() > MAX_LINE => text.len(),
        None => return String::new(),
    };
    let rest = text.split_off(end);
    let whole = std::mem::replace(text, rest);
    whole.lines().map(|line| format!("  {line}\n")).collect()
}

/// Shows nothing.
struct Silent;

impl Progress for Silent {
    fn notify(&self, _: Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_arguments_may_come_from_the_caller() {
        let given = ["A=1=2", "B", "C"].map(str::to_owned);
        let args = build_args(&given, |name| (name == "B").then(|| "b".to_owned())).unwrap();
        assert_eq!(args.into_iter().collect::<Vec<_>>(), [("A".into(), "1=2".into()), ("B".into(), "b".into())]);
        assert!(build_args(&["=x".to_owned()], |_| None).is_err());
    }

    #[test]
    fn output_is_shown_in_lines_and_kept_in_bounded_memory() {
        let mut text = "a\nb\nc".to_owned();
        assert_eq!((whole_lines(&mut text).as_str(), text.as_str()), ("  a\n  b\n", "c"));
        assert_eq!((whole_lines(&mut text).as_str(), text.as_str()), ("", "c"));
        let mut long = "x".repeat(MAX_LINE + 1);
        assert_eq!(whole_lines(&mut long).len(), MAX_LINE + 4);
        assert!(long.is_empty());
    }

    #[test]
    fn secrets_are_read_from_files_and_invalid_ones_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("id=s,src={}", file.path().display());
        assert_eq!(format!("{:?}", secrets(&[text]).unwrap()), "{\"s\"}");
        for bad in ["s", "src=/x", "id=,src=/x", "id=s,src=/x,env=Y", "id=s,mode=1"] {
            assert!(secrets(&[bad.to_owned()]).unwrap_err().text().starts_with("invalid --secret"), "{bad}");
        }
        assert!(secrets(&["id=s,src=/nowhere".to_owned()]).unwrap_err().text().contains("cannot read the secret s"));
    }
}
