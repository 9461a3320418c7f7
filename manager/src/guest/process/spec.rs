//! What process to run in a sandbox, and how: the one place where a command, its environment, its user and its directory are
//! checked. Everything that comes out of [`ProcessSpecBuilder::build`] can be sent to an agent as it is.
//!
//! The checks know nothing of where a value came from: a caller that has flags, JSON or protobuf maps the variants of
//! [`ProcessSpecError`] to the names that its own readers know.

use sandboxvm_protocol::agent::{
    CText, CTextError, ExecRequest, HostMessage, MAX_ARGUMENT_COUNT, MAX_ARGUMENTS_TOTAL, OnDisconnect, StdinSource,
    TerminalSize,
    main_process::{MainProcess, MainRequest},
};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, time::Duration};

/// Number of characters of a variable's name that an error shows.
const SHOWN: usize = 40;

/// Why a process cannot be described to an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessSpecError {
    /// There is no program to run.
    #[error("the command is empty")]
    NoProgram,
    /// A program or one of its arguments.
    #[error("invalid argument {position}: {source}")]
    Argument {
        /// Its position; 0 is the program.
        position: usize,
        /// What is wrong with it.
        source: CTextError,
    },
    /// A variable of the environment.
    #[error("invalid environment variable {name:?}: {problem}")]
    Variable {
        /// Its name, cut where it is long. Its value may be a secret and is never shown.
        name: String,
        /// What is wrong with it.
        problem: VariableProblem,
    },
    /// The working directory.
    #[error("invalid working directory: {0}")]
    WorkingDirectory(CTextError),
    /// The user.
    #[error("invalid user: {0}")]
    User(CTextError),
    /// There are more arguments, or more variables, than an agent takes.
    #[error("too many arguments or variables: {0}, and the maximum is {MAX_ARGUMENT_COUNT}")]
    TooMany(usize),
    /// Arguments and environment together are too long.
    #[error("arguments and environment take {0} bytes, and Linux accepts at most {MAX_ARGUMENTS_TOTAL}")]
    TooLong(usize),
}

/// What is wrong with a variable of an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableProblem {
    /// It has no `=`, nothing before it, or one within the name.
    #[error("expected KEY=VALUE")]
    NotKeyValue,
    /// No program can be given it.
    #[error(transparent)]
    Text(CTextError),
}

/// A process to run in a sandbox, checked. See [`ProcessSpec::builder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    request: ExecRequest,
    main: Option<MainProcess>,
}

impl ProcessSpec {
    /// Describes a process by its program and arguments. A program without `/` is looked up in the guest's `PATH`.
    ///
    /// Unless the builder says otherwise, the process runs as root in root's home, its standard input is empty, and it is
    /// killed when its connection ends.
    #[must_use]
    pub fn builder<T: AsRef<OsStr>>(argv: impl IntoIterator<Item = T>) -> ProcessSpecBuilder {
        ProcessSpecBuilder {
            argv: argv.into_iter().map(|word| bytes(&word)).collect(),
            variables: Vec::new(),
            working_directory: None,
            user: None,
            reads_stdin: false,
            terminal: None,
            timeout: None,
            on_disconnect: OnDisconnect::Kill,
        }
    }

    /// The same process, but with another rule for the end of its connection.
    #[must_use]
    pub fn on_disconnect(mut self, rule: OnDisconnect) -> Self {
        self.request.on_disconnect = rule;
        self
    }

    /// The same process as the main process of its sandbox, which has at most one at a time. A stop sends it
    /// its signal, and SIGTERM to the other processes when it has ended. Agents of wire version 6 and older
    /// refuse it.
    #[must_use]
    pub fn as_main(mut self, main: MainProcess) -> Self {
        self.main = Some(main);
        self
    }

    /// Program and arguments.
    pub fn argv(&self) -> impl Iterator<Item = &[u8]> {
        self.request.argv.iter().map(CText::as_bytes)
    }

