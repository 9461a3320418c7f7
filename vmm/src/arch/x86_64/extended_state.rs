//! XSAVE and XRSTOR for guest kernels whose ring 0 is interpreted by a KVM that knows neither, while their user mode runs
//! on the host's own AVX registers: a kernel that saved only what FXSAVE does would mix up the upper halves of its
//! processes' vector registers, which every `memcpy` of theirs uses. SDM vol. 1, chapter 13, standard form only.
//!
//! The vCPU must be out of KVM_RUN.

use super::{
    paging::{Exception, GP, walk},
    state::{StateError, set_xsave},
};
use crate::memory::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use sandboxvm_protocol::vmm::ExitReason;
use std::{arch::x86_64::__cpuid_count, sync::LazyLock};
use vm_memory::{Bytes, GuestAddress};

/// Size of the area KVM hands out (Documentation/virt/kvm/api.rst, KVM_GET_XSAVE).
const KVM_AREA: usize = 4096;
/// XSTATE_BV, the first member of the header behind the legacy region.
const HEADER: usize = 512;
const AFTER_HEADER: usize = 576;
const MXCSR: std::ops::Range<usize> = 24..32;
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const ALIGNMENT: u64 = 64;

/// What is done, to which place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    saves: bool,
    operand: Operand,
    length: u64,
}

/// Registers are numbered as in ModRM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operand {
    base: Option<u8>,
    index: Option<(u8, u8)>,
    relative_to_rip: bool,
    displacement: i32,
}

impl Instruction {
    /// 0F AE /4 and /5 with an operand in memory; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut at = 0;
        let mut next = || {
            let byte = bytes.get(at).copied();
            at += 1;
            byte
        };
        let mut rex = 0;
        let mut opcode = next()?;
        if opcode & 0xf0 == 0x40 {
            rex = opcode;
            opcode = next()?;
        }
        if (opcode, next()?) != (0x0f, 0xae) {
            return None;
        }
        let modrm = next()?;
        let (mode, operation, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
        let saves = match operation {
            4 => true,
            5 => false,
            _ => return None,
        };
        let extended = |register: u8, bit: u8| register | (rex >> bit & 1) << 3;
        let mut operand = Operand { base: Some(extended(rm, 0)), index: None, relative_to_rip: false, displacement: 0 };
        let mut wide = mode == 2;
        match (mode, rm) {
            (3, _) => return None,
            (_, 4) => {
                let sib = next()?;
                let index = extended(sib >> 3 & 7, 1);
                operand.index = (index != 4).then_some((index, sib >> 6));
                operand.base = Some(extended(sib & 7, 0));
                if mode == 0 && sib & 7 == 5 {
                    operand.base = None;
                    wide = true;
                }
            }
            (0, 5) => {
                operand.base = None;
                operand.relative_to_rip = true;
                wide = true;
            }
            _ => {}
        }
        if wide {
            operand.displacement = i32::from_le_bytes([next()?, next()?, next()?, next()?]);
        } else if mode == 1 {
            operand.displacement = i32::from(next()?.cast_signed());
        }
        Some(Self { saves, operand, length: at as u64 })
    }

    /// Executes the instruction: the vCPU continues after it, or with the exception that it raises. Returns false, and does
    /// nothing, outside of ring 0: the operand is reached with the rights of a kernel, and KVM leaves only kernels' instructions to us.
    pub(super) fn execute(self, vcpu: &VcpuFd, memory: &GuestMemory) -> Result<bool, ExitReason> {
        let fail = |what: &'static str| {
            move |error: kvm_ioctls::Error| ExitReason::HostFailure { message: format!("{what}: {error}") }
        };
        let mut regs = vcpu.get_regs().map_err(fail("KVM_GET_REGS"))?;
        let mut sregs = vcpu.get_sregs().map_err(fail("KVM_GET_SREGS"))?;
        // The current privilege level (SDM vol. 3A, 5.5) is that of the stack segment.
        if sregs.ss.dpl != 0 {
            return Ok(false);
        }
        let mut state = State::read(vcpu).map_err(fail("KVM_GET_XSAVE"))?;
        let next = regs.rip.wrapping_add(self.length);
        let address = self.operand.address(&regs, next);
        let wanted = (regs.rdx << 32 | regs.rax & 0xffff_ffff) & LAYOUT.known;
        let done = if self.saves {
            save(&state, wanted, memory, &sregs, address)
        } else {
            restore(&mut state, wanted, memory, &sregs, address).and_then(|()| {
                // All that KVM refuses is what the processor does not load either.
                state.write(vcpu).map_err(|_| GP)
            })
        };
        match done {
            Ok(()) => {
                regs.rip = next;
                vcpu.set_regs(&regs).map_err(fail("KVM_SET_REGS"))?;
            }
            Err(Exception { vector, error_code, address }) => {
                if let Some(address) = address {
                    sregs.cr2 = address;
                    vcpu.set_sregs(&sregs).map_err(fail("KVM_SET_SREGS"))?;
                }
                let mut events = vcpu.get_vcpu_events().map_err(fail("KVM_GET_VCPU_EVENTS"))?;
                events.exception.injected = 1;
                events.exception.nr = vector;
                events.exception.has_error_code = 1;
                events.exception.error_code = error_code;
                vcpu.set_vcpu_events(&events).map_err(fail("KVM_SET_VCPU_EVENTS"))?;
            }
        }
        Ok(true)
    }
}

