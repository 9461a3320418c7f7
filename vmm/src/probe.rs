//! `sandboxvm-vmm --probe`: what this host's KVM offers and how far a VMM can be confined, as JSON on standard output. Starts
//! no machine.

use crate::{arch::x86_64::host_mode, confine, devices::set};
use kvm_ioctls::{Cap, Kvm};
use sandboxvm_protocol::{machine::HostMode, vmm::JailPart};
use serde::Serialize;
use std::collections::BTreeMap;

/// The only KVM API version there is (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// Result of a probe.
#[derive(Debug, Serialize)]
pub struct Probe {
    /// KVM's API version, once /dev/kvm could be opened.
    pub api_version: Option<i32>,
    /// Vendor module in charge.
    pub host_mode: Option<HostMode>,
    /// Capabilities that sandboxvm needs or uses, and whether they are there.
    pub capabilities: BTreeMap<&'static str, bool>,
    /// Parts of the confinement that this host does not give to the user who runs the probe.
    pub missing: Vec<JailPart>,
    /// What is in the way of running a sandbox, with what to do about it.
    pub problems: Vec<String>,
}

/// Capabilities no machine can be built without.
const NEEDED: [(&str, Cap); 7] = [
    ("irqchip", Cap::Irqchip),
    ("user_memory", Cap::UserMemory),
    ("set_tss_addr", Cap::SetTssAddr),
    ("ext_cpuid", Cap::ExtCpuid),
    ("irqfd", Cap::Irqfd),
    ("ioeventfd", Cap::Ioeventfd),
    ("immediate_exit", Cap::ImmediateExit),
];

/// Asks KVM, and confines this process to see how far that goes.
#[must_use]
pub fn probe() -> Probe {
    let mut problems = Vec::new();
    let host_mode = match host_mode::detect() {
        Ok(mode) => Some(mode),
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let mut capabilities = BTreeMap::new();
    let mut api_version = None;
    match Kvm::new() {
        Ok(kvm) => {
            let version = kvm.get_api_version();
            if version != API_VERSION {
                problems.push(format!("KVM speaks API version {version}, {API_VERSION} is needed; use a newer kernel"));
            }
            api_version = Some(version);
            for (name, cap) in NEEDED {
                let present = kvm.check_extension(cap);
                capabilities.insert(name, present);
                if !present {
                    problems.push(format!("KVM lacks the capability {name}; use a newer kernel"));
                }
            }
        }
        Err(error) => problems.push(format!(
            "cannot open /dev/kvm: {error}; load the KVM module, or run as root or a member of the group that owns it"
        )),
    }
    capabilities.insert("core_scheduling", confine::separate_cores());
    let confined =
        confine::isolate().and_then(|missing| confine::restrict_syscalls(set::system_calls()).map(|()| missing));
    let missing = confined.unwrap_or_else(|error| {
        problems.push(error.to_string());
        Vec::new()
    });
    Probe { api_version, host_mode, capabilities, missing, problems }
}
