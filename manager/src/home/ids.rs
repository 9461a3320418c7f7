//! New IDs, drawn from the host's random number generator.

use sandboxvm_protocol::ids::SandboxId;
use std::io;

/// Draws an ID of 80 random bits, which no sandbox or snapshot has.
pub(crate) fn new_id() -> io::Result<SandboxId> {
    let mut entropy = [0; 10];
    fill_random(&mut entropy)?;
    Ok(SandboxId::from_entropy(entropy))
}

/// Fills at most 256 bytes from the kernel's random number generator.
pub(crate) fn fill_random(buffer: &mut [u8]) -> io::Result<()> {
    let len = buffer.len();
    let got = rustix::rand::getrandom(buffer, rustix::rand::GetRandomFlags::empty())?;
    // Up to 256 bytes come whole once the generator is initialised (getrandom(2)).
    if got == len { Ok(()) } else { Err(io::Error::other(format!("only {got} of {len} random bytes"))) }
}
