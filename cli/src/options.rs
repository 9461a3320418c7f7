//! Flags that several commands share, and what their values mean.

use crate::{
    environment,
    failure::Failure,
    limit_options::{self, LimitOptions},
    process_io::{Attendance, Leaving},
    progress,
    signals::Signals,
    terminal,
};
use clap::Args;
use parse_size::Config;
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{
    MemorySize, OnDisconnect, ProcessSpec, ProcessSpecError, SandboxName, SandboxSpec, StartFrom, StartedSandbox,
    VcpuCount, check_variable,
};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, IsTerminal},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

/// What machine a new sandbox is.
#[derive(Debug, Args)]
pub(crate) struct MachineOptions {
    /// Name to call the sandbox by: a-z, 0-9 and '-'
    #[arg(long, allow_hyphen_values = true, value_parser = name)]
    name: Option<SandboxName>,
    /// Guest memory: 64M to 64G
    #[arg(short, long, value_name = "SIZE", default_value = "256M", allow_hyphen_values = true, value_parser = memory)]
    memory: MemorySize,
    /// Number of vCPUs: 1 to 8
    #[arg(short, long, value_name = "N", default_value = "1", allow_hyphen_values = true, value_parser = vcpus)]
    cpus: VcpuCount,
    /// Size of the writable disk; only what is written takes room
    #[arg(long, value_name = "SIZE", default_value = "2G", allow_hyphen_values = true, value_parser = disk)]
    disk: DiskSize,
    /// Guest kernel to boot instead of the bundle's (an x86-64 vmlinux)
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Base image to boot instead of the bundle's (EROFS)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Boot the kernel, instead of going on from the snapshot of a machine of this kind that just booted
    #[arg(long)]
    cold: bool,
    /// Go on from this snapshot; memory, vCPUs, disk and image are the snapshot's
    #[arg(long, value_name = "SNAPSHOT", value_parser = name,
          conflicts_with_all = ["cold", "memory", "cpus", "disk", "kernel", "image"])]
    from: Option<SandboxName>,
    #[command(flatten)]
    limits: LimitOptions,
}

impl MachineOptions {
    fn start_from(&self) -> StartFrom {
        match &self.from {
            Some(snapshot) => StartFrom::Snapshot(snapshot.clone()),
            None if self.cold => StartFrom::Boot,
            None => StartFrom::Ready,
        }
    }

    /// Starts such a sandbox and waits until it runs, and with `settled` until it knows its name and the time, which
    /// otherwise the first exec tells it on the way. `None` when a signal came first, and nothing is left.
    pub(crate) async fn start(
        &self,
        env: Vec<String>,
        ephemeral: bool,
        settled: bool,
        signals: &mut Signals,
    ) -> Result<Option<StartedSandbox>, Failure> {
        let manager = environment::manager()?;
        let bundle = environment::bundle(self.kernel.clone(), self.image.clone());
        let spec = SandboxSpec {
            name: self.name.clone(),
            vcpus: self.cpus,
            memory: self.memory,
            disk: self.disk,
            start_from: self.start_from(),
            env,
            ephemeral,
            limits: self.limits.wanted(),
            ..SandboxSpec::default()
        };
        let starting = tokio::select! {
            // The first of its kind boots in here.
            started = progress::during("starting", manager.start(&bundle, &spec)) => started,
            _ = signals.next() => return Ok(None),
        };
        let mut started = starting?;
        let ready = tokio::select! {
            ready = progress::during("booting", async {
                if settled { started.settled().await } else { started.ready().await }
            }) => Some(ready),
            _ = signals.next() => None,
        };
        match ready {
            Some(Ok(())) => {
                limit_options::warn(started.sandbox(), &[]);
                Ok(Some(started))
            }
            Some(Err(error)) => {
                started.finish().await?;
                Err(error.into())
            }
            None => {
                started.finish().await?;
                Ok(None)
            }
        }
    }
}