    #[cfg(test)]
    pub(crate) fn request(&self) -> &ExecRequest {
        &self.request
    }

    /// Returns the message that starts it.
    pub(crate) fn into_message(self) -> HostMessage {
        match self {
            Self { request, main: None } => HostMessage::Exec(request),
            Self { request: process, main: Some(main) } => HostMessage::ExecMain(MainRequest { process, main }),
        }
    }

    /// Returns the process that a message starts, or another message as it is.
    pub(crate) fn of_message(message: HostMessage) -> Result<Self, HostMessage> {
        match message {
            HostMessage::Exec(request) => Ok(Self { request, main: None }),
            HostMessage::ExecMain(MainRequest { process: request, main }) => Ok(Self { request, main: Some(main) }),
            message => Err(message),
        }
    }

    /// The same process with this user and working directory where the request names none.
    pub(crate) fn with_defaults(mut self, user: Option<&str>, directory: &str) -> Result<Self, ProcessSpecError> {
        let request = &mut self.request;
        if request.cwd.is_none() {
            request.cwd = Some(CText::try_from(directory).map_err(ProcessSpecError::WorkingDirectory)?);
        }
        if request.user.is_none() {
            request.user = user.map(CText::try_from).transpose().map_err(ProcessSpecError::User)?;
        }
        Ok(self)
    }

    /// The same process with a sandbox's own environment before the variables of the request, which count where both set
    /// one.
    pub(crate) fn below_environment(mut self, own: &[String]) -> Result<Self, ProcessSpecError> {
        let env = &self.request.env;
        let own = own.iter().filter(|entry| !is_set(env, entry)).map(|entry| variable(entry));
        let own = own.collect::<Result<Vec<_>, _>>()?;
        self.request.env.splice(0..0, own);
        check_size(&self.request)?;
        Ok(self)
    }
}

/// Builds a [`ProcessSpec`]. Nothing is checked before [`Self::build`].
#[derive(Debug, Clone)]
pub struct ProcessSpecBuilder {
    argv: Vec<Vec<u8>>,
    variables: Vec<Variable>,
    working_directory: Option<Vec<u8>>,
    user: Option<Vec<u8>>,
    reads_stdin: bool,
    terminal: Option<TerminalSize>,
    timeout: Option<Duration>,
    on_disconnect: OnDisconnect,
}

impl ProcessSpecBuilder {
    /// Adds `KEY=VALUE` entries to the environment.
    #[must_use]
    pub fn env<T: AsRef<OsStr>>(mut self, entries: impl IntoIterator<Item = T>) -> Self {
        self.variables.extend(entries.into_iter().map(|entry| Variable::of(entry.as_ref().as_bytes())));
        self
    }

    /// Adds one variable to the environment.
    #[must_use]
    pub fn variable(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push(Variable { key: bytes(&key), value: Some(bytes(&value)) });
        self
    }

    /// Sets the working directory. Defaults to the user's home.
    #[must_use]
    pub fn working_directory(mut self, path: impl AsRef<OsStr>) -> Self {
        self.working_directory = Some(bytes(&path));
        self
    }

    /// Sets the user: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`, looked up in the guest. Defaults to root.
    #[must_use]
    pub fn user(mut self, user: impl AsRef<OsStr>) -> Self {
        self.user = Some(bytes(&user));
        self
    }

    /// Connects the standard input of the process to [`crate::Exec::stdin`]. By default it is empty.
    #[must_use]
    pub fn reads_stdin(mut self, reads: bool) -> Self {
        self.reads_stdin = reads;
        self
    }

    /// Gives the process a terminal of this size; what it writes to stderr then arrives as stdout.
    #[must_use]
    pub fn terminal(mut self, size: impl Into<Option<TerminalSize>>) -> Self {
        self.terminal = size.into();
        self
    }

