//! What to type next, for failures of which the library says only what is wrong.

use sandboxvm_manager::{ControlError, ExecError};
use std::error::Error;

/// The hint for `error` or, when it has none, for what caused it.
pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<String> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| {
        let silent = match (error.downcast_ref::<ExecError>(), error.downcast_ref::<ControlError>()) {
            (Some(ExecError::Unresponsive { sandbox, .. }), _) => Some(sandbox),
            (_, Some(ControlError::Silent(sandbox))) => sandbox.as_ref(),
            _ => None,
        };
        silent.map(|sandbox| format!("`sandboxvm rm -f {sandbox}` ends and removes it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{CopyError, FileError, ProcessSpecError, Silence, SilentPart, SnapshotError};
    use std::time::Duration;

    #[test]
    fn what_does_not_answer_can_be_removed_however_deep_the_error_is() {
        let silence = Silence { part: SilentPart::Vmm, within: Duration::from_secs(5) };
        let exec = || ExecError::Unresponsive { sandbox: "demo".to_owned(), silence };
        let hint = Some("`sandboxvm rm -f demo` ends and removes it".to_owned());
        assert_eq!(of(&exec()), hint);
        assert_eq!(of(&CopyError::from(FileError::from(exec()))), hint);
        let control = || ControlError::Silent(Some("demo".to_owned()));
        assert_eq!(of(&SnapshotError::from(control())), hint);
        assert_eq!(of(&ExecError::from(control())), hint);
        assert_eq!(of(&ControlError::Silent(None)), None);
        assert_eq!(of(&ExecError::Spec(ProcessSpecError::NoProgram)), None);
    }
}
