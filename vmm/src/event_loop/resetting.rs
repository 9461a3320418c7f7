//! Reset in place: the machine returns to the snapshot that it was started from, and runs.

use super::state::{BEING_WRITTEN, EventLoop, nanoseconds_since};
use crate::{descriptors::ReceivedFds, memory, snapshot::format};
use sandboxvm_protocol::vmm::{ExitReason, ResetReport, ResetRequest};
use std::{fs::File, time::Instant};

impl EventLoop {
    /// Resets the machine, which runs afterwards whether it did before or not. Ends it when that fails halfway.
    pub(super) fn reset(&mut self, request: &ResetRequest, mut fds: ReceivedFds) -> Result<ResetReport, String> {
        if self.writing.is_some() {
            return Err(BEING_WRITTEN.into());
        }
        let setup = &mut self.setup;
        let origin = setup.origin.as_ref().ok_or("this machine did not begin from a snapshot")?;
        let state_file = File::from(fds.take(request.state, "the state file").map_err(|error| error.to_string())?);
        let saved = format::read(&state_file).map_err(|error| error.to_string())?;
        if saved.memory != origin.map {
            return Err("this is not the snapshot that the machine began from".into());
        }
        setup.machine.check(&saved.machine).map_err(|error| error.to_string())?;
        // All that can fail for want of room is done while the machine is still what it was.
        let disks = setup.disks.prepare_switch(&request.disks, &mut fds).map_err(|error| error.to_string())?;
        self.tracking = None;
        let stopping = Instant::now();
        setup.machine.pause();
        let result = (|| {
            memory::forget_writes(setup.machine.memory()).map_err(|error| error.to_string())?;
            setup.disks.switch(disks);
            setup.machine.reset_to(&saved.machine).map_err(|error| error.to_string())
        })();
        match result {
            Ok(()) => {
                setup.baseline = origin.clone();
                // All of memory is as the origin has it.
                let _ = setup.released.take();
                self.resume().map_err(|error| {
                    let message = error.to_string();
                    self.setup.machine.shared().end(ExitReason::HostFailure { message: message.clone() });
                    message
                })?;
                Ok(ResetReport { pause_ns: nanoseconds_since(stopping) })
            }
            Err(message) => {
                // Half of the machine is of another time than the rest.
                setup.machine.shared().end(ExitReason::HostFailure { message: format!("reset failed: {message}") });
                Err(message)
            }
        }
    }
}
