//! What a snapshot depends on beside its files: the mode this host's KVM runs guests in, its processor, and this boot.
//! A snapshot restored on another would fault, or find a clock that went backwards.

use sandboxvm_protocol::machine::HostMode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    time::Duration,
};

/// The first processor's paragraph of /proc/cpuinfo is below this; reading all of a large host's takes milliseconds.
const CPUINFO: u64 = 8192;

/// Why the host cannot be told from others.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No KVM.
    #[error("KVM is not available: none of the modules kvm_intel, kvm_amd and kvm_pvm is loaded")]
    NoKvm,
    /// A file in /proc.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// This host, as far as a restored guest can tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    /// What executes guest ring 0.
    pub mode: HostMode,
    /// Hash of the processor's vendor, model and features.
    pub cpu: String,
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

/// What executes guest ring 0 on this host.
///
/// # Errors
/// [`HostError::NoKvm`].
pub(crate) fn mode() -> Result<HostMode, HostError> {
    let modules = [("kvm_pvm", HostMode::Pvm), ("kvm_intel", HostMode::Vmx), ("kvm_amd", HostMode::Svm)];
    // kvm_pvm first: it can be loaded beside a vendor module whose hardware this machine does not expose.
    let mode = modules.into_iter().find(|(name, _)| Path::new("/sys/module").join(name).exists());
    mode.map(|(_, mode)| mode).ok_or(HostError::NoKvm)
}

/// How long the agent of a restored machine may take to answer. It listened when the snapshot was made, so that a
/// longer silence is the guest's doing. A guest whose kernel is interpreted is slower by an order of magnitude.
pub(crate) fn restored_agent_answers_within() -> Duration {
    match mode() {
        Ok(HostMode::Vmx | HostMode::Svm) => Duration::from_secs(10),
        Ok(HostMode::Pvm) | Err(_) => Duration::from_secs(60),
    }
}

impl HostIdentity {
    /// Reads it.
    ///
    /// # Errors
    /// Every [`HostError`].
    pub fn read() -> Result<Self, HostError> {
        let mode = mode()?;
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let boot_id = fs::read_to_string(boot_id).map_err(|source| HostError::Read { path: boot_id, source })?;
        let cpuinfo = first_of_cpuinfo().map_err(|source| HostError::Read { path: "/proc/cpuinfo", source })?;
        Ok(Self { mode, cpu: cpu_hash(&cpuinfo), boot_id: boot_id.trim().to_owned() })
    }

    /// Why a snapshot made on `self` cannot go on here, if it cannot.
    pub(crate) fn difference(&self, here: &Self) -> Option<String> {
        if self.mode != here.mode {
            return Some(format!(
                "it was created in host mode {}, and the mode of this host is {}",
                self.mode, here.mode
            ));
        }
        if self.cpu != here.cpu {
            return Some("it was created on a processor with different features".into());
        }
        // There the guest's user mode reads the host's own TSC, which a reboot sets back.
        if self.mode == HostMode::Pvm && self.boot_id != here.boot_id {
            return Some("it was created before this host was restarted, and its clock would run backwards".into());
        }
        None
    }
}

fn first_of_cpuinfo() -> io::Result<String> {
    let mut text = String::new();
    File::open("/proc/cpuinfo")?.take(CPUINFO).read_to_string(&mut text)?;
    Ok(text)
}

fn cpu_hash(cpuinfo: &str) -> String {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let mut hash = Sha256::new();
    for line in first.lines() {
        let key = line.split(':').next().unwrap_or_default().trim();
        if ["vendor_id", "cpu family", "model", "model name", "stepping", "flags"].contains(&key) {
            hash.update(line);
            hash.update("\n");
        }
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(mode: HostMode, cpu: &str, boot_id: &str) -> HostIdentity {
        HostIdentity { mode, cpu: cpu.into(), boot_id: boot_id.into() }
    }

    #[test]
    fn a_reboot_counts_only_where_the_guest_reads_the_hosts_tsc() {
        let here = host(HostMode::Vmx, "c", "b");
        assert_eq!(host(HostMode::Vmx, "c", "a").difference(&here), None);
        let message = host(HostMode::Pvm, "c", "a").difference(&host(HostMode::Pvm, "c", "b")).unwrap();
        assert!(message.contains("restarted"), "{message}");
        assert!(host(HostMode::Svm, "c", "b").difference(&here).unwrap().contains("svm"));
        assert!(host(HostMode::Vmx, "d", "b").difference(&here).unwrap().contains("processor"));
    }

    #[test]
    fn what_changes_from_second_to_second_is_no_part_of_a_processor() {
        let cpu = |mhz: &str| cpu_hash(&format!("model\t\t: 1\ncpu MHz\t\t: {mhz}\nflags\t\t: fpu\n\nmodel\t\t: 9\n"));
        assert_eq!(cpu("1000.0"), cpu("2000.0"));
        assert_ne!(cpu("1"), cpu_hash("model\t\t: 1\nflags\t\t: fpu sse\n"));
    }
}
