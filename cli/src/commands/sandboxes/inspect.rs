//! `inspect`: shows all details of sandboxes as JSON.

use crate::{environment, failure::Failure, options::supervision, output::json, stdio};
use clap::Args;
use sandboxvm_manager::{NetworkSpec, SandboxRecord, State, SupervisionStatus, VmStatus};
use serde::Serialize;
use std::path::PathBuf;

/// Show all details of sandboxes as JSON
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Names or IDs of sandboxes
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

#[derive(Serialize)]
struct Details {
    #[serde(flatten)]
    record: SandboxRecord,
    #[serde(flatten)]
    state: State,
    directory: PathBuf,
    /// Limits that are not enforced, and why.
    unkept_limits: Vec<String>,
    /// The last status that the VMM reported.
    vmm: Option<VmStatus>,
    /// Parts of the confinement of the VMM that this host does not provide; `doctor` shows what to fix.
    unconfined: Vec<String>,
    /// Published ports and rules.
    supervision: Option<SupervisionStatus>,
    /// What the sandbox reaches on the network.
    network: Option<NetworkSpec>,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        let mut details = Vec::new();
        for reference in &self.sandboxes {
            let sandbox = manager.find(reference)?;
            let vmm = sandbox.vmm_status()?;
            let missing = vmm.iter().flat_map(|vmm| &vmm.missing);
            details.push(Details {
                record: sandbox.record().clone(),
                state: sandbox.state()?,
                directory: sandbox.path(),
                unkept_limits: sandbox.unkept_limits(),
                unconfined: missing.map(ToString::to_string).collect(),
                vmm,
                supervision: sandbox.supervision()?,
                network: sandbox.network()?,
            });
        }
        stdio::print(&json::pretty(&details)?)?;
        for (reference, details) in self.sandboxes.iter().zip(&details) {
            supervision::warn_of_unkept(reference, &details.state, details.supervision.as_ref());
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        commands::sandboxes::{
            ls::tests::example_supervision,
            network::show::tests::{example_network, with_plain_proxy},
        },
        output::json::tests::{assert_golden, example_record, plain_record},
    };
    use sandboxvm_manager::{ExitReason, HostMode, JailPart, NetworkSpec, Phase};

    #[test]
    fn json_is_pinned() {
        let status = |phase, reason| VmStatus {
            pid: 4711,
            phase,
            host_mode: HostMode::Vmx,
            reason,
            missing: vec![],
            clocks_jump: false,
            wire: 1,
        };
        let failed = ExitReason::HostFailure { message: "cannot write to the disk: No space left on device".into() };
        let running = Details {
            record: example_record("aaaaaaaa"),
            state: State::Running,
            directory: "/var/lib/sandboxvm/sandboxes/aaaaaaaa".into(),
            unkept_limits: vec!["its share of the processor is not limited: no control group can be made".into()],
            unconfined: vec![JailPart::OwnUser.to_string()],
            vmm: Some(VmStatus {
                missing: vec![JailPart::OwnUser],
                clocks_jump: true,
                wire: 2,
                ..status(Phase::Ready, None)
            }),
            supervision: Some(example_supervision()),
            network: Some(example_network()),
        };
        let ended = |id: &str, vmm, state| Details {
            record: plain_record(id),
            state,
            directory: format!("/var/lib/sandboxvm/sandboxes/{id}").into(),
            unkept_limits: vec![],
            unconfined: vec![],
            vmm,
            supervision: None,
            network: None,
        };
        let failed =
            ended("bbbbbbbb", Some(status(Phase::Ended, Some(failed.clone()))), State::Exited { reason: failed });
        let stopped = ended(
            "cccccccc",
            Some(status(Phase::Ended, Some(ExitReason::Stopped))),
            State::Exited { reason: ExitReason::Stopped },
        );
        let details = [
            running,
            Details { network: Some(with_plain_proxy()), ..failed },
            Details { network: Some(NetworkSpec { proxy: None, ..example_network() }), ..stopped },
            ended("dddddddd", None, State::Dead),
        ];
        assert_golden("inspect.json", &json::pretty(&details).unwrap());
    }
}