    /// Kills the process group after this time; the process then ends with [`crate::ExitStatus::TimedOut`].
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Sets what happens to the process when its connection ends before it does. Defaults to [`OnDisconnect::Kill`].
    #[must_use]
    pub fn on_disconnect(mut self, rule: OnDisconnect) -> Self {
        self.on_disconnect = rule;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// Every [`ProcessSpecError`].
    pub fn build(self) -> Result<ProcessSpec, ProcessSpecError> {
        if self.argv.first().is_none_or(Vec::is_empty) {
            return Err(ProcessSpecError::NoProgram);
        }
        let argument =
            |(position, word)| CText::try_from(word).map_err(|source| ProcessSpecError::Argument { position, source });
        let request = ExecRequest {
            argv: self.argv.into_iter().enumerate().map(argument).collect::<Result<_, _>>()?,
            env: self.variables.into_iter().map(Variable::checked).collect::<Result<_, _>>()?,
            cwd: self.working_directory.map(CText::try_from).transpose().map_err(ProcessSpecError::WorkingDirectory)?,
            user: self.user.map(CText::try_from).transpose().map_err(ProcessSpecError::User)?,
            stdin: if self.reads_stdin { StdinSource::Connection } else { StdinSource::Null },
            terminal: self.terminal,
            timeout_ms: self.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            on_disconnect: self.on_disconnect,
        };
        check_size(&request)?;
        Ok(ProcessSpec { request, main: None })
    }
}

/// A variable as it was given; without a value where its entry has no `=`.
#[derive(Debug, Clone)]
struct Variable {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Variable {
    fn of(entry: &[u8]) -> Self {
        let mut parts = entry.splitn(2, |byte| *byte == b'=').map(<[u8]>::to_vec);
        Self { key: parts.next().unwrap_or_default(), value: parts.next() }
    }

