//! Guests that attack: a kernel that is nothing but a script drives our devices, in the real VMM under its real
//! confinement, in every way they must not be driven.
//!
//! The verdict is passed from outside, and always the same: a device that was misused has stopped, or a machine that did
//! the impossible has ended, with the reason that says so; the VMM did not die of it, kept within its bounds and answers
//! its control channel; what had no part in it goes on. After each attack the guest resets the device and expects it to
//! work again, so nothing of the attack is left either.
//!
//! - [`devices`]: what is attacked. A new device belongs there, and every family below attacks it.
//! - [`rings`]: virtqueues that break every rule there is.
//! - [`queue_setup`]: queues that cannot be, or lie where none may.
//! - [`registers`]: accesses of every width at every offset and port.
//! - [`storms`]: too much of everything, and resets at the worst moment.
//! - [`sockets`]: vsock packets that lie, with hosts at the other end.
//! - [`second_vcpu`]: rings that change while the device looks at them.
//! - [`snapshots`]: machines saved in the midst of it.
//! - [`instructions`]: what the VMM executes for its guest, and ways to stop a processor.
//! - [`random`]: all of it at random; for as long as asked by `SANDBOXVM_HOSTILE_MINUTES` under `scripts/soak`.

mod devices;
mod first_light;
mod instructions;
mod queue_setup;
mod random;
mod registers;
mod rings;
mod second_vcpu;
mod snapshots;
mod sockets;
mod storms;

use sandboxvm_tests::artefacts::{Artefacts, kvm_is_wanted};

/// What is under test; `None` with `SANDBOXVM_NO_KVM=1`, where the test is to return at once.
fn artefacts() -> Option<Artefacts> {
    if kvm_is_wanted() {
        return Some(Artefacts::find());
    }
    eprintln!("left out: SANDBOXVM_NO_KVM=1");
    None
}

/// Where randomness begins: the same in every run unless `SANDBOXVM_HOSTILE_SEED` says otherwise.
fn seed() -> u64 {
    let stated = std::env::var("SANDBOXVM_HOSTILE_SEED").ok();
    let seed = stated.map_or(1, |text| text.parse().expect("SANDBOXVM_HOSTILE_SEED is a number"));
    println!("SANDBOXVM_HOSTILE_SEED={seed}");
    seed
}
