//! The machine code of the guest: an interpreter of [`crate::Instruction`]. The host never executes
//! it. It is part of the constants of the test program, and [`code`] returns it.
//!
//! Its entry point is [`layout::PROGRAM`], and all its jumps are relative. It uses no instruction
//! that KVM's interpreter lacks. Registers during a script:
//!
//! ```text
//! RSI  the instruction being executed      R12  the accumulator
//! R14  the loop counters                   RDI, RDX, ECX  fields a, b and count of the instruction
//! ```

use crate::layout;
use std::arch::global_asm;

global_asm!(
    r#"
    .pushsection .rodata.sandboxvm_bare_guest, "a", @progbits
    .balign 16
    .globl sandboxvm_bare_guest_start
sandboxvm_bare_guest_start:
    // vCPU 0 starts here, in 64-bit mode with the VMM's page tables, which end at 1 GiB.
    cli
    mov eax, {page_tables}
    mov cr3, rax
    mov esp, {stack_0}
    mov r14d, {slots_0}
    mov esi, {script_0}
    jmp 20f

10: // vCPU 1 arrives here in 64-bit mode, from label 80 below.
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, {stack_1}
    mov r14d, {slots_1}
    mov esi, {script_1}

20: // Both vCPUs continue here.
    mov eax, {idt_pointer}
    lidt [rax]
    jmp 31f

30: // Go to the next instruction.
    add rsi, 24
31: // Execute this instruction.
    movzx eax, byte ptr [rsi]
    mov ecx, dword ptr [rsi + 4]
    mov rdi, qword ptr [rsi + 8]
    mov rdx, qword ptr [rsi + 16]
    lea rbx, [rip + 40f]
    movsxd rax, dword ptr [rbx + rax * 4]
    add rax, rbx
    jmp rax

    .balign 4
40: // The table of operations, in the order of Instruction::encode.
    .long 100f - 40b
    .long 101f - 40b, 102f - 40b, 103f - 40b, 104f - 40b
    .long 105f - 40b, 106f - 40b, 107f - 40b, 108f - 40b
    .long 109f - 40b, 110f - 40b, 111f - 40b, 112f - 40b
    .long 113f - 40b, 114f - 40b, 115f - 40b
    .long 116f - 40b, 117f - 40b, 118f - 40b
    .long 119f - 40b, 120f - 40b, 121f - 40b, 122f - 40b, 123f - 40b
    .long 124f - 40b, 125f - 40b, 126f - 40b, 127f - 40b, 128f - 40b, 129f - 40b, 130f - 40b, 131f - 40b

100: // Rest. The PIC is masked, because it would deliver interrupts of devices at the vectors of exceptions.
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
1:
    sti
    hlt
    jmp 1b

101: // Write
    mov byte ptr [rdi], dl
    jmp 30b
102:
    mov word ptr [rdi], dx
    jmp 30b
103:
    mov dword ptr [rdi], edx
    jmp 30b
104:
    mov qword ptr [rdi], rdx
    jmp 30b

105: // Read
    movzx r12d, byte ptr [rdi]
    jmp 30b
106:
    movzx r12d, word ptr [rdi]
    jmp 30b
107:
    mov r12d, dword ptr [rdi]
    jmp 30b
108:
    mov r12, qword ptr [rdi]
    jmp 30b

109: // Copy
    mov al, byte ptr [rdx]
    mov byte ptr [rdi], al
    jmp 30b
110:
    mov ax, word ptr [rdx]
    mov word ptr [rdi], ax
    jmp 30b
111:
    mov eax, dword ptr [rdx]
    mov dword ptr [rdi], eax
    jmp 30b
112:
    mov rax, qword ptr [rdx]
    mov qword ptr [rdi], rax
    jmp 30b

113: // Out
    mov eax, edx
    mov edx, edi
    out dx, al
    jmp 30b
114:
    mov eax, edx
    mov edx, edi
    out dx, ax
    jmp 30b
115:
    mov eax, edx
    mov edx, edi
    out dx, eax
    jmp 30b

116: // In
    mov edx, edi
    xor eax, eax
    in al, dx
    mov r12, rax
    jmp 30b
117:
    mov edx, edi
    xor eax, eax
    in ax, dx
    mov r12, rax
    jmp 30b
118:
    mov edx, edi
    in eax, dx
    mov r12, rax
    jmp 30b

119: // OutString
    push rsi
    mov rsi, rdx
    mov edx, edi
    cld
    rep outsb
    pop rsi
    jmp 30b
120: // InString
    mov rax, rdx
    mov edx, edi
    mov rdi, rax
    cld
    rep insb
    jmp 30b

121: // Add
    add word ptr [rdi], dx
    jmp 30b

122: // Expect
    mov rax, r12
    and rax, rdx
    cmp rax, rdi
    jne 200f
    jmp 30b

123: // Wait
    mov r8, rdx
    shr r8, 32
1:
    mov eax, dword ptr [rdi]
    mov r12, rax
    and eax, r8d
    sub eax, edx
    je 30b
    js 2f
    test byte ptr [rsi + 2], 2
    jnz 30b
2:
    test ecx, ecx
    jz 200f
    dec ecx
    test byte ptr [rsi + 2], 1
    jnz 3f
    // Leaves the guest, or a processor that executes ring 0 would use up all attempts within a millisecond. KVM itself
    // answers a read of the PIC's mask, which changes nothing.
    in al, 0x21
    jmp 1b
3:
    // STI enables interrupts only after the next instruction, so none is lost before the HLT.
    sti
    hlt
    cli
    jmp 1b

124: // Jump
    movsxd rcx, ecx
    imul rcx, rcx, 24
    add rsi, rcx
    jmp 31b

125: // Set
    movzx eax, word ptr [rsi + 2]
    mov qword ptr [r14 + rax * 8], rdx
    jmp 30b

126: // Loop
    movzx eax, word ptr [rsi + 2]
    dec qword ptr [r14 + rax * 8]
    jnz 124b
    jmp 30b

127: // Print
    mov rbx, r12
    call 210f
    jmp 30b

128: // Call
    push rsi
    push r14
    mov rax, rdi
    mov rdi, rdx
    mov rbx, rax
    mov rax, r12
    call rbx
    mov r12, rax
    pop r14
    pop rsi
    jmp 30b

129: // Delay
    test ecx, ecx
    jz 30b
1:
    dec ecx
    jnz 1b
    jmp 30b

130: // WhileZero
    cmp dword ptr [rdi], 0
    je 124b
    jmp 30b

131: // Halt
    cli
    hlt
    jmp 131b

200: // An expectation is not met: prints the instruction's address and the accumulator, and gives up.
    mov al, 33
    mov edx, {uart}
    out dx, al
    mov rbx, rsi
    call 210f
    mov rbx, r12
    call 210f
    mov edx, {notify}
    mov al, {notify_panic}
    out dx, al
    mov edx, {i8042}
    mov al, {i8042_reset}
    out dx, al
    jmp 100b

210: // Writes RBX to the console.
    mov r9d, 16
    mov edx, {uart}
1:
    rol rbx, 4
    mov eax, ebx
    and eax, 15
    add eax, 48
    cmp eax, 58
    jb 2f
    add eax, 39
2:
    out dx, al
    dec r9d
    jnz 1b
    mov al, 10
    out dx, al
    ret

    .globl sandboxvm_bare_guest_interrupt
sandboxvm_bare_guest_interrupt: // Counts the interrupt and signals its end to the local APIC.
    push rax
    mov eax, {interrupts}
    inc qword ptr [rax]
    mov eax, {end_of_interrupt}
    mov dword ptr [rax], 0
    pop rax
    iretq

    // vCPU 1 starts at 80, in real mode at AP_START. Sets CR4.PAE, page tables, EFER.LME, then
    // paging and protection.
    .globl sandboxvm_bare_guest_ap_start
sandboxvm_bare_guest_ap_start:
    .code16
80:
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16 // LGDT with a 32-bit base, at a 16-bit address
    .word {ap_start} + (90f - 80b)
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, {page_tables}
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000001
    and eax, 0x9fffffff // caches on
    mov cr0, eax
    .byte 0x66, 0xea // far jump to a 32-bit offset
    .long {program} + (10b - sandboxvm_bare_guest_start)
    .word {code_selector}
90:
    .word 31
    .long {gdt}
    .code64
    .globl sandboxvm_bare_guest_end
sandboxvm_bare_guest_end:
    .popsection
    "#,
    page_tables = const layout::PAGE_TABLES,
    stack_0 = const layout::STACK_0,
    stack_1 = const layout::STACK_1,
    slots_0 = const layout::SLOTS_0,
    slots_1 = const layout::SLOTS_1,
    script_0 = const layout::SCRIPT_0,
    script_1 = const layout::SCRIPT_1,
    idt_pointer = const layout::IDT_POINTER,
    interrupts = const layout::INTERRUPTS,
    end_of_interrupt = const layout::LOCAL_APIC + 0xb0,
    uart = const layout::UART,
    notify = const layout::NOTIFY,
    notify_panic = const layout::NOTIFY_PANIC,
    i8042 = const layout::I8042,
    i8042_reset = const layout::I8042_RESET,
    ap_start = const layout::AP_START,
    program = const layout::PROGRAM,
    code_selector = const layout::CODE_SELECTOR,
    gdt = const layout::GDT,
);

