//! The tokio runtime of one command: a single thread, made only where a command waits for something.

use crate::failure::Failure;
use std::future::Future;

/// Runs `work` until it is done. Does not wait for threads that may block forever, such as one that reads stdin.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("cannot set up the event loop: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
