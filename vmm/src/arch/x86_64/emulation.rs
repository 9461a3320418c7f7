//! Instructions that this host's KVM interpreter lacks and that a kernel still meets: INT3, which Linux uses while it
//! patches its own text, FWAIT, and XSAVE and XRSTOR ([`super::extended_state`]). The vCPU has left KVM_RUN with
//! KVM_EXIT_INTERNAL_ERROR.

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES};
use kvm_ioctls::VcpuFd;
use sandboxvm_protocol::{machine::HostMode, vmm::ExitReason};
use std::fmt::Write;
use vm_memory::{Bytes, GuestAddress};

use super::extended_state::Instruction;
use crate::memory::GuestMemory;

const INT3: u8 = 0xcc;
const FWAIT: u8 = 0x9b;
/// Vector of #BP (SDM vol. 3A, 6.15).
const BREAKPOINT_VECTOR: u8 = 3;

/// What was done about an emulation failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emulated {
    /// #BP was injected.
    Int3,
    /// The instruction was skipped: there is no pending x87 exception to wait for, KVM would have reported it.
    Fwait,
    /// Extended state was saved or restored.
    ExtendedState,
}

/// Executes the instruction KVM failed on, if it is one of ours.
///
/// # Errors
/// The reason to end the machine with, when it is not.
pub fn handle_internal_error(
    vcpu: &mut VcpuFd,
    memory: &GuestMemory,
    host_mode: HostMode,
) -> Result<Emulated, ExitReason> {
    let failure = Failure::read(vcpu, memory);
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Err(failure.into_reason());
    }
    match failure.bytes.first() {
        Some(&INT3) => {
            advance(vcpu).map_err(host_failure("cannot step over INT3"))?;
            let mut events = vcpu.get_vcpu_events().map_err(host_failure("KVM_GET_VCPU_EVENTS"))?;
            events.exception.injected = 1;
            events.exception.nr = BREAKPOINT_VECTOR;
            events.exception.has_error_code = 0;
            vcpu.set_vcpu_events(&events).map_err(host_failure("KVM_SET_VCPU_EVENTS"))?;
            Ok(Emulated::Int3)
        }
        Some(&FWAIT) => {
            advance(vcpu).map_err(host_failure("cannot step over FWAIT"))?;
            Ok(Emulated::Fwait)
        }
        // Where ring 0 runs natively, no kernel's XSAVE comes to us.
        _ => match Instruction::decode(&failure.bytes).filter(|_| host_mode == HostMode::Pvm) {
            Some(instruction) if instruction.execute(vcpu, memory)? => Ok(Emulated::ExtendedState),
            _ => Err(failure.into_reason()),
        },
    }
}

fn host_failure(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ExitReason {
    move |error| ExitReason::HostFailure { message: format!("{what}: {error}") }
}

/// Both instructions are one byte long.
fn advance(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut regs = vcpu.get_regs()?;
    regs.rip = regs.rip.wrapping_add(1);
    vcpu.set_regs(&regs)
}

struct Failure {
    suberror: u32,
    rip: u64,
    bytes: Vec<u8>,
}

impl Failure {
    fn read(vcpu: &mut VcpuFd, memory: &GuestMemory) -> Self {
        let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
        let run = vcpu.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, so this member of the union is the one KVM filled; it is
        // made of integers, which have no invalid values.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        // SAFETY: as above; the inner union has a single member, integers too.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let has_bytes = failure.suberror == KVM_INTERNAL_ERROR_EMULATION
            && failure.ndata >= 3
            && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        let bytes = if has_bytes {
            let size = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
            instruction.insn_bytes[..size].to_vec()
        } else {
            fetch(vcpu, memory, rip)
        };
        Self { suberror: failure.suberror, rip, bytes }
    }

    fn into_reason(self) -> ExitReason {
        let bytes = self.bytes.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        ExitReason::InternalError { suberror: self.suberror, rip: self.rip, bytes }
    }
}

/// Up to 15 bytes at guest-virtual `rip`; none where it is not mapped.
fn fetch(vcpu: &VcpuFd, memory: &GuestMemory, rip: u64) -> Vec<u8> {
    const PAGE: u64 = 4096;
    const LONGEST_INSTRUCTION: u64 = 15;
    let Ok(translation) = vcpu.translate_gva(rip) else { return Vec::new() };
    if translation.valid == 0 {
        return Vec::new();
    }
    let in_page = PAGE - rip % PAGE;
    let mut bytes = vec![0; usize::try_from(in_page.min(LONGEST_INSTRUCTION)).unwrap_or(0)];
    match memory.read_slice(&mut bytes, GuestAddress(translation.physical_address)) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}
