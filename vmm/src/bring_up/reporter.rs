//! Reports the end of a machine that has no event loop yet.

use super::error::BringUpError;
use crate::{channel::control::ControlConnection, confine, event_loop::Reporter, log, status::StatusFile};
use sandboxvm_protocol::{
    machine::HostMode,
    vmm::{JailPart, Phase, VmStatus, VmmEvent, WIRE},
};

/// Reports a machine that has no event loop yet.
#[derive(Debug)]
pub(super) struct EarlyReporter {
    pub(super) reporter: Reporter,
    /// Unknown on a host without KVM, where no machine can begin.
    host_mode: Option<HostMode>,
}

impl EarlyReporter {
    pub(super) fn new(
        status: StatusFile,
        launcher: ControlConnection,
        host_mode: Option<HostMode>,
        missing: Vec<JailPart>,
    ) -> Self {
        if let Some(mode) = host_mode {
            confine::report_refused_calls(&status, mode);
        }
        Self { reporter: Reporter { launcher, status, missing }, host_mode }
    }

    pub(super) fn never_began(mut self, error: &BringUpError) {
        let reason = error.reason();
        if let Some(host_mode) = self.host_mode {
            let status = VmStatus {
                pid: std::process::id(),
                phase: Phase::Ended,
                host_mode,
                reason: Some(reason.clone()),
                missing: self.reporter.missing,
                clocks_jump: false,
                wire: WIRE.version,
            };
            if let Err(error) = self.reporter.status.write(&status) {
                log::line(format_args!("cannot write the status file: {error}"));
            }
        }
        // A launcher that is gone has no use for the reason.
        let _ = self.reporter.launcher.event(&VmmEvent::Ended(reason));
    }
}
