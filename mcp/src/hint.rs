//! What a model can do about a failure of which the library says only what is wrong. Names the tools of this server, never the
//! command line of the host: the model on the other side cannot use it.

use sandboxvm_manager::{
    AdmissionError, AgentError, CTextError, ControlError, ExecError, FileError, FileErrorKind, NameError,
    ProcessSpecError, RefusalKind, ResetError, SnapshotError, State,
};
use std::error::Error;

const REMOVE: &str = "remove it with sandbox_remove and create another with sandbox_create";
const LARGE: &str = "write large data to a file with file_write, or pass it as stdin";

/// Returns the hint for `error` or, if it has none, for what caused it.
pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(one)
}

fn one(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<ExecError>() {
        return match error {
            ExecError::NotRunning { state: State::Paused, .. } => Some("the user can resume it"),
            ExecError::NotRunning { .. }
            | ExecError::Ended { .. }
            | ExecError::Vanished { .. }
            | ExecError::Unresponsive { .. } => Some(REMOVE),
            _ => None,
        };
    }
    if let Some(ProcessSpecError::TooLong(_)) = error.downcast_ref() {
        return Some(LARGE);
    }
    if let Some(CTextError::TooLong(_)) = error.downcast_ref() {
        return Some(LARGE);
    }
    if let Some(error) = error.downcast_ref::<ControlError>() {
        return match error {
            ControlError::NotRunning { .. } | ControlError::Silent(_) => Some(REMOVE),
            ControlError::Refused(refusal) => match refusal.kind? {
                RefusalKind::NoSpace | RefusalKind::Resources => Some("remove a sandbox with sandbox_remove"),
                RefusalKind::Superseded => Some("call the tool again"),
                _ => None,
            },
            _ => None,
        };
    }
    if let Some(AgentError::TooOld { .. } | AgentError::NotListening) = error.downcast_ref() {
        return Some(REMOVE);
    }
    if let Some(NameError::Taken { .. }) = error.downcast_ref() {
        return Some("choose another name");
    }
    if let Some(SnapshotError::Taken(_)) = error.downcast_ref() {
        return Some("choose another name");
    }
    if let Some(ResetError::Fork { .. }) = error.downcast_ref() {
        return Some("give a snapshot to reset it to");
    }
    if let Some(FileError::Refused(refusal)) = error.downcast_ref() {
        return match refusal.kind {
            FileErrorKind::NoSpace => Some("remove files in the sandbox, or create one with a larger disk_mib"),
            FileErrorKind::PermissionDenied => Some("use another user, or change the mode or owner of the file"),
            FileErrorKind::ReadOnly => Some("choose a path on another file system"),
            FileErrorKind::Resources => Some("end processes in the sandbox, or create one with more memory_mib"),
            _ => None,
        };
    }
    match error.downcast_ref()? {
        AdmissionError::MoreThanTheHost { .. } => Some("ask for less memory_mib"),
        AdmissionError::TooMany { .. } => Some("remove a sandbox with sandbox_remove"),
        AdmissionError::Overcommitted { .. } | AdmissionError::NoMemory { .. } => {
            Some("remove a sandbox with sandbox_remove, or ask for less memory_mib")
        }
        AdmissionError::NoDisk { .. } => Some("remove a sandbox with sandbox_remove, or ask for less disk_mib"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{CreateError, ForkError, VmmRefusal};

    #[test]
    fn hints_name_tools_and_are_found_below_wrapping_errors() {
        let admission = || AdmissionError::TooMany { count: 1, there: 2, most: 2 };
        assert_eq!(of(&CreateError::from(admission())), Some("remove a sandbox with sandbox_remove"));
        assert_eq!(of(&ForkError::from(admission())), Some("remove a sandbox with sandbox_remove"));
        assert_eq!(of(&ExecError::NotRunning { sandbox: "demo".into(), state: State::Dead }), Some(REMOVE));
        assert_eq!(of(&ExecError::Spec(ProcessSpecError::NoProgram)), None);
        let full = VmmRefusal { kind: Some(RefusalKind::NoSpace), message: "cannot write the snapshot".into() };
        assert_eq!(of(&SnapshotError::from(ControlError::Refused(full))), Some("remove a sandbox with sandbox_remove"));
    }
}