/// Environment variables.
#[derive(Debug, Args)]
pub(crate) struct EnvOptions {
    /// Set an environment variable; KEY alone takes the caller's value
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// Read environment variables from a file, one KEY[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl EnvOptions {
    /// `KEY=VALUE` for each variable, the last of each key.
    pub(crate) fn variables(&self) -> Result<Vec<OsString>, Failure> {
        let mut variables = Variables::default();
        for path in &self.env_file {
            let fail = |problem: String| Failure::new(format_args!("--env-file {}: {problem}", path.display()));
            let content = fs::read(path).map_err(|error| fail(error.to_string()))?;
            for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let start = line.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(line.len());
                if !line[start..].is_empty() && line[start] != b'#' {
                    let problem = |problem: String| fail(format!("line {}: {problem}", number + 1));
                    variables.set(OsString::from_vec(line[start..].to_vec())).map_err(problem)?;
                }
            }
        }
        for entry in &self.env {
            variables
                .set(entry.clone())
                .map_err(|problem| Failure::new(format_args!("--env {}: {problem}", shortened(entry))))?;
        }
        Ok(variables.0)
    }

    /// The same as text, for a sandbox's record.
    pub(crate) fn texts(&self) -> Result<Vec<String>, Failure> {
        let texts = self.variables()?.into_iter().map(|entry| {
            let not_text = |entry: OsString| Failure::new(format_args!("--env {}: is not UTF-8", shortened(&entry)));
            entry.into_string().map_err(not_text)
        });
        texts.collect()
    }
}

#[derive(Debug, Default)]
struct Variables(Vec<OsString>);

impl Variables {
    fn set(&mut self, entry: OsString) -> Result<(), String> {
        let bytes = entry.as_bytes();
        let key_len = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        if key_len == 0 {
            return Err("has no name before '='".into());
        }
        let key = bytes[..key_len].to_vec();
        let entry = if key_len < bytes.len() {
            entry
        } else {
            // As docker does: a variable the caller does not have is not set.
            let Some(value) = env::var_os(&entry) else { return Ok(()) };
            let mut entry = entry;
            entry.push("=");
            entry.push(value);
            entry
        };
        check_variable(&entry).map_err(|problem| problem.to_string())?;
        self.0.retain(|other| !(other.as_bytes().starts_with(&key) && other.as_bytes().get(key_len) == Some(&b'=')));
        self.0.push(entry);
        Ok(())
    }
}

/// How a process is run.
#[derive(Debug, Args)]
pub(crate) struct ProcessOptions {
    #[command(flatten)]
    env: EnvOptions,
    /// Working directory; the user's home unless stated
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// User to run as: NAME or UID, also with :GROUP or :GID; root unless stated
    #[arg(short, long)]
    user: Option<OsString>,
    /// Kill the command after this time (30s, 5m) and exit with 124
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    timeout: Option<Duration>,
    /// Pass standard input on to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
}

impl ProcessOptions {
    /// How the process is attended.
    pub(crate) fn attendance(&self) -> Result<Attendance, Failure> {
        let raw = is_raw(self.interactive, self.tty)?;
        let leaving = Leaving::EndsIt;
        Ok(Attendance { interactive: self.interactive, raw, tty: self.tty, timeout: self.timeout, leaving })
    }

    pub(crate) fn spec(&self, command: &[OsString], on_disconnect: OnDisconnect) -> Result<ProcessSpec, Failure> {
        let mut spec = ProcessSpec::builder(command)
            .reads_stdin(self.interactive)
            .terminal(self.tty.then(terminal::size))
            .timeout(self.timeout)
            .on_disconnect(on_disconnect);
        if self.tty {
            spec = spec.variable("TERM", env::var_os("TERM").unwrap_or_else(|| "xterm".into()));
        }
        spec = spec.env(self.env.variables()?);
        if let Some(directory) = &self.workdir {
            spec = spec.working_directory(directory);
        }
        if let Some(user) = &self.user {
            spec = spec.user(user);
        }
        spec.build().map_err(|error| self.refused(&error, command))
    }

