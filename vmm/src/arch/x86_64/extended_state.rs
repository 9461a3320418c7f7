//! XSAVE and XRSTOR for guest kernels whose ring 0 is interpreted by a KVM that knows neither, while their user mode runs
//! on the host's own AVX registers: a kernel that saved only what FXSAVE does would mix up the upper halves of its
//! processes' vector registers, which every `memcpy` of theirs uses. SDM vol. 1, chapter 13, standard form only.
//!
//! Called by [`super::emulation`] with the vCPU out of KVM_RUN. Guest-virtual addresses are walked here, with the checks of
//! the processor: a write to a page that a copy-on-write has yet to copy must fault.

use crate::devices::virtio::device::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use sandboxvm_protocol::vmm::ExitReason;
use std::{
    arch::x86_64::__cpuid_count,
    sync::{LazyLock, atomic::AtomicU64, atomic::Ordering},
};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory,
};

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
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

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

/// An exception that the instruction raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    vector: u8,
    error_code: u32,
    /// For a page fault.
    address: Option<u64>,
}

const GP: Exception = Exception { vector: GENERAL_PROTECTION, error_code: 0, address: None };

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

    /// Executes it: the vCPU goes on behind it, or with the exception it raises.
    pub(super) fn execute(self, vcpu: &VcpuFd, memory: &GuestMemory) -> Result<(), ExitReason> {
        let fail = |what: &'static str| {
            move |error: kvm_ioctls::Error| ExitReason::HostFailure { message: format!("{what}: {error}") }
        };
        let mut regs = vcpu.get_regs().map_err(fail("KVM_GET_REGS"))?;
        let mut sregs = vcpu.get_sregs().map_err(fail("KVM_GET_SREGS"))?;
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
                vcpu.set_regs(&regs).map_err(fail("KVM_SET_REGS"))
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
                vcpu.set_vcpu_events(&events).map_err(fail("KVM_SET_VCPU_EVENTS"))
            }
        }
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
    // 2 is AVX, 5 to 7 are AVX-512. Others are not state of a guest whose kernel is interpreted: it is told not to use
    // protection keys, and there is no AMX without a permission that is never asked for.
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

    fn write(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let mut area = kvm_xsave::default();
        for (word, from) in area.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        }
        // SAFETY: KVM reads 4 KiB from a `kvm_xsave` unless the process asked for dynamically enabled features (AMX) by
        // arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
        unsafe { vcpu.set_xsave(&area) }
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

/// Walks four levels of page tables (SDM vol. 3A, 4.5) for an access of ring 0, and marks the page as used.
fn walk(memory: &GuestMemory, sregs: &kvm_sregs, address: u64, write: bool) -> Result<GuestAddress, Exception> {
    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    const LARGE: u64 = 1 << 7;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    const WRITE_PROTECT: u64 = 1 << 16;
    let fault = |present: bool| Exception {
        vector: PAGE_FAULT,
        error_code: u32::from(present) | u32::from(write) << 1,
        address: Some(address),
    };
    // Not canonical.
    if (address.cast_signed() << 16 >> 16).cast_unsigned() != address {
        return Err(GP);
    }
    let must_be_writable = write && sregs.cr0 & WRITE_PROTECT != 0;
    let mut table = sregs.cr3 & FRAME;
    for level in (0..4_u32).rev() {
        let shift = 12 + 9 * level;
        let entry_address = GuestAddress(table | (address >> shift & 0x1ff) << 3);
        let value = with_entry(memory, entry_address, |entry| entry.load(Ordering::Relaxed)).ok_or(GP)?;
        if value & PRESENT == 0 {
            return Err(fault(false));
        }
        if must_be_writable && value & WRITABLE == 0 {
            return Err(fault(true));
        }
        if level == 0 || (level < 3 && value & LARGE != 0) {
            let used = ACCESSED | if write { DIRTY } else { 0 };
            with_entry(memory, entry_address, |entry| entry.fetch_or(used, Ordering::Relaxed)).ok_or(GP)?;
            let offset = (1 << shift) - 1;
            return Ok(GuestAddress(value & FRAME & !offset | address & offset));
        }
        table = value & FRAME;
    }
    Err(GP)
}

