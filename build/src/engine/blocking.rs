//! Work that blocks its thread: reads and writes of files that can be large. It runs on another
//! thread, so that a build can be given up meanwhile. May not be used for anything that waits for a
//! machine.

use super::{error::StepProblem, machine::MachineError};

/// Runs `work` on a thread for blocking work. If the future is dropped, work that has begun ends on
/// its own, and its result is dropped.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, StepProblem>
where
    T: Send + 'static,
    E: Send + 'static,
    StepProblem: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(error) => Err(MachineError::new(error).into()),
        },
    }
}
