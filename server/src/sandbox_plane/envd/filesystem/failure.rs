//! Why something was not done with files, in E2B's words: programs compare some of them. What sandboxvm knows beyond them
//! follows.

use crate::sandbox_plane::envd::connect::{Code, ConnectError};
use sandboxvm_manager::{FileError, FileErrorKind, FileRefusal};

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox_plane::envd) enum Step {
    Look,
    List,
    Move,
    Watch,
    Read,
    Write,
}

/// The error of a step.
pub(in crate::sandbox_plane::envd) fn failed(step: Step, error: FileError) -> ConnectError {
    let words = match &error {
        FileError::Refused(refusal) => words(step, refusal),
        _ => None,
    };
    match words {
        Some((code, words)) => ConnectError::new(code, format!("{words}: {error}")),
        None => error.into(),
    }
}

fn words(step: Step, refusal: &FileRefusal) -> Option<(Code, String)> {
    use FileErrorKind::{IsADirectory, NetworkMount, NotADirectory, NotFound};
    let path = refusal.path.as_deref().unwrap_or_default();
    let code = match refusal.kind {
        NotFound => Code::NotFound,
        _ => Code::InvalidArgument,
    };
    let words = match (step, refusal.kind) {
        (Step::Look, NotFound) => "file not found".to_owned(),
        (Step::List, NotFound) => "path not found".to_owned(),
        (Step::List, NotADirectory) => format!("path is not a directory: {path}"),
        (Step::Move, NotFound) => "source file not found".to_owned(),
        (Step::Watch, NotFound) => format!("path {path} not found"),
        (Step::Watch, NotADirectory) => format!("path {path} not a directory"),
        (Step::Watch, NetworkMount) => format!("cannot watch path on network filesystem: {path}"),
        (Step::Read, NotFound) => format!("path '{path}' does not exist"),
        (Step::Read, IsADirectory) => format!("path '{path}' is a directory"),
        (Step::Write, IsADirectory) => format!("path is a directory: {path}"),
        _ => return None,
    };
    Some((code, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_begin_with_the_words_of_e2b() {
        let refusal = |kind| FileRefusal { kind, errno: None, path: Some("/a".into()), message: "because".into() };
        let said = |step, kind| {
            let error = failed(step, refusal(kind).into());
            (error.code, error.message)
        };
        assert_eq!(
            said(Step::Look, FileErrorKind::NotFound),
            (Code::NotFound, "file not found: /a in the sandbox: because".into())
        );
        let (code, message) = said(Step::Read, FileErrorKind::IsADirectory);
        assert!(code == Code::InvalidArgument && message.starts_with("path '/a' is a directory"), "{message}");
        let (code, message) = said(Step::List, FileErrorKind::PermissionDenied);
        assert!(code == Code::PermissionDenied && message.starts_with("/a in the sandbox: because"), "{message}");
    }
}