/// Does something to a page-table entry in place, as other vCPUs change it too; `None` where there is no memory.
fn with_entry<T>(memory: &GuestMemory, address: GuestAddress, act: impl FnOnce(&AtomicU64) -> T) -> Option<T> {
    let region = memory.find_region(address)?;
    let offset = MemoryRegionAddress(address.raw_value().checked_sub(region.start_addr().raw_value())?);
    let slice = region.get_slice(offset, size_of::<AtomicU64>()).ok()?;
    slice.get_atomic_ref::<AtomicU64>(0).ok().map(act)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

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

    /// Page tables at 0x1000 to 0x4000 that map 0x5000 writable, 0x6000 not, and 0x200000 as a large page.
    fn paged() -> (GuestMemory, kvm_sregs) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let put = |address: u64, entry: u64| memory.write_obj(entry, GuestAddress(address)).unwrap();
        let tables = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x3008, 0x40_0083)];
        let pages = [(0x4028, 0x5003), (0x4030, 0x6001), (0x4038, 0x7003)];
        tables.into_iter().chain(pages).for_each(|(address, entry)| put(address, entry));
        (memory, kvm_sregs { cr0: 0x8001_0031, cr3: 0x1000, ..Default::default() })
    }

    #[test]
    fn a_walk_finds_what_the_processor_finds() {
        let (memory, mut sregs) = paged();
        let fault = |address, error_code| Err(Exception { vector: PAGE_FAULT, error_code, address: Some(address) });
        assert_eq!(walk(&memory, &sregs, 0x5040, true), Ok(GuestAddress(0x5040)));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x4028)).unwrap(), 0x5063, "accessed and dirty");
        assert_eq!(walk(&memory, &sregs, 0x6040, false), Ok(GuestAddress(0x6040)));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x4030)).unwrap(), 0x6021, "accessed");
        assert_eq!(walk(&memory, &sregs, 0x6040, true), fault(0x6040, 3));
        assert_eq!(walk(&memory, &sregs, 0x8000, true), fault(0x8000, 2));
        assert_eq!(walk(&memory, &sregs, 1 << 39, false), fault(1 << 39, 0));
        assert_eq!(walk(&memory, &sregs, 0x20_1fc0, true), Ok(GuestAddress(0x40_1fc0)));
        assert_eq!(walk(&memory, &sregs, 1 << 47, false), Err(GP));
        sregs.cr0 &= !(1 << 16);
        assert_eq!(walk(&memory, &sregs, 0x6040, true), Ok(GuestAddress(0x6040)));
        // Tables and pages where there is no memory.
        memory.write_obj(0xffff_ffff_f003_u64, GuestAddress(0x4028)).unwrap();
        let place = Place::translate(&memory, &sregs, 0x5040, AFTER_HEADER, true).unwrap();
        assert_eq!(place.write(&memory, &[0; AFTER_HEADER]), Err(GP));
        sregs.cr3 = 0xffff_ffff_f000;
        assert_eq!(walk(&memory, &sregs, 0x5040, true), Err(GP));
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
        // A header that no processor would load, a place that is not aligned, a page that is not there.
        memory.write_obj(1_u64 << 63, GuestAddress(0x40_0fc0 + HEADER as u64)).unwrap();
        assert_eq!(restore(&mut other, wanted, &memory, &sregs, at), Err(GP));
        assert_eq!(save(&state, wanted, &memory, &sregs, at + 8), Err(GP));
        assert!(matches!(save(&state, wanted, &memory, &sregs, 0x7fc0), Err(Exception { vector: PAGE_FAULT, .. })));
    }
}