unsafe extern "C" {
    #[link_name = "sandboxvm_bare_guest_start"]
    static START: u8;
    #[link_name = "sandboxvm_bare_guest_interrupt"]
    static INTERRUPT: u8;
    #[link_name = "sandboxvm_bare_guest_ap_start"]
    static AP_START: u8;
    #[link_name = "sandboxvm_bare_guest_end"]
    static END: u8;
}

fn between(first: *const u8, end: *const u8) -> &'static [u8] {
    let length = end.addr() - first.addr();
    // SAFETY: both are labels of the assembly above, in this order, so all bytes between them are constants of this program.
    unsafe { std::slice::from_raw_parts(first, length) }
}

/// Returns all of the machine code.
pub(crate) fn code() -> &'static [u8] {
    between(&raw const START, &raw const END)
}

/// Returns the part with which vCPU 1 starts.
pub(crate) fn ap_code() -> &'static [u8] {
    between(&raw const AP_START, &raw const END)
}

/// Returns the address of the interrupt handler in the guest's memory.
pub(crate) fn interrupt_handler() -> u64 {
    let offset = (&raw const INTERRUPT).addr() - (&raw const START).addr();
    layout::PROGRAM + offset as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_fits_into_its_memory() {
        assert!(code().len() as u64 <= layout::PAGE_TABLES - layout::PROGRAM);
        assert!(!ap_code().is_empty() && ap_code().len() < 256);
        assert!(code().ends_with(ap_code()));
        assert!((layout::PROGRAM..layout::PROGRAM + code().len() as u64).contains(&interrupt_handler()));
    }

    #[test]
    fn the_program_has_no_relocations() {
        // The table of operations has 32 distances within the program. Relocations would have left
        // zeros there.
        let distances = code().windows(128).any(|table| {
            table.chunks_exact(4).all(|bytes| {
                let distance = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                (128..4096).contains(&distance)
            })
        });
        assert!(distances);
    }
}
