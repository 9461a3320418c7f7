//! Runs in a new machine what almost every first command needs (a shell, the dynamic linker, an
//! interpreter), before its ready snapshot is taken. The files that these read stay in the page
//! cache of the guest, where all machines that are restored from the snapshot find and share them.
//! Called by `ready_snapshot`. It is not an error if an image lacks a program, or if a program
//! fails.

use crate::{
    guest::{
        connection::agent::AgentError,
        process::{
            exec::{Exec, Output},
            spec::{ProcessSpec, ProcessSpecError},
        },
    },
    home::directory::SandboxDirectory,
};
use std::time::Duration;

/// Timeout of one command. A guest whose kernel is interpreted needs seconds.
const WITHIN: Duration = Duration::from_secs(60);

pub(crate) const COMMANDS: [&[&str]; 4] =
    [&["sh", "-c", ":"], &["bash", "-l", "-c", ":"], &["true"], &["python3", "-c", ""]];
/// Python must not write its bytecode to the disk.
const ENVIRONMENT: &str = "PYTHONDONTWRITEBYTECODE=1";

/// Runs the commands one after the other.
pub(crate) async fn up(directory: &SandboxDirectory) -> Result<(), AgentError> {
    for command in COMMANDS {
        // Constants that can be run: a test holds that.
        let Ok(spec) = spec(command) else { continue };
        match Exec::start_unlogged(directory, spec).await {
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
    fn commands_make_valid_requests() {
        for command in COMMANDS {
            assert_eq!(spec(command).unwrap().argv().count(), command.len());
        }
    }
}
