//! How a command fails: a message for people, what they can do about it, and an exit code for programs.

use crate::hint;
use sandboxvm_manager::{AgentError, ExecError, one_line, printable};
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

    /// A process that could not be run, or whose end is not known.
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

    /// Writes the message to stderr. A stderr that is closed has no reader.
    pub(crate) fn report(&self) {
        let _ = std::io::stderr().write_all(self.shown().as_bytes());
    }

    /// Nothing in it drives a terminal, and of a message of several lines no line but the first begins as ours do: what a
    /// guest or VMM wrote may be among them.
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

    #[test]
    fn a_message_drives_no_terminal_and_has_one_beginning() {
        let failure = Failure::new("a\x1b[2J\nsandboxvm: b\n  c");
        assert_eq!(failure.shown(), "sandboxvm: a\\u{1b}[2J\n  sandboxvm: b\n  c\n");
        assert_eq!(Failure::silent(3).shown(), "");
    }

    #[test]
    fn exit_codes_tell_what_could_not_be_run() {
        let refused = |kind| ExecError::Agent(AgentError::Refused { kind, message: "x".into() });
        assert_eq!(Failure::of_exec(&refused(FailureKind::NotFound)).code(), 127);
        assert_eq!(Failure::of_exec(&refused(FailureKind::NotExecutable)).code(), 126);
        assert_eq!(Failure::of_exec(&refused(FailureKind::NoSuchUser)).code(), 125);
        assert_eq!(Failure::of_exec(&ExecError::NoCommand).code(), 125);
    }
}
