//! Reset in place: the machine returns to the snapshot that it was started from, and runs.

use super::{
    refusal::RequestError,
    state::{EventLoop, nanoseconds_since},
};
use crate::{
    channel::descriptors::ReceivedFds, devices::set::PreparedReset, memory, snapshot::SnapshotState, snapshot::format,
};
use sandboxvm_protocol::vmm::{ExitReason, ResetReport, ResetRequest};
use std::{fs::File, time::Instant};

impl EventLoop {
    /// Resets the machine, which runs afterwards whether it did before or not. Ends it when that fails halfway.
    pub(super) fn reset(&mut self, request: &ResetRequest, mut fds: ReceivedFds) -> Result<ResetReport, RequestError> {
        if self.writing.is_some() {
            return Err(RequestError::Busy);
        }
        let setup = &mut self.setup;
        let origin = setup.origin.as_ref().ok_or(RequestError::NoOrigin)?;
        let state_file = File::from(fds.take(request.state, "the state file")?);
        let saved = format::read(&state_file)?;
        if saved.memory != origin.map {
            return Err(RequestError::OtherSnapshot);
        }
        setup.machine.check(&saved.machine)?;
        // All that can fail for lack of space is done while the machine is still what it was.
        let prepared = setup.devices.prepare_reset(&request.devices, &mut fds)?;
        self.tracking = None;
        let stopping = Instant::now();
        self.setup.machine.pause();
        let result = self.return_to(&saved, prepared);
        let result = result.and_then(|()| Ok(self.resume()?));
        if let Err(error) = &result {
            // Half of the machine is of another time than the rest.
            let message = format!("reset failed: {error}");
            self.setup.machine.shared().end(ExitReason::HostFailure { message });
        }
        result.map(|()| ResetReport { pause_ns: nanoseconds_since(stopping) })
    }

    /// Puts the standing machine back to `saved`.
    fn return_to(&mut self, saved: &SnapshotState, prepared: PreparedReset) -> Result<(), RequestError> {
        let setup = &mut self.setup;
        memory::forget_writes(&setup.context().memory).map_err(RequestError::Memory)?;
        setup.devices.reset(prepared);
        setup.machine.reset_to(&saved.machine)?;
        setup.baseline = setup.origin.clone().unwrap_or_default();
        // All of memory is as the origin has it.
        let _ = setup.context().released.take();
        Ok(())
    }
}
