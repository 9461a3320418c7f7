//! The VMM of a sandbox resets its machine to the snapshot from which it started.

use super::ResetError;
use crate::{
    guest::{
        identity,
        interruption::{self, Interruption},
    },
    mounts,
    network::pins::KeptPins,
    sandbox::Sandbox,
    snapshot::change::Running,
    snapshot::{
        error::SnapshotError,
        lineage::{Files, Kind, Origin, free_name, open_all},
    },
    vmm::{card, control::ControlError, descriptors::LaunchFiles, wire::WireError},
    workspace,
};
use sandboxvm_protocol::vmm::{ControlReply, ControlRequest, ResetDevice, ResetReport, ResetRequest};
use std::time::Duration;

/// A reset takes some milliseconds; the limit allows for a host that swaps.
const RESET_WITHIN: Duration = Duration::from_secs(60);

impl Sandbox {
    pub(super) async fn reset_in_place(&self, running: &mut Running<'_>) -> Result<ResetReport, ResetError> {
        let directory = &self.directory;
        let Origin::Snapshot { state, memory, disk, .. } = &running.lineage.origin else {
            unreachable!("called for sandboxes that began from a snapshot")
        };
        let state = directory.open_shared(state)?;
        let top_name = free_name(directory, Kind::Disk)?;
        let next =
            Files { disk: disk.iter().cloned().chain([top_name.clone()]).collect(), baseline: Some(memory.clone()) };
        let mut layers = open_all(directory, disk)?;
        running.lineage.check_origin(directory).await.map_err(SnapshotError::from)?;
        if self.record.network_card {
            // What is on its way to the machine before, and its connections, are not for the restored one.
            KeptPins::of(self.network_pins(true).await).write(directory)?;
            card::detach(&mut running.control).await?;
        }
        identity::make_due(directory)?;
        // The machine has no workspace until it is mounted again, also if this process is killed now.
        workspace::mounting::make_due(directory)?;
        mounts::mounting::make_due(directory, &self.record)?;
        layers.push(directory.create_file(&top_name)?);
        running.announce(next.clone(), &top_name)?;
        interruption::announce(directory, Interruption::Reset);
        let mut sent = LaunchFiles::default();
        let request = ControlRequest::Reset(ResetRequest {
            state: sent.add(&state),
            devices: vec![ResetDevice::Block { layers: layers.iter().map(|layer| sent.add(layer)).collect() }],
        });
        match running.control.request_with(request, &sent, RESET_WITHIN).await? {
            Ok(ControlReply::Reset(report)) => {
                // If the disk has no room for the record, the announcement in the lineage says the
                // same.
                let _ = running.complete(next);
                Ok(report)
            }
            Err(refusal) => {
                interruption::withdraw(directory);
                running.conclude();
                Err(ControlError::from(refusal).into())
            }
            Ok(_) => Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
        }
    }
}
