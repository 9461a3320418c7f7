//! The page of guest memory through which a guest's kernel learns how long the machine stood still, and that it is a
//! copy (images/kernel/README.md has its layout from the kernel's side). Owns what is in it; reads and writes nothing
//! else of the guest but the one word it names. No vCPU
//! may run meanwhile.
//!
//! Everything a machine needs to continue is in the page, and so in its memory: when it stopped is written there at the
//! stop. A pause in memory, a restore, a fork and a reset are then one and the same: when the machine is about to run,
//! the page says when it stopped. A kernel that knows no such page leaves the magic out, and nothing is written.
//!
//! The content is the guest's word. All it can do with it is set its own clocks wrong.

use crate::memory::GuestMemory;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// What the kernel writes when it has set up its side: "SVM1".
const MAGIC: u32 = u32::from_le_bytes(*b"SVM1");

/// Offsets in the page.
mod at {
    pub const MAGIC: u64 = 0;
    pub const VECTOR: u64 = 4;
    pub const TSC_OFFSET: u64 = 8;
    pub const STOOD_SEEN: u64 = 16;
    pub const STOP_TSC: u64 = 24;
    pub const STOP_WALL: u64 = 32;
    pub const STOOD: u64 = 40;
    pub const COPY: u64 = 48;
    pub const ENTROPY: u64 = 56;
    pub const ALIVE: u64 = 88;
}

/// Below this, wall clock and boot time may stay behind for another stop: an interrupt on each vCPU costs more than
/// that is worth.
const WORTH_TELLING_NS: u64 = 5_000_000;

/// A moment, by the clocks of host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The guest's TSC, as its kernel reads it.
    pub tsc: u64,
    /// The host's wall clock in nanoseconds since the Unix epoch.
    pub wall: u64,
}

/// The page in a machine's memory, set up by its kernel.
#[derive(Debug)]
pub struct Mailbox<'a> {
    memory: &'a GuestMemory,
    page: GuestAddress,
}

