//! Which KVM vendor module serves this host, and what that means for a guest.
//!
//! With VMX or SVM all guest code runs natively. The `kvm_pvm` module without its paravirtual ABI runs guest ring 3
//! natively and interprets ring 0, and its interpreter lacks some instructions: the command line tells guests not to use
//! them.

use sandboxvm_protocol::machine::HostMode;
use std::path::Path;

/// No KVM vendor module that we know is loaded.
#[derive(Debug, thiserror::Error)]
#[error(
    "none of the modules kvm_intel, kvm_amd and kvm_pvm is loaded; load the one for this processor (modprobe kvm_intel)"
)]
pub struct UnknownHostMode;

/// Finds the vendor module in `/sys/module`.
///
/// # Errors
/// [`UnknownHostMode`] when none is there.
pub fn detect() -> Result<HostMode, UnknownHostMode> {
    detect_in(Path::new("/sys/module"))
}

fn detect_in(modules: &Path) -> Result<HostMode, UnknownHostMode> {
    // kvm_pvm first: it can be loaded beside a vendor module whose hardware this machine does not expose.
    [("kvm_pvm", HostMode::Pvm), ("kvm_intel", HostMode::Vmx), ("kvm_amd", HostMode::Svm)]
        .into_iter()
        .find(|(name, _)| modules.join(name).exists())
        .map(|(_, mode)| mode)
        .ok_or(UnknownHostMode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_module_and_prefers_pvm() {
        let dir = tempfile::tempdir().unwrap();
        assert!(detect_in(dir.path()).is_err());
        std::fs::create_dir(dir.path().join("kvm_amd")).unwrap();
        assert_eq!(detect_in(dir.path()).unwrap(), HostMode::Svm);
        std::fs::create_dir(dir.path().join("kvm_pvm")).unwrap();
        assert_eq!(detect_in(dir.path()).unwrap(), HostMode::Pvm);
    }
}
