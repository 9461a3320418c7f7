//! Entry of the `sandboxvm-agent` binary.
//!
//! Panic policy: no input of a guest or a host may cause a panic. A panic would unwind into the C
//! frame below and abort. For PID 1 that is a panic of the guest's kernel, which the VMM sees on
//! its notify port and reports.

#![no_main]

use std::ffi::{CStr, c_char, c_int};

/// A C entry point, so that std's start-up does not run. On musl that is about fifty system calls
/// (for the stack probing of its overflow guard), and system calls are the guest's budget.
///
/// # Safety
/// Called once, by libc's start code.
// SAFETY: no other item of this program is called `main`, and the signature is the one libc calls.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let arguments: Vec<&CStr> = (1..count)
        .map(|index| {
            // SAFETY: the kernel hands over `argc` pointers, and `index` is below that.
            let argument = unsafe { argv.add(index) };
            // SAFETY: within the array, see above.
            let argument = unsafe { *argument };
            // SAFETY: the kernel ends each argument with NUL and keeps them for the life of the process.
            unsafe { CStr::from_ptr(argument) }
        })
        .collect();
    sandboxvm_guest_agent::run(&arguments)
}