impl<'a> Mailbox<'a> {
    /// The mailbox at `page`, where the guest's kernel has set one up.
    #[must_use]
    pub fn find(memory: &'a GuestMemory, page: GuestAddress) -> Option<Self> {
        let mailbox = Self { memory, page };
        (memory.read_obj::<u32>(mailbox.at(at::MAGIC)).ok()? == MAGIC).then_some(mailbox)
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.page.0 + offset)
    }

    fn word(&self, offset: u64) -> Result<u64, GuestMemoryError> {
        self.memory.read_obj(self.at(offset))
    }

    fn set(&self, offset: u64, value: u64) -> Result<(), GuestMemoryError> {
        self.memory.write_obj(value, self.at(offset))
    }

    /// Notes that the machine stopped at `moment`.
    ///
    /// # Errors
    /// When the page is not memory.
    pub fn stopped(&self, moment: Moment) -> Result<(), GuestMemoryError> {
        self.set(at::STOP_TSC, moment.tsc)?;
        self.set(at::STOP_WALL, moment.wall)
    }

    /// Takes the time since the last stop out of the guest's monotonic clocks, and adds it to what its wall clock and
    /// boot time are behind. Returns the vector of the interrupt that has the kernel set those, if it has to.
    ///
    /// # Errors
    /// When the page, or the word that it names, is not memory.
    pub fn resumed(&self, now: Moment) -> Result<Option<u8>, GuestMemoryError> {
        let Some(vector) = self.vector()? else { return Ok(None) };
        // A TSC that is behind (another host, or one that was started again) is caught up with in the same way.
        let stood_tsc = now.tsc.wrapping_sub(self.word(at::STOP_TSC)?);
        let offset = GuestAddress(self.word(at::TSC_OFFSET)?);
        let shifted = self.memory.read_obj::<u64>(offset)?.wrapping_sub(stood_tsc);
        self.memory.write_obj(shifted, offset)?;

        let stood = self.word(at::STOOD)?.wrapping_add(now.wall.saturating_sub(self.word(at::STOP_WALL)?));
        self.set(at::STOOD, stood)?;
        let behind = stood.wrapping_sub(self.word(at::STOOD_SEEN)?);
        Ok((behind >= WORTH_TELLING_NS).then_some(vector))
    }

    /// The TSC at the last timer interrupt of a vCPU, by its kernel.
    ///
    /// # Errors
    /// When the page is not memory.
    pub fn alive(&self, vcpu: usize) -> Result<u64, GuestMemoryError> {
        self.word(at::ALIVE + 8 * vcpu as u64)
    }

    /// Vectors below 32 are exceptions. 0 is that of a kernel that keeps time by another clock than the TSC.
    fn vector(&self) -> Result<Option<u8>, GuestMemoryError> {
        let vector = self.memory.read_obj::<u32>(self.at(at::VECTOR))?;
        Ok(u8::try_from(vector).ok().filter(|vector| *vector >= 32))
    }

    /// Says that this memory is a copy from here on: the guest's kernel gives away no random number before it has
    /// mixed in the bytes left here.
    ///
    /// # Errors
    /// When the host has no random bytes, or the page is not memory.
    pub fn became_copy(&self) -> io::Result<()> {
        let mut entropy = [0; 32];
        let got = getrandom(&mut entropy, GetRandomFlags::empty())?;
        if got != entropy.len() {
            return Err(io::Error::other(format!("only {got} of {} random bytes", entropy.len())));
        }
        self.memory.write_slice(&entropy, self.at(at::ENTROPY)).map_err(io::Error::other)?;
        let copy = self.word(at::COPY).map_err(io::Error::other)?.wrapping_add(1);
        self.set(at::COPY, copy).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: GuestAddress = GuestAddress(0x3000);
    const OFFSET_WORD: GuestAddress = GuestAddress(0x5040);

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap()
    }

    fn set_up(memory: &GuestMemory) -> Mailbox<'_> {
        memory.write_obj(MAGIC, PAGE).unwrap();
        memory.write_obj(0xf7u32, GuestAddress(PAGE.0 + at::VECTOR)).unwrap();
        memory.write_obj(OFFSET_WORD.0, GuestAddress(PAGE.0 + at::TSC_OFFSET)).unwrap();
        Mailbox::find(memory, PAGE).unwrap()
    }

    fn moment(tsc: u64, wall: u64) -> Moment {
        Moment { tsc, wall }
    }

    #[test]
    fn guest_clock_continues_where_it_stopped() {
        let memory = memory();
        let mailbox = set_up(&memory);
        let clock = |tsc: u64| tsc.wrapping_add(memory.read_obj::<u64>(OFFSET_WORD).unwrap());
        mailbox.stopped(moment(1_000, 50)).unwrap();
        assert_eq!(mailbox.resumed(moment(900_000, 50 + WORTH_TELLING_NS)).unwrap(), Some(0xf7));
        assert_eq!(clock(900_000), 1_000);
        // Again, and on a host whose TSC is behind.
        mailbox.stopped(moment(900_500, 10)).unwrap();
        assert_eq!(clock(900_500), 1_500);
        mailbox.resumed(moment(7, 20)).unwrap();
        assert_eq!(clock(7), 1_500);
    }

    #[test]
    fn short_stops_add_up_until_they_are_worth_an_interrupt() {
        let memory = memory();
        let mailbox = set_up(&memory);
        let stop = |wall| {
            mailbox.stopped(moment(0, 0)).unwrap();
            mailbox.resumed(moment(0, wall)).unwrap()
        };
        assert_eq!(stop(WORTH_TELLING_NS - 1), None);
        assert_eq!(stop(1), Some(0xf7));
        mailbox.set(at::STOOD_SEEN, mailbox.word(at::STOOD).unwrap()).unwrap();
        assert_eq!(stop(1), None);
    }

    #[test]
    fn host_wall_clock_that_was_set_back_adds_nothing() {
        let memory = memory();
        let mailbox = set_up(&memory);
        mailbox.stopped(moment(0, 1 << 60)).unwrap();
        assert_eq!(mailbox.resumed(moment(0, 5)).unwrap(), None);
        assert_eq!(mailbox.word(at::STOOD).unwrap(), 0);
    }

    #[test]
    fn every_copy_has_other_entropy() {
        let memory = memory();
        let mailbox = set_up(&memory);
        let seen: Vec<(u64, [u8; 32])> = (0..3)
            .map(|_| {
                mailbox.became_copy().unwrap();
                (mailbox.word(at::COPY).unwrap(), memory.read_obj(mailbox.at(at::ENTROPY)).unwrap())
            })
            .collect();
        assert_eq!(seen.iter().map(|(copy, _)| *copy).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(seen[0].1 != seen[1].1 && seen[1].1 != seen[2].1);
    }

    #[test]
    fn kernel_without_a_mailbox_is_not_written_to() {
        let memory = memory();
        assert!(Mailbox::find(&memory, PAGE).is_none());
        assert!(Mailbox::find(&memory, GuestAddress(0x10_0000)).is_none());
    }

    #[test]
    fn hostile_words_are_errors_or_ignored() {
        let memory = memory();
        let mailbox = set_up(&memory);
        mailbox.stopped(moment(1, 1)).unwrap();
        for address in [0x7ffc, 0x8000, u64::MAX, u64::MAX - 7] {
            memory.write_obj(address, GuestAddress(PAGE.0 + at::TSC_OFFSET)).unwrap();
            assert!(mailbox.resumed(moment(2, 2)).is_err(), "{address:#x}");
        }
        for vector in [0u32, 31, 256, u32::MAX] {
            memory.write_obj(vector, GuestAddress(PAGE.0 + at::VECTOR)).unwrap();
            assert_eq!(mailbox.resumed(moment(2, 1 << 40)).unwrap(), None, "{vector}");
        }
    }
}