    fn checked(self) -> Result<CText, ProcessSpecError> {
        let checked = match &self.value {
            Some(value) if !self.key.is_empty() && !self.key.contains(&b'=') => {
                CText::try_from([&self.key[..], b"=", value].concat()).map_err(VariableProblem::Text)
            }
            _ => Err(VariableProblem::NotKeyValue),
        };
        checked.map_err(|problem| {
            let name = String::from_utf8_lossy(&self.key).chars().take(SHOWN).collect();
            ProcessSpecError::Variable { name, problem }
        })
    }
}

/// Checks one `KEY=VALUE` of an environment, for callers that can say where it came from.
///
/// # Errors
/// Every [`VariableProblem`].
pub fn check_variable(entry: impl AsRef<OsStr>) -> Result<(), VariableProblem> {
    match Variable::of(entry.as_ref().as_bytes()).checked() {
        Err(ProcessSpecError::Variable { problem, .. }) => Err(problem),
        _ => Ok(()),
    }
}

/// Returns `KEY=VALUE` for the environment of a sandbox, checked.
///
/// # Errors
/// [`ProcessSpecError::Variable`].
pub fn environment_entry(key: &str, value: &str) -> Result<String, ProcessSpecError> {
    let variable = Variable { key: key.as_bytes().to_vec(), value: Some(value.as_bytes().to_vec()) };
    variable.checked().map(|_| format!("{key}={value}"))
}

/// One `KEY=VALUE` as an agent takes it.
pub(crate) fn variable(entry: &str) -> Result<CText, ProcessSpecError> {
    Variable::of(entry.as_bytes()).checked()
}

fn check_size(request: &ExecRequest) -> Result<(), ProcessSpecError> {
    let most = request.argv.len().max(request.env.len());
    if most > MAX_ARGUMENT_COUNT {
        return Err(ProcessSpecError::TooMany(most));
    }
    let total = request.argv.iter().chain(&request.env).map(|text| text.as_bytes().len() + 1).sum();
    if total > MAX_ARGUMENTS_TOTAL { Err(ProcessSpecError::TooLong(total)) } else { Ok(()) }
}

/// True when `env` sets the variable that `entry` sets.
fn is_set(env: &[CText], entry: &str) -> bool {
    let key_and_equals = entry.split_inclusive('=').next().unwrap_or(entry).as_bytes();
    env.iter().any(|other| other.as_bytes().starts_with(key_and_equals))
}

fn bytes(text: &impl AsRef<OsStr>) -> Vec<u8> {
    text.as_ref().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(builder: ProcessSpecBuilder) -> String {
        builder.build().unwrap_err().to_string()
    }

    #[test]
    fn a_spec_becomes_the_request_it_describes() {
        let spec = ProcessSpec::builder(["echo", ""])
            .variable("A", "1=2")
            .env(["B=", "C==x"])
            .working_directory("/tmp")
            .user("user")
            .reads_stdin(true)
            .timeout(Duration::from_millis(1500))
            .build()
            .unwrap();
        let text = |text: &str| CText::try_from(text).unwrap();
        let expected = ExecRequest {
            env: ["A=1=2", "B=", "C==x"].map(text).to_vec(),
            cwd: Some(text("/tmp")),
            user: Some(text("user")),
            stdin: StdinSource::Connection,
            timeout_ms: Some(1500),
            ..ExecRequest::plain(["echo", ""].map(text).to_vec())
        };
        assert_eq!(spec.request(), &expected);
    }

    #[test]
    fn commands_that_cannot_run_are_rejected() {
        let none: [&str; 0] = [];
        assert_eq!(ProcessSpec::builder(none).build(), Err(ProcessSpecError::NoProgram));
        assert_eq!(ProcessSpec::builder([""]).build(), Err(ProcessSpecError::NoProgram));
        assert!(refused(ProcessSpec::builder(["a", "b\0"])).starts_with("invalid argument 1: contains a NUL"));
        assert!(refused(ProcessSpec::builder(["a"]).user("a\0")).starts_with("invalid user: contains a NUL"));
        assert!(
            refused(ProcessSpec::builder(["a"]).working_directory("\0")).starts_with("invalid working directory: ")
        );
        let part = "x".repeat(127 * 1024);
        let message = refused(ProcessSpec::builder([part.as_str(); 9]));
        assert!(message.contains("arguments and environment take 1170441 bytes"), "{message}");
        let many = refused(ProcessSpec::builder(vec!["x"; MAX_ARGUMENT_COUNT + 1]));
        assert!(many.starts_with("too many arguments or variables: 65537"), "{many}");
    }

    #[test]
    fn variables_are_rejected_by_name_and_their_values_are_not_shown() {
        let of = |entry: &str| refused(ProcessSpec::builder(["a"]).env([entry]));
        assert_eq!(of("KEY"), "invalid environment variable \"KEY\": expected KEY=VALUE");
        assert_eq!(of("=x"), "invalid environment variable \"\": expected KEY=VALUE");
        let message = of("KEY=\0secret");
        assert!(message.starts_with("invalid environment variable \"KEY\": contains a NUL"), "{message}");
        assert!(!message.contains("secret"));
        let keyed = |key: &str| refused(ProcessSpec::builder(["a"]).variable(key, "secret"));
        assert_eq!(keyed("A=B"), "invalid environment variable \"A=B\": expected KEY=VALUE");
        let long = keyed(&format!("{}=", "K".repeat(200)));
        assert!(long.len() < 100 && !long.contains("secret"), "{long}");
    }

    #[test]
    fn variables_of_the_request_hide_those_of_the_sandbox() {
        let spec = ProcessSpec::builder(["a"]).env(["AB=1"]).build().unwrap();
        let own = ["A=2", "AB=2", "ABC=2"].map(String::from);
        let merged = spec.below_environment(&own).unwrap();
        let env: Vec<_> = merged.request().env.iter().map(|entry| String::from_utf8_lossy(entry.as_bytes())).collect();
        assert_eq!(env, ["A=2", "ABC=2", "AB=1"]);
    }
}
