//! How a command fails: a message for people and an exit code for programs.

use sandboxvm_manager::{AgentError, ExecError};
use sandboxvm_protocol::agent::FailureKind;
use std::{error::Error, fmt::Display, io::Write};

/// Our own failures.
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    message: Option<String>,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Display) -> Self {
        Self { message: Some(message.to_string()), code: OURS }
    }

    /// Everything was said already.
    pub(crate) fn silent(code: u8) -> Self {
        Self { message: None, code }
    }

    /// Clap's message, in our dress.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.trim_end();
        Self::new(text.strip_prefix("error: ").unwrap_or(text))
    }

    /// A process that could not be run, or whose end is not known.
    pub(crate) fn of_exec(error: &ExecError) -> Self {
        let code = match error {
            ExecError::Agent(AgentError::Refused { kind: FailureKind::NotFound, .. }) => NOT_FOUND,
            ExecError::Agent(AgentError::Refused { kind: FailureKind::NotExecutable, .. }) => NOT_EXECUTABLE,
            _ => OURS,
        };
        Self { message: Some(error.to_string()), code }
    }

    /// What it says; nothing when everything was said already.
    pub(crate) fn text(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Writes the message to stderr; a stderr that is closed has nobody to tell.
    pub(crate) fn report(&self) {
        if let Some(message) = &self.message {
            let _ = writeln!(std::io::stderr(), "sandboxvm: {message}");
        }
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_what_could_not_be_run() {
        let refused = |kind| ExecError::Agent(AgentError::Refused { kind, message: "x".into() });
        assert_eq!(Failure::of_exec(&refused(FailureKind::NotFound)).code(), 127);
        assert_eq!(Failure::of_exec(&refused(FailureKind::NotExecutable)).code(), 126);
        assert_eq!(Failure::of_exec(&refused(FailureKind::NoSuchUser)).code(), 125);
        assert_eq!(Failure::of_exec(&ExecError::NoCommand).code(), 125);
    }
}
