//! What a snapshot depends on besides its files: the mode in which KVM runs guests on this host,
//! its processor, and this boot. A machine that is restored on another host would fault, or find a
//! clock that ran backwards.

use sandboxvm_protocol::machine::HostMode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    time::Duration,
};

/// Number of bytes that are read of /proc/cpuinfo. The paragraph of the first processor is shorter,
/// and reading the whole file takes milliseconds on a large host.
const CPUINFO: u64 = 8192;

/// Why the identity of the host cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// KVM is not available.
    #[error("KVM is not available: none of the modules kvm_intel, kvm_amd and kvm_pvm is loaded")]
    NoKvm,
    /// A file in /proc cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// The identity of this host, as far as a restored guest can notice a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    /// What executes ring 0 of the guest.
    pub mode: HostMode,
    /// Hash of the processor's vendor, model and features.
    pub cpu: String,
    /// The content of /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
}

/// Returns what executes ring 0 of a guest on this host.
///
/// # Errors
/// [`HostError::NoKvm`].
pub(crate) fn mode() -> Result<HostMode, HostError> {
    let modules = [("kvm_pvm", HostMode::Pvm), ("kvm_intel", HostMode::Vmx), ("kvm_amd", HostMode::Svm)];
    // kvm_pvm is checked first: it can be loaded beside a vendor module whose hardware this machine
    // does not expose.
    let mode = modules.into_iter().find(|(name, _)| Path::new("/sys/module").join(name).exists());
    mode.map(|(_, mode)| mode).ok_or(HostError::NoKvm)
}

/// Returns how long the agent of a restored machine may take to answer. It listened when the
/// snapshot was made, so the guest is the cause of a longer silence. A guest whose kernel is
/// interpreted is slower by an order of magnitude.
pub(crate) fn restored_agent_answers_within() -> Duration {
    match mode() {
        Ok(HostMode::Vmx | HostMode::Svm) => Duration::from_secs(10),
        Ok(HostMode::Pvm) | Err(_) => Duration::from_secs(60),
    }
}

impl HostIdentity {
    /// Reads the identity of this host.
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

    /// Returns why a snapshot made on `self` cannot be restored here, or `None` if it can.
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
        // In this mode the guest's user mode reads the host's TSC, which a reboot resets.
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

/// Formats bytes as lower-case hexadecimal.
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
    fn reboot_matters_only_where_the_guest_reads_the_hosts_tsc() {
        let here = host(HostMode::Vmx, "c", "b");
        assert_eq!(host(HostMode::Vmx, "c", "a").difference(&here), None);
        let message = host(HostMode::Pvm, "c", "a").difference(&host(HostMode::Pvm, "c", "b")).unwrap();
        assert!(message.contains("restarted"), "{message}");
        assert!(host(HostMode::Svm, "c", "b").difference(&here).unwrap().contains("svm"));
        assert!(host(HostMode::Vmx, "d", "b").difference(&here).unwrap().contains("processor"));
    }

    #[test]
    fn varying_values_are_not_part_of_the_cpu_hash() {
        let cpu = |mhz: &str| cpu_hash(&format!("model\t\t: 1\ncpu MHz\t\t: {mhz}\nflags\t\t: fpu\n\nmodel\t\t: 9\n"));
        assert_eq!(cpu("1000.0"), cpu("2000.0"));
        assert_ne!(cpu("1"), cpu_hash("model\t\t: 1\nflags\t\t: fpu sse\n"));
    }
}