    /// The failure of a process that cannot be described, with the flag that its part came from.
    fn refused(&self, error: &ProcessSpecError, command: &[OsString]) -> Failure {
        let given = |value: Option<&OsString>| value.map(shortened).unwrap_or_default();
        match error {
            ProcessSpecError::NoProgram => Failure::new("the command is empty: state a program after `--`"),
            ProcessSpecError::Argument { position, source } => {
                Failure::new(format_args!("argument {}: {source}", given(command.get(*position))))
            }
            ProcessSpecError::Variable { name, problem } => Failure::new(format_args!("--env {name:?}: {problem}")),
            ProcessSpecError::WorkingDirectory(source) => {
                Failure::new(format_args!("--workdir {}: {source}", given(self.workdir.as_ref())))
            }
            ProcessSpecError::User(source) => {
                Failure::new(format_args!("--user {}: {source}", given(self.user.as_ref())))
            }
            ProcessSpecError::TooMany(_) | ProcessSpecError::TooLong(_) => Failure::new(error),
        }
    }
}

/// Whether our terminal is to be raw; with `-it` our stdin must be one.
pub(crate) fn is_raw(interactive: bool, tty: bool) -> Result<bool, Failure> {
    if interactive && tty && !io::stdin().is_terminal() {
        return Err(Failure::new("-it needs a terminal as standard input; leave -t out to pass a pipe or file on"));
    }
    Ok(interactive && tty)
}

/// A value as it appears in a message: cut, and without control characters.
pub(crate) fn shortened(value: &OsString) -> String {
    let text = value.to_string_lossy();
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

pub(crate) fn name(text: &str) -> Result<SandboxName, String> {
    SandboxName::try_from(text.to_owned()).map_err(|error| error.to_string())
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    Config::new().with_binary().parse_size(text).map_err(|error| format!("{error}; write it as 512M or 2G"))
}

fn memory(text: &str) -> Result<MemorySize, String> {
    MemorySize::try_from(size(text)?).map_err(|error| error.to_string())
}

fn disk(text: &str) -> Result<DiskSize, String> {
    DiskSize::try_from(size(text)?).map_err(|error| error.to_string())
}

fn vcpus(text: &str) -> Result<VcpuCount, String> {
    let number: u32 = text.parse().map_err(|_| format!("not a number: a sandbox has 1 to {}", VcpuCount::MAX))?;
    VcpuCount::try_from(number).map_err(|error| error.to_string())
}

/// `30s`, `5m`, `1h 30m`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 30s or 5m")),
    }?;
    if parsed.is_zero() { Err("no time at all".into()) } else { Ok(parsed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_bounds_are_said() {
        assert_eq!(memory("512M").unwrap().mib(), 512);
        assert_eq!(memory("1g").unwrap().mib(), 1024);
        assert_eq!(disk("2GiB").unwrap(), DiskSize::DEFAULT);
        assert!(memory("0").unwrap_err().contains("64 MiB to 64 GiB"));
        assert!(memory("lots").unwrap_err().contains("512M"));
        assert!(vcpus("0").unwrap_err().contains("1 to 8"));
        assert!(vcpus("9").unwrap_err().contains("1 to 8"));
        assert!(vcpus("two").unwrap_err().contains("1 to 8"));
        assert!(name("a\nb").unwrap_err().contains("\\n"));
    }

    #[test]
    fn times_are_read_with_and_without_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("0").is_err() && duration("soon").is_err());
    }

    #[test]
    fn the_last_of_each_variable_counts_and_files_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, "# comment\n\n  A=file\r\nB=file=2\nSANDBOXVM_NO_SUCH_VARIABLE\n").unwrap();
        let options = EnvOptions { env: vec!["A=flag".into(), "PATH".into(), "AB=x".into()], env_file: vec![file] };
        let texts = options.texts().unwrap();
        let path = format!("PATH={}", env::var("PATH").unwrap());
        assert_eq!(texts, ["B=file=2", "A=flag", &path, "AB=x"]);
    }

    #[test]
    fn what_no_program_can_be_given_is_refused_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, [b"OK=1\nBIG=".as_slice(), &vec![b'x'; 1 << 20]].concat()).unwrap();
        let message = |options: EnvOptions| match options.variables() {
            Err(failure) => format!("{failure:?}"),
            Ok(variables) => panic!("{variables:?}"),
        };
        let of_file = message(EnvOptions { env: vec![], env_file: vec![file] });
        assert!(of_file.contains("line 2") && of_file.contains("longer than"), "{of_file}");
        assert!(of_file.len() < 400, "the value itself is not shown");
        let nameless = message(EnvOptions { env: vec!["=1".into()], env_file: vec![] });
        assert!(nameless.contains("no name"), "{nameless}");
    }
}
