//! How a command fails: a message and a hint for people, and an exit code for programs.

pub(crate) mod hint;

use sandboxvm_manager::{AgentError, ExecError, FailureKind, one_line, printable};
use std::{error::Error, fmt::Display, io::Write};

/// Exit code of failures of this program.
const OURS: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    message: Option<String>,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Display) -> Self {
        Self { message: Some(message.to_string()), hint: None, code: OURS }
    }

    /// Adds what the user can do about it.
    pub(crate) fn hinted(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// The message and its hint were already printed.
    pub(crate) fn silent(code: u8) -> Self {
        Self { message: None, hint: None, code }
    }

    /// The message of the argument parser, in the form of ours.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        let text = text.trim_end();
        Self::new(text.strip_prefix("error: ").unwrap_or(text))
    }

    /// Returns the failure of a process that could not be run, or whose exit status is unknown.
    pub(crate) fn of_exec(error: &ExecError) -> Self {
        let code = match error {
            ExecError::Agent(AgentError::Refused { kind: FailureKind::NotFound, .. }) => NOT_FOUND,
            ExecError::Agent(AgentError::Refused { kind: FailureKind::NotExecutable, .. }) => NOT_EXECUTABLE,
            _ => OURS,
        };
        Self { message: Some(error.to_string()), hint: hint::of(error), code }
    }

    /// Returns the message; empty for a silent failure.
    pub(crate) fn text(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Writes the message to stderr; ignores errors, since there is no other place to report them.
    pub(crate) fn report(&self) {
        let _ = std::io::stderr().write_all(self.shown().as_bytes());
    }

    /// Returns the message as it is printed: without terminal sequences, and with no line but the first that looks like one of
    /// our messages, since text from a guest or VMM may be in it.
    fn shown(&self) -> String {
        let Some(message) = &self.message else { return String::new() };
        let mut text = format!("sandboxvm: {}\n", printable(message).replace("\nsandboxvm:", "\n  sandboxvm:"));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("sandboxvm: hint: {}\n", one_line(hint)));
        }
        text
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { hint: hint::of(&error), ..Self::new(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::ProcessSpecError;

    #[test]
    fn messages_are_escaped_and_only_their_first_line_has_the_prefix() {
        let failure = Failure::new("a\x1b[2J\nsandboxvm: b\n  c");
        assert_eq!(failure.shown(), "sandboxvm: a\\u{1b}[2J\n  sandboxvm: b\n  c\n");
        assert_eq!(Failure::silent(3).shown(), "");
    }

    #[test]
    fn exit_codes_say_why_a_command_was_not_run() {
        let refused = |kind| ExecError::Agent(AgentError::Refused { kind, message: "x".into() });
        assert_eq!(Failure::of_exec(&refused(FailureKind::NotFound)).code(), 127);
        assert_eq!(Failure::of_exec(&refused(FailureKind::NotExecutable)).code(), 126);
        assert_eq!(Failure::of_exec(&refused(FailureKind::NoSuchUser)).code(), 125);
        assert_eq!(Failure::of_exec(&ExecError::Spec(ProcessSpecError::NoProgram)).code(), 125);
    }
}
