//! The ready command of a template: it is repeated until it succeeds, and then the template is ready for its snapshot.

use super::SandboxMachine;
use crate::engine::{Done, Machine, MachineError, Process, Stream};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// What takes the place of the ready command of a start command that has none, as with E2B.
pub const READY_DEFAULT: &str = "sleep 20";

/// Time between two tries.
const EVERY: Duration = Duration::from_secs(2);
/// Time until it has to succeed.
const WITHIN: Duration = Duration::from_secs(600);

impl SandboxMachine {
    /// Runs a command every two seconds until it succeeds.
    ///
    /// # Errors
    /// Fails after ten minutes, or if the command cannot be run.
    pub async fn wait_until_ready(
        &mut self,
        check: &Process,
        output: &mut (dyn FnMut(Stream, &[u8]) + Send),
    ) -> Done<()> {
        let until = Instant::now() + WITHIN;
        loop {
            match timeout_at(until, self.run(check, output)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
            if Instant::now() + EVERY > until {
                break;
            }
            sleep(EVERY).await;
        }
        Err(MachineError::new(format!("the ready command did not succeed within {} s", WITHIN.as_secs())))
    }
}
