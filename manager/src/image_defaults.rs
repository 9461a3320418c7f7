//! What the image of a sandbox says about its processes: the user, the working directory and the command of an OCI image.
//! Kept in the records of sandboxes and snapshots, so that whatever is restored from them behaves alike. Never decides what is
//! run: a request that names a user or a directory has its own.

use crate::guest::process::spec::{ProcessSpec, ProcessSpecError};
use serde::{Deserialize, Serialize};

/// The defaults of an image. The image's environment is not here: it is part of the sandbox's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDefaults {
    /// The image, as its user named it.
    pub reference: String,
    /// Digest of the image's manifest, such as `sha256:…`.
    pub digest: String,
    /// User of processes: name, `UID`, `NAME:GROUP` or `UID:GID`. `None` for root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory of processes. `None` for `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// Program, and arguments that precede those of the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments of the entry point where the user gives none; without an entry point, program and arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The signal that asks the command of the image to end, as the image names it. `None` for SIGTERM, or
    /// SIGRTMIN+3 for an init system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

impl ImageDefaults {
    pub(crate) fn beneath(&self, spec: ProcessSpec) -> Result<ProcessSpec, ProcessSpecError> {
        spec.with_defaults(self.user.as_deref(), self.working_directory.as_deref().unwrap_or("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_names_user_and_directory_keeps_them() {
        let image = ImageDefaults { user: Some("1000:1000".into()), ..ImageDefaults::default() };
        let of = |spec: ProcessSpec| {
            let request = image.beneath(spec).unwrap().request().clone();
            let text = |text: Option<sandboxvm_protocol::agent::CText>| {
                text.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned())
            };
            (text(request.user), text(request.cwd))
        };
        let plain = ProcessSpec::builder(["a"]).build().unwrap();
        assert_eq!(of(plain), (Some("1000:1000".into()), Some("/".into())));
        let own = ProcessSpec::builder(["a"]).user("root").working_directory("/srv").build().unwrap();
        assert_eq!(of(own), (Some("root".into()), Some("/srv".into())));
    }
}
