//! Options of the first command of a sandbox, its main process: how it is asked to end, and whether it is an
//! init system.

use crate::{
    failure::Failure,
    options::{image::Image, values::signal},
};
use clap::Args;
use sandboxvm_manager::{ProcessSpec, SignalNumber, SystemdMode, main_process};
use std::ffi::OsString;

/// The main process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub(crate) struct MainProcessOptions {
    /// Signal that asks the command to end when the sandbox is stopped: a name such as INT or SIGRTMIN+3, or a number
    /// (1-64) [default: that of the image, else SIGRTMIN+3 for an init system; otherwise all processes receive SIGTERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    stop_signal: Option<SignalNumber>,
    /// When to run the command as an init system, PID 1 of its own namespaces
    #[arg(long, value_enum, value_name = "WHEN", default_value = "true")]
    systemd: Systemd,
}

/// The value of `--systemd`, as in podman.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Systemd {
    /// If it is /sbin/init, /usr/sbin/init or /usr/local/sbin/init, or is named systemd
    True,
    /// Never
    False,
    /// Always
    Always,
}

impl MainProcessOptions {
    /// Returns the process of `command` as the main process of a sandbox of `image`.
    pub(crate) fn apply(&self, spec: ProcessSpec, command: &[OsString], image: &Image) -> Result<ProcessSpec, Failure> {
        let mode = match self.systemd {
            Systemd::True => SystemdMode::Detected,
            Systemd::False => SystemdMode::Never,
            Systemd::Always => SystemdMode::Always,
        };
        let of_image = image.defaults.as_ref().and_then(|image| image.stop_signal.as_deref());
        let main = main_process(command, mode, self.stop_signal, of_image).map_err(|error| {
            Failure::new(format_args!("invalid stop signal {:?} of the image: {error}", of_image.unwrap_or_default()))
                .hinted("set another with --stop-signal".to_owned())
        })?;
        Ok(match main {
            Some(main) => spec.as_main(main),
            None => spec,
        })
    }
}
