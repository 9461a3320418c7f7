//! Escape drills: what code that took over a VMM would try, done by the VMM itself while its machine runs. Only in a build
//! with the feature `escape-drills`, which no bundle has.
//!
//! The guest asks for a drill by writing its number to a port, one for the vCPU's own thread and one for the event loop.
//! How it went is one line in the log: `drill NAME: done` (the attack worked), or `drill NAME: errno N`. A drill that the
//! system call filter stops says nothing: the process is gone. What a drill aims at stands in `SANDBOXVM_DRILL_TARGET`.

mod attacks;

use crate::machine::phase::Shared;
use std::{
    io::Write,
    sync::atomic::{AtomicU8, Ordering},
};

/// The guest writes the number of a drill here to have it done by the thread of its vCPU.
const ON_VCPU: u16 = 0x5d1;
/// And here by the event loop.
const ON_EVENT_LOOP: u16 = 0x5d2;

static DUE: AtomicU8 = AtomicU8::new(0);

/// True when a write to a port asked for a drill, which has been done or passed on.
pub fn is_asked(port: u16, data: &[u8], shared: &Shared) -> bool {
    match (port, data) {
        (ON_VCPU, [number]) => attempt(*number),
        (ON_EVENT_LOOP, [number]) => {
            DUE.store(*number, Ordering::SeqCst);
            // Wakes the event loop; 2^64-2 signals are never pending.
            let _ = shared.news().write(1);
        }
        _ => return false,
    }
    true
}

/// In the event loop: does the drill that is due, if any.
pub fn do_what_is_due() {
    let number = DUE.swap(0, Ordering::SeqCst);
    if number != 0 {
        attempt(number);
    }
}

fn attempt(number: u8) {
    let Some((name, attack)) = attacks::ALL.get(usize::from(number).wrapping_sub(1)) else {
        return say(format_args!("drill {number}: unknown"));
    };
    match attack() {
        Ok(()) => say(format_args!("drill {name}: done")),
        Err(error) => say(format_args!("drill {name}: errno {}", error.raw_os_error().unwrap_or(0))),
    }
}

fn say(line: std::fmt::Arguments<'_>) {
    // A test that does not find the line fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}
