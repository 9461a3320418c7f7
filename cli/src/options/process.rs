//! Options of a process: its environment, user and directory, and how the CLI attends it.

use super::values::{duration, shortened};
use crate::{
    failure::{Failure, hint},
    process_io::{Attendance, Leaving, terminal},
};
use clap::Args;
use sandboxvm_manager::{OnDisconnect, ProcessSpec, ProcessSpecError, check_variable};
use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, IsTerminal},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

/// Environment variables.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub(crate) struct EnvOptions {
    /// Set an environment variable; KEY alone passes the caller's value on, if it has one
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// Read environment variables from a file with one KEY[=VALUE] per line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl EnvOptions {
    /// Returns `KEY=VALUE` for each variable, with the last value of each key.
    pub(crate) fn variables(&self) -> Result<Vec<OsString>, Failure> {
        let mut variables = Variables::default();
        for path in &self.env_file {
            let content = fs::read(path).map_err(|error| {
                Failure::new(format_args!("cannot read the environment file {}: {error}", path.display()))
            })?;
            for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let start = line.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(line.len());
                if !line[start..].is_empty() && line[start] != b'#' {
                    let invalid = |problem: String| {
                        let (path, line) = (path.display(), number + 1);
                        Failure::new(format_args!("invalid environment file {path}: line {line}: {problem}"))
                    };
                    variables.set(OsString::from_vec(line[start..].to_vec())).map_err(invalid)?;
                }
            }
        }
        for entry in &self.env {
            variables
                .set(entry.clone())
                .map_err(|problem| Failure::new(format_args!("invalid --env {}: {problem}", shortened(entry))))?;
        }
        Ok(variables.0)
    }

    /// Returns the same as text, for the record of a sandbox.
    pub(crate) fn texts(&self) -> Result<Vec<String>, Failure> {
        let texts = self.variables()?.into_iter().map(|entry| {
            let not_text =
                |entry: OsString| Failure::new(format_args!("invalid --env {}: not valid UTF-8", shortened(&entry)));
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
            return Err("expected KEY or KEY=VALUE".into());
        }
        let key = bytes[..key_len].to_vec();
        let entry = if key_len < bytes.len() {
            entry
        } else {
            // As in docker: a variable that the caller does not have is not set.
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
#[command(next_help_heading = "Process")]
pub(crate) struct ProcessOptions {
    #[command(flatten)]
    env: EnvOptions,
    /// Working directory of the command [default: the image's, else the home directory of the user]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// User to run the command as: NAME or UID, optionally followed by :GROUP or :GID [default: the image's, else root]
    #[arg(short, long)]
    user: Option<OsString>,
    /// Kill the command after this time, such as 30s or 5m, and exit with 124 [default: no timeout]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    timeout: Option<Duration>,
    /// Pass standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a terminal for the command
    #[arg(short, long)]
    tty: bool,
}

impl ProcessOptions {
    /// Returns how to attend the process.
    pub(crate) fn attendance(&self) -> Result<Attendance, Failure> {
        let raw = is_raw(self.interactive, self.tty)?;
        let leaving = Leaving::EndsIt;
        Ok(Attendance { interactive: self.interactive, raw, tty: self.tty, timeout: self.timeout, leaving })
    }

    /// Sets the working directory, unless it is set.
    pub(crate) fn work_in_otherwise(&mut self, directory: Option<String>) {
        self.workdir = self.workdir.take().or(directory.map(Into::into));
    }

    /// Returns the user that the command is run as, unless that is the image's.
    pub(crate) fn user(&self) -> Option<&OsString> {
        self.user.as_ref()
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
        let failure = match error {
            ProcessSpecError::Argument { position, source } => {
                Failure::new(format_args!("invalid argument {}: {source}", given(command.get(*position))))
            }
            ProcessSpecError::Variable { name, problem } => {
                Failure::new(format_args!("invalid --env {name:?}: {problem}"))
            }
            ProcessSpecError::WorkingDirectory(source) => {
                Failure::new(format_args!("invalid --workdir {}: {source}", given(self.workdir.as_ref())))
            }
            ProcessSpecError::User(source) => {
                Failure::new(format_args!("invalid --user {}: {source}", given(self.user.as_ref())))
            }
            ProcessSpecError::NoProgram | ProcessSpecError::TooMany(_) | ProcessSpecError::TooLong(_) => {
                Failure::new(error)
            }
        };
        failure.hinted(hint::of(error))
    }
}

/// Returns true if the terminal is to be set to raw mode. Fails with `-it` if stdin is not a terminal.
pub(crate) fn is_raw(interactive: bool, tty: bool) -> Result<bool, Failure> {
    if interactive && tty && !io::stdin().is_terminal() {
        let hint = "leave out -t to pass a pipe or a file".to_owned();
        return Err(Failure::new("cannot use -it: standard input is not a terminal").hinted(hint));
    }
    Ok(interactive && tty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win_and_files_are_read_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, "# comment\n\n  A=file\r\nB=file=2\nSANDBOXVM_NO_SUCH_VARIABLE\n").unwrap();
        let options = EnvOptions { env: vec!["A=flag".into(), "PATH".into(), "AB=x".into()], env_file: vec![file] };
        let texts = options.texts().unwrap();
        let path = format!("PATH={}", env::var("PATH").unwrap());
        assert_eq!(texts, ["B=file=2", "A=flag", &path, "AB=x"]);
    }

    #[test]
    fn invalid_variables_are_rejected_with_file_and_line() {
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
        assert!(nameless.contains("KEY=VALUE"), "{nameless}");
    }
}
