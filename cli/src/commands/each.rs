//! Commands that accept several sandboxes or snapshots: one failure does not keep the others from their turn.

use crate::failure::Failure;

/// Runs `action` for each of `names`, also after a failure, and fails if any of them failed.
pub(crate) async fn for_each(
    names: &[String],
    action: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut outcome = Ok(0);
    for name in names {
        if let Err(failure) = action(name).await {
            failure.report();
            outcome = Err(Failure::silent(failure.code()));
        }
    }
    outcome
}
