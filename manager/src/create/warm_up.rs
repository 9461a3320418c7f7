//! Runs in a machine what almost every first command needs (a shell, the dynamic linker, an interpreter), before its
//! ready snapshot is taken. What they read stays in the guest's page cache, where all machines that go on from the
//! snapshot find it and share it. Called by `ready`; a program that an image lacks is no failure, nor is one that fails.

use crate::{
    guest::{
        agent::AgentError,
        exec::{Exec, Output},
        process_spec::{ProcessSpec, ProcessSpecError},
    },
    home::directory::SandboxDirectory,
};
use std::time::Duration;

/// For one command. A guest whose kernel is interpreted takes seconds.
const WITHIN: Duration = Duration::from_secs(60);

pub(crate) const COMMANDS: [&[&str]; 4] =
    [&["sh", "-c", ":"], &["bash", "-l", "-c", ":"], &["true"], &["python3", "-c", ""]];
/// Nothing is to be written.
const ENVIRONMENT: &str = "PYTHONDONTWRITEBYTECODE=1";

/// Runs them, one after the other.
pub(crate) async fn up(directory: &SandboxDirectory) -> Result<(), AgentError> {
    for command in COMMANDS {
        // Constants that can be run: a test holds that.
        let Ok(spec) = spec(command) else { continue };
        match Exec::start(directory, None, spec).await {
            Ok(mut exec) => while !matches!(exec.output.next().await?, None | Some(Output::Exited(_))) {},
            Err(AgentError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn spec(command: &[&str]) -> Result<ProcessSpec, ProcessSpecError> {
    ProcessSpec::builder(command).env([ENVIRONMENT]).timeout(WITHIN).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_can_be_asked_for() {
        for command in COMMANDS {
            assert_eq!(spec(command).unwrap().argv().count(), command.len());
        }
    }
}
