//! The guest kernel's command line: root, console, one entry per virtio-mmio device, and what the host mode needs.

use super::layout;
use sandboxvm_protocol::machine::HostMode;
use std::fmt::Write;

/// Why a command line cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// Too long for the kernel.
    #[error("kernel command line of {0} bytes is over the limit of {max}; shorten cmdline_extra", max = layout::CMDLINE_MAX - 1)]
    TooLong(usize),
    /// Not printable ASCII.
    #[error("cmdline_extra holds the byte {0:#04x}; only printable ASCII may be in a kernel command line")]
    NotPrintable(u8),
}

/// For every guest. The kernel's own defaults do the rest (`init=/sbin/init`, a panic that resets immediately): parsing a
/// parameter costs a boot some 25,000 instructions where they count. `reboot=k`: reset through the i8042, which ends the
/// machine.
const COMMON: &str =
    "root=/dev/vda ro rootfstype=erofs console=ttyS0 quiet reboot=k sandboxvm.notify=1 sandboxvm.mailbox=0x31000";

/// For hosts whose KVM interprets ring 0. Of XSAVE's forms only the plain one is emulated. Linux 6.1 reads at most 127
/// characters of the clearcpuid list. Mitigations against transient execution have no meaning in an interpreter;
/// `noreplace-smp`, `rodata=off` and keeping the init sections save the boot a million instructions each, for less
/// protection of the guest's kernel against its own root.
const PVM: &str = "clearcpuid=xsaves,xsavec,xsaveopt,smap,cx16,popcnt,fsgsbase,invpcid,pcid,umip,pku,rdrand,rdseed,fsrm,\
     erms mitigations=off noreplace-smp rodata=off sandboxvm.keep_init=1 \
     sandboxvm.pvm_syscall=1";

/// Builds the command line for a guest with `virtio_devices` virtio-mmio windows.
///
/// # Errors
/// When `extra` is not printable ASCII or the whole is too long.
pub fn build(mode: HostMode, virtio_devices: usize, extra: &str) -> Result<String, CmdlineError> {
    if let Some(byte) = extra.bytes().find(|b| !(0x20..0x7f).contains(b)) {
        return Err(CmdlineError::NotPrintable(byte));
    }
    let mut line = String::from(COMMON);
    if mode == HostMode::Pvm {
        line.push(' ');
        line.push_str(PVM);
    }
    for (address, gsi) in
        (0..virtio_devices as u64).map(|i| layout::VIRTIO_MMIO + i * layout::VIRTIO_MMIO_SIZE).zip(layout::VIRTIO_GSI..)
    {
        // Writing to a String cannot fail.
        let _ = write!(line, " virtio_mmio.device=4K@{address:#x}:{gsi}");
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    if line.len() >= layout::CMDLINE_MAX { Err(CmdlineError::TooLong(line.len())) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_host_mode_show() {
        let line = build(HostMode::Pvm, 2, "a=b").unwrap();
        assert!(line.contains("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"));
        assert!(line.contains("clearcpuid="));
        assert!(line.ends_with(" a=b"));
        assert!(!build(HostMode::Vmx, 2, "").unwrap().contains("clearcpuid"));
    }

    #[test]
    fn clearcpuid_fits_what_linux_reads() {
        let list = PVM.split_whitespace().find_map(|w| w.strip_prefix("clearcpuid=")).unwrap();
        assert!(list.len() <= 127, "{}", list.len());
    }

    #[test]
    fn every_guest_is_given_the_mailbox_of_the_address_map() {
        for mode in [HostMode::Pvm, HostMode::Vmx, HostMode::Svm] {
            let wanted = format!("sandboxvm.mailbox={:#x}", layout::MAILBOX.0);
            assert!(build(mode, 1, "").unwrap().split(' ').any(|word| word == wanted), "{mode}");
        }
    }

    #[test]
    fn bad_extras_are_refused() {
        assert!(matches!(build(HostMode::Vmx, 1, "a\nb"), Err(CmdlineError::NotPrintable(b'\n'))));
        assert!(matches!(build(HostMode::Vmx, 1, &"x".repeat(2048)), Err(CmdlineError::TooLong(_))));
    }
}
