//! What makes the first command of a sandbox its main process: the signal at which it stops, and whether it
//! is an init system. Decides by the words of the command only, and never looks into an image.

use crate::signal_name::{SignalNameError, signal_by_name};
use sandboxvm_protocol::agent::{SignalNumber, main_process::MainProcess};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

/// The signal at which systemd shuts down (systemd(1)): SIGRTMIN+3.
const SHUT_DOWN: u8 = 37;

/// Paths of init systems, as podman knows them. A program with the name `systemd` is one as well.
const INITS: [&[u8]; 3] = [b"/sbin/init", b"/usr/sbin/init", b"/usr/local/sbin/init"];

/// Whether a command is run as an init system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SystemdMode {
    /// If it is `/sbin/init`, `/usr/sbin/init` or `/usr/local/sbin/init`, or has the name `systemd`.
    #[default]
    Detected,
    /// Whatever it is.
    Always,
    /// Never.
    Never,
}

impl SystemdMode {
    fn applies_to(self, program: &[u8]) -> bool {
        let name = program.rsplit(|byte| *byte == b'/').next();
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Detected => INITS.contains(&program) || name == Some(b"systemd"),
        }
    }
}

/// Returns what makes `command` the main process of a sandbox, or `None` if it is like any other process. The
/// signal of the user comes before that of the image; without either, an init system stops at SIGRTMIN+3.
///
/// # Errors
/// When the image names no signal. A signal of the user hides that.
pub fn main_process(
    command: &[impl AsRef<OsStr>],
    mode: SystemdMode,
    signal: Option<SignalNumber>,
    signal_of_image: Option<&str>,
) -> Result<Option<MainProcess>, SignalNameError> {
    let is_init = command.first().is_some_and(|program| mode.applies_to(program.as_ref().as_bytes()));
    let signal = match (signal, signal_of_image) {
        (Some(signal), _) => Some(signal),
        (None, Some(name)) => Some(signal_by_name(name)?),
        (None, None) if is_init => SignalNumber::try_from(SHUT_DOWN).ok(),
        (None, None) => None,
    };
    Ok(signal.map(|stop_signal| MainProcess { stop_signal, is_init }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_systems_are_known_by_their_name() {
        for program in ["/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init", "/lib/systemd/systemd", "systemd"] {
            let main = main_process(&[program, "--x"], SystemdMode::Detected, None, None).unwrap();
            assert_eq!(main.map(|main| (main.stop_signal.get(), main.is_init)), Some((SHUT_DOWN, true)), "{program}");
            assert_eq!(main_process(&[program], SystemdMode::Never, None, None), Ok(None));
        }
        for program in ["init", "/bin/init", "/usr/bin/systemd-run", "/bin/sh", ""] {
            assert_eq!(main_process(&[program], SystemdMode::Detected, None, None), Ok(None), "{program}");
            assert!(main_process(&[program], SystemdMode::Always, None, None).unwrap().unwrap().is_init);
        }
    }

    #[test]
    fn the_signal_of_the_user_comes_before_that_of_the_image() {
        let signal = |user, image| {
            let main = main_process(&["/sbin/init"], SystemdMode::Detected, user, image)?;
            Ok(main.map(|main| main.stop_signal.get()))
        };
        assert_eq!(signal(None, Some("SIGQUIT")), Ok(Some(3)));
        assert_eq!(signal(Some(SignalNumber::TERM), Some("SIGQUIT")), Ok(Some(15)));
        assert_eq!(signal(Some(SignalNumber::TERM), Some("nonsense")), Ok(Some(15)));
        assert_eq!(signal(None, Some("nonsense")), Err(SignalNameError));
        let plain = main_process(&["nginx"], SystemdMode::Detected, None, Some("QUIT")).unwrap().unwrap();
        assert_eq!((plain.stop_signal.get(), plain.is_init), (3, false));
    }
}
