//! Guests that attack. The kernel of these guests is only a script, which drives the devices in
//! every forbidden way. The VMM and its confinement are the real ones.
//!
//! The tests judge from outside, always by the same rules. A device that was misused has stopped,
//! or a machine that reached an impossible state has ended with that reason. The VMM has survived,
//! stayed within its limits, and responds on its control channel. All other devices keep working.
//! After each attack the guest resets the device and expects it to work again, so no effect of the
//! attack remains.
//!
//! - [`devices`]: the devices that are attacked. A new device has to be added there; every module
//!   below attacks it.
//! - [`rings`]: virtqueues that break every rule.
//! - [`queue_setup`]: queues with invalid sizes, or at forbidden addresses.
//! - [`registers`]: accesses of every width at every offset and port.
//! - [`storms`]: the maximum of everything, and resets at the worst moment.
//! - [`network`]: invalid frames, and receive queues that break every rule, with a peer.
//! - [`sockets`]: vsock packets with false content, with hosts at the other end.
//! - [`second_vcpu`]: rings that change while the device reads them.
//! - [`snapshots`]: machines that are saved during attacks.
//! - [`instructions`]: instructions that the VMM executes for its guest, and ways to stop a
//!   processor.
//! - [`random`]: all of this at random. `scripts/soak` sets the duration with
//!   `SANDBOXVM_HOSTILE_MINUTES`.

mod devices;
mod first_light;
mod instructions;
mod network;
mod queue_setup;
mod random;
mod registers;
mod rings;
mod second_vcpu;
mod snapshots;
mod sockets;
mod storms;

use sandboxvm_tests::artefacts::{Artefacts, kvm_is_wanted};

/// Returns the artefacts under test, or `None` with `SANDBOXVM_NO_KVM=1`: the test then returns
/// immediately.
fn artefacts() -> Option<Artefacts> {
    if kvm_is_wanted() {
        return Some(Artefacts::find());
    }
    eprintln!("left out: SANDBOXVM_NO_KVM=1");
    None
}

/// Returns the seed of random attacks. It is the same in every run unless `SANDBOXVM_HOSTILE_SEED`
/// sets it.
fn seed() -> u64 {
    let stated = std::env::var("SANDBOXVM_HOSTILE_SEED").ok();
    let seed = stated.map_or(1, |text| text.parse().expect("SANDBOXVM_HOSTILE_SEED is a number"));
    println!("SANDBOXVM_HOSTILE_SEED={seed}");
    seed
}
