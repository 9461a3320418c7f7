//! New IDs, drawn from the host's random number generator.

use sandboxvm_protocol::identity::SandboxId;
use std::io;

/// Draws an ID of 80 random bits, so that no sandbox or snapshot has it already.
pub(crate) fn new_id() -> io::Result<SandboxId> {
    let mut entropy = [0; 10];
    fill_random(&mut entropy)?;
    Ok(SandboxId::from_entropy(entropy))
}

/// Fills a buffer of at most 256 bytes from the kernel's random number generator.
pub(crate) fn fill_random(buffer: &mut [u8]) -> io::Result<()> {
    let len = buffer.len();
    let got = rustix::rand::getrandom(buffer, rustix::rand::GetRandomFlags::empty())?;
    // The kernel returns up to 256 bytes completely once the generator is initialised
    // (getrandom(2)).
    if got == len { Ok(()) } else { Err(io::Error::other(format!("only {got} of {len} random bytes"))) }
}