impl Operand {
    fn address(self, regs: &kvm_regs, next: u64) -> u64 {
        let register = |number: u8| match number {
            0 => regs.rax,
            1 => regs.rcx,
            2 => regs.rdx,
            3 => regs.rbx,
            4 => regs.rsp,
            5 => regs.rbp,
            6 => regs.rsi,
            7 => regs.rdi,
            8 => regs.r8,
            9 => regs.r9,
            10 => regs.r10,
            11 => regs.r11,
            12 => regs.r12,
            13 => regs.r13,
            14 => regs.r14,
            _ => regs.r15,
        };
        let base = self.base.map_or(0, register);
        let index = self.index.map_or(0, |(number, scale)| register(number) << scale);
        let start = if self.relative_to_rip { next } else { base };
        start.wrapping_add(index).wrapping_add_signed(i64::from(self.displacement))
    }
}

/// Where the components of the extended state lie in its standard form; the same for guest and host.
#[derive(Debug)]
struct Layout {
    /// Bits of the components, the first two included.
    known: u64,
    /// Of those behind the header: bit, offset, size.
    behind: Vec<(u64, usize, usize)>,
}

static LAYOUT: LazyLock<Layout> = LazyLock::new(|| {
    const LEAF: u32 = 0xd;
    let supported = __cpuid_count(LEAF, 0).eax;
    let mut layout = Layout { known: X87 | SSE, behind: Vec::new() };
    // 2 is AVX, 5 to 7 are AVX-512. Others are not state of a guest whose kernel is interpreted: its command line switches
    // protection keys off, and there is no AMX without a permission that the VMM never requests.
    for component in [2, 5, 6, 7] {
        let place = __cpuid_count(LEAF, component);
        let (size, offset) = (place.eax as usize, place.ebx as usize);
        if supported & 1 << component != 0 && offset >= AFTER_HEADER && offset + size <= KVM_AREA {
            layout.known |= 1 << component;
            layout.behind.push((1 << component, offset, size));
        }
    }
    layout
});

/// A vCPU's extended state, in its standard form.
struct State(Box<[u8; KVM_AREA]>);

impl State {
    fn read(vcpu: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        let area = vcpu.get_xsave()?;
        let mut bytes = Box::new([0; KVM_AREA]);
        for (to, word) in bytes.chunks_exact_mut(4).zip(area.region) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Ok(Self(bytes))
    }

    fn write(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let mut area = kvm_xsave::default();
        for (word, from) in area.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        }
        set_xsave(vcpu, &area)
    }
}

