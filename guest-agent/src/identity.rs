//! Sets what distinguishes a restored machine from the one it is a copy of: wall clock, random
//! numbers, names. Ends the network connections that it does not share with it.
//!
//! The guest's kernel has reseeded from the VMM's mailbox before this (docs/design/time.md). The
//! agent reseeds again, for snapshots whose kernel has no mailbox.
//!
//! It is applied on request of the host, before anything else that the host sent. Clock, random
//! numbers and hostname must succeed.

use crate::{generation::GenerationFile, names::NameFiles, network::Card};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use rustix::time::{ClockId, Timespec, clock_settime};
use sandboxvm_protocol::agent::GuestIdentity;
use std::{fmt::Write, os::fd::AsFd};

/// A part of the identity that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("identity: cannot set the {part}: {errno}")]
pub(crate) struct IdentityError {
    part: &'static str,
    errno: Errno,
}

/// `struct rand_pool_info` with 32 bytes (random(4)).
#[repr(C)]
struct Entropy {
    bits: i32,
    size: i32,
    bytes: [u8; 32],
}

/// The opcode contains the size of the type that the kernel's header names, not of the larger
/// struct that is passed.
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);

/// The files that show a machine's identity, and its network card. None for an agent that is not
/// PID 1.
#[derive(Debug, Default)]
pub(crate) struct IdentityFiles {
    names: NameFiles,
    generation: GenerationFile,
    card: Option<Card>,
}

impl IdentityFiles {
    /// Creates them when a machine boots.
    pub(crate) fn make(hostname: &str, card: Option<Card>) -> Self {
        Self { names: NameFiles::mount(hostname, card.is_some()), generation: GenerationFile::make(), card }
    }
}

/// Sets the identity.
pub(crate) fn apply(identity: &GuestIdentity, files: &IdentityFiles) -> Result<(), IdentityError> {
    let fail = |part| move |errno| IdentityError { part, errno };
    set_clock(identity.wall_clock_ns).map_err(fail("wall clock"))?;
    reseed(identity.entropy).map_err(fail("random number generator"))?;
    let name = identity.hostname.as_str();
    rustix::system::sethostname(name.as_bytes()).map_err(fail("hostname"))?;

    let mut machine_id = String::with_capacity(32);
    for byte in identity.machine_id {
        // Writing to a String does not fail.
        let _ = write!(machine_id, "{byte:02x}");
    }
    files.names.write(name, &machine_id);
    if let Some(card) = &files.card {
        card.end_connections();
    }
    // Last, so that a program that is notified finds everything else done.
    files.generation.renew();
    Ok(())
}

/// First of the eight I/O ports with the VMM's wall clock in nanoseconds, lowest byte first.
const WALL_CLOCK: u64 = 0x518;

/// Maximum delay in nanoseconds between reading the VMM's clock and setting the guest's, and how
/// often that is tried.
const CLOCK_STEP: u64 = 10_000_000;
const CLOCK_TRIES: usize = 8;

/// Sets the wall clock to that of the VMM, if it has one. Repeats that until the delay between
/// reading and setting is short: on a busy host a vCPU may stand still between the two, and the
/// guest's clock would be late by that time.
fn set_clock(told: u64) -> Result<(), Errno> {
    let port = open("/dev/port", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let read = || port.as_ref().ok().and_then(|port| vmm_clock(port, told)).unwrap_or(told);
    let mut time = read();
    for _ in 0..CLOCK_TRIES {
        set_realtime(time)?;
        let after = read();
        if after.saturating_sub(time) <= CLOCK_STEP {
            break;
        }
        time = after;
    }
    Ok(())
}

/// Returns the VMM's time, if it has a clock. `told` is the time that the host sent, which may be
/// seconds old after a restore. The VMM's time is used only if it is later by less than an hour.
fn vmm_clock(port: impl AsFd, told: u64) -> Option<u64> {
    const HOUR: u64 = 3600 * 1_000_000_000;
    let mut bytes = [0; 8];
    let count = rustix::io::pread(port, &mut bytes, WALL_CLOCK).ok()?;
    let now = u64::from_le_bytes(bytes);
    (count == bytes.len() && (told..told.saturating_add(HOUR)).contains(&now)).then_some(now)
}

fn set_realtime(nanoseconds: u64) -> Result<(), Errno> {
    const SECOND: u64 = 1_000_000_000;
    let tv_sec = i64::try_from(nanoseconds / SECOND).map_err(|_| Errno::INVAL)?;
    let tv_nsec = i64::try_from(nanoseconds % SECOND).map_err(|_| Errno::INVAL)?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })
}

fn reseed(bytes: [u8; 32]) -> Result<(), Errno> {
    let random = open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let entropy = Entropy { bits: 256, size: 32, bytes };
    // SAFETY: RNDADDENTROPY reads a `rand_pool_info`: two integers and as many bytes as the second says, here 32.
    let add = unsafe { Setter::<RNDADDENTROPY, Entropy>::new(entropy) };
    // SAFETY: of any other file than the random device, this opcode is refused with ENOTTY.
    unsafe { ioctl(&random, add) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseed = unsafe { NoArg::<RNDRESEEDCRNG>::new() };
    // SAFETY: as above.
    unsafe { ioctl(&random, reseed) }
}