fn bits(area: &[u8]) -> u64 {
    area[HEADER..HEADER + 8].iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// Copies `components` of one area to another: all but the header.
fn copy(components: u64, from: &[u8], to: &mut [u8]) {
    let mut part = |start: usize, end: usize| to[start..end].copy_from_slice(&from[start..end]);
    if components & X87 != 0 {
        part(0, MXCSR.start);
        part(MXCSR.end, 160);
    }
    if components & (SSE | AVX) != 0 {
        part(MXCSR.start, MXCSR.end);
    }
    if components & SSE != 0 {
        part(160, 416);
    }
    for (_, offset, size) in LAYOUT.behind.iter().filter(|(bit, ..)| components & bit != 0) {
        part(*offset, offset + size);
    }
}

/// How long an area with `components` is.
fn length(components: u64) -> usize {
    let ends = LAYOUT.behind.iter().filter(|(bit, ..)| components & bit != 0).map(|(_, offset, size)| offset + size);
    ends.max().unwrap_or(AFTER_HEADER)
}

fn save(state: &State, wanted: u64, memory: &GuestMemory, sregs: &kvm_sregs, address: u64) -> Result<(), Exception> {
    let place = Place::translate(memory, sregs, address, length(wanted), true)?;
    let mut area = place.read(memory)?;
    copy(wanted, &state.0[..], &mut area);
    let in_use = bits(&area) & !wanted | bits(&state.0[..]) & wanted;
    area[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
    place.write(memory, &area)
}

fn restore(
    state: &mut State,
    wanted: u64,
    memory: &GuestMemory,
    sregs: &kvm_sregs,
    address: u64,
) -> Result<(), Exception> {
    /// x87 control word after FNINIT.
    const INITIAL_CONTROL: u16 = 0x37f;
    let place = Place::translate(memory, sregs, address, length(wanted), false)?;
    let mut area = place.read(memory)?;
    let present = bits(&area);
    // The standard form has nothing else in its header.
    if present & !LAYOUT.known != 0 || area[HEADER + 8..AFTER_HEADER].iter().any(|byte| *byte != 0) {
        return Err(GP);
    }
    // What is absent is in its initial state; that of the first two is written out, since KVM takes MXCSR with them.
    if present & X87 == 0 {
        area[..MXCSR.start].fill(0);
        area[..2].copy_from_slice(&INITIAL_CONTROL.to_le_bytes());
        area[MXCSR.end..160].fill(0);
    }
    if present & SSE == 0 {
        area[160..416].fill(0);
    }
    let loaded = (present | X87 | SSE) & wanted;
    copy(loaded | wanted & AVX, &area, &mut state.0[..]);
    let in_use = bits(&state.0[..]) & !wanted | loaded;
    state.0[HEADER..HEADER + 8].copy_from_slice(&in_use.to_le_bytes());
    Ok(())
}

/// Where in guest memory a guest-virtual range lies: at most two pages.
struct Place {
    parts: Vec<(GuestAddress, usize)>,
}

impl Place {
    fn translate(
        memory: &GuestMemory,
        sregs: &kvm_sregs,
        address: u64,
        length: usize,
        write: bool,
    ) -> Result<Self, Exception> {
        const PAGE: u64 = 4096;
        if !address.is_multiple_of(ALIGNMENT) {
            return Err(GP);
        }
        let mut parts = Vec::with_capacity(2);
        let mut at = address;
        let mut left = length;
        while left > 0 {
            let in_page = usize::try_from(PAGE - at % PAGE).unwrap_or(left).min(left);
            parts.push((walk(memory, sregs, at, write)?, in_page));
            at = at.wrapping_add(in_page as u64);
            left -= in_page;
        }
        Ok(Self { parts })
    }

    /// A page table may point to where there is no memory: a bus error, which is as good an exception as any.
    fn read(&self, memory: &GuestMemory) -> Result<Vec<u8>, Exception> {
        let mut bytes = vec![0; self.parts.iter().map(|(_, length)| length).sum()];
        let mut rest = &mut bytes[..];
        for (address, length) in &self.parts {
            let (part, after) = rest.split_at_mut(*length);
            memory.read_slice(part, *address).map_err(|_| GP)?;
            rest = after;
        }
        Ok(bytes)
    }

    fn write(&self, memory: &GuestMemory, bytes: &[u8]) -> Result<(), Exception> {
        let mut rest = bytes;
        for (address, length) in &self.parts {
            let (part, after) = rest.split_at(*length);
            memory.write_slice(part, *address).map_err(|_| GP)?;
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::paging::tests::paged;

    fn decoded(bytes: &[u8]) -> Instruction {
        Instruction::decode(bytes).unwrap_or_else(|| panic!("{bytes:x?}"))
    }

    #[test]
    fn the_instructions_are_told_from_their_neighbours() {
        // xsave64 (%rdi), xrstor64 (%rdi), as Linux has them.
        let saves = decoded(&[0x48, 0x0f, 0xae, 0x27, 0x31, 0xff]);
        assert!(saves.saves && saves.length == 4 && saves.operand.base == Some(7));
        assert!(!decoded(&[0x48, 0x0f, 0xae, 0x2f]).saves);
        // fxsave64 (%rdi), xsaveopt64 (%rdi), lfence, mfence, cut off, and none of these.
        for other in [
            &[0x48, 0x0f, 0xae, 0x07][..],
            &[0x48, 0x0f, 0xae, 0x37],
            &[0x0f, 0xae, 0xe8],
            &[0x0f, 0xae, 0xf0],
            &[0x48, 0x0f, 0xae],
            &[0x48, 0x0f, 0xae, 0xa7, 1, 2, 3],
            &[0x48],
            &[],
            &[0x90, 0x0f, 0xae, 0x27],
        ] {
            assert_eq!(Instruction::decode(other), None, "{other:x?}");
        }
    }

    #[test]
    fn operands_are_found_in_every_form() {
        let regs =
            kvm_regs { rax: 0x100, rdi: 0x1000, rsp: 0x2000, r12: 0x3000, r9: 4, rbp: 0x5000, ..Default::default() };
        let address = |bytes: &[u8]| {
            let instruction = decoded(bytes);
            assert_eq!(instruction.length, bytes.len() as u64);
            instruction.operand.address(&regs, 0x7000)
        };
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0x27]), 0x1000);
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0x67, 0xc0]), 0x1000 - 0x40);
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0xa7, 0x40, 0x02, 0, 0]), 0x1240);
        assert_eq!(address(&[0x49, 0x0f, 0xae, 0x24, 0x24]), 0x3000);
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0x24, 0x24]), 0x2000);
        assert_eq!(address(&[0x4a, 0x0f, 0xae, 0x64, 0xcf, 0x08]), 0x1008 + 8 * regs.r9);
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0x25, 0x10, 0, 0, 0]), 0x7010);
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0x24, 0x25, 0x40, 0, 0, 0]), 0x40);
        assert_eq!(address(&[0x48, 0x0f, 0xae, 0x65, 0x00]), 0x5000);
    }

    #[test]
    fn what_is_saved_is_restored_and_the_rest_is_left() {
        let (memory, sregs) = paged();
        let mut state = State(Box::new([0x11; KVM_AREA]));
        state.0[HEADER..AFTER_HEADER].fill(0);
        state.0[HEADER] = 7;
        // Across the end of a page that another follows.
        let (at, wanted) = (0x20_0fc0, LAYOUT.known & 7);
        save(&state, wanted, &memory, &sregs, at).unwrap();
        let mut other = State(Box::new([0x22; KVM_AREA]));
        other.0[HEADER..AFTER_HEADER].fill(0);
        restore(&mut other, SSE, &memory, &sregs, at).unwrap();
        assert_eq!((other.0[0], other.0[MXCSR.start], other.0[160], other.0[AFTER_HEADER]), (0x22, 0x11, 0x11, 0x22));
        assert_eq!(bits(&other.0[..]), SSE);
        restore(&mut other, wanted, &memory, &sregs, at).unwrap();
        assert_eq!(other.0[..416], state.0[..416]);
        assert_eq!(bits(&other.0[..]), wanted);
        for (_, offset, size) in LAYOUT.behind.iter().filter(|(bit, ..)| bit & wanted != 0) {
            assert_eq!(other.0[*offset..offset + size], state.0[*offset..offset + size]);
        }
        // Absent parts are in their initial state.
        memory.write_obj(0_u64, GuestAddress(0x40_0fc0 + HEADER as u64)).unwrap();
        restore(&mut other, wanted, &memory, &sregs, at).unwrap();
        assert_eq!((other.0[0], other.0[1], other.0[160], bits(&other.0[..]) & AVX), (0x7f, 0x03, 0, 0));
        // Tables that point to where there is no memory.
        memory.write_obj(0xffff_ffff_f003_u64, GuestAddress(0x4028)).unwrap();
        let place = Place::translate(&memory, &sregs, 0x5040, AFTER_HEADER, true).unwrap();
        assert_eq!(place.write(&memory, &[0; AFTER_HEADER]), Err(GP));
        // A header that no processor would load, a place that is not aligned, a page that is not there.
        memory.write_obj(1_u64 << 63, GuestAddress(0x40_0fc0 + HEADER as u64)).unwrap();
        assert_eq!(restore(&mut other, wanted, &memory, &sregs, at), Err(GP));
        assert_eq!(save(&state, wanted, &memory, &sregs, at + 8), Err(GP));
        assert!(matches!(save(&state, wanted, &memory, &sregs, 0x7fc0), Err(Exception { address: Some(0x8000), .. })));
    }

    #[test]
    fn nothing_is_saved_for_user_mode() {
        if std::env::var_os("SANDBOXVM_NO_KVM").is_some_and(|value| value == "1") {
            return;
        }
        let kvm = kvm_ioctls::Kvm::new().expect("KVM; SANDBOXVM_NO_KVM=1 leaves this test out");
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let (memory, paged) = paged();
        let start = kvm_regs { rip: 0x1000, rdi: 0x20_0fc0, rax: 7, rflags: 2, ..Default::default() };
        let saves = decoded(&[0x48, 0x0f, 0xae, 0x27]);
        for (level, rip) in [(3, 0x1000), (0, 0x1004)] {
            let mut sregs = vcpu.get_sregs().unwrap();
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (paged.cr0, paged.cr3, paged.cr4, paged.efer);
            sregs.ss.dpl = level;
            vcpu.set_sregs(&sregs).unwrap();
            vcpu.set_regs(&start).unwrap();
            assert_eq!(saves.execute(&vcpu, &memory).unwrap(), level == 0);
            assert_eq!(vcpu.get_regs().unwrap().rip, rip);
        }
    }
}
