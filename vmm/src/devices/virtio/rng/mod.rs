//! virtio-rng (virtio 1.2, 5.4): the host's getrandom(2) in the guest's buffers.
//!
//! A machine restored or forked from a snapshot gets fresh bytes from here like any other: the device keeps no pool.
//! Entropy costs the host CPU time, so a guest gets `BYTES_PER_PERIOD` in each `PERIOD` (1.3 MB/s); requests beyond
//! that stay in the queue until a timer takes them up again.

mod kind;

pub use kind::RngKind;

use super::{
    chain::Chain,
    device::{DeviceContext, DeviceError, DeviceType, VirtioDevice},
    resume::Resume,
};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

/// Entropy device (virtio 1.2, 5.4).
const TYPE: DeviceType = DeviceType::new(4, "Rng");

/// Descriptors in the queue; Linux keeps one request in flight.
const QUEUE_SIZE: u16 = 8;

/// Bytes given to one request, however large its buffers are.
const BYTES_PER_REQUEST: usize = 4096;

/// Bytes given away in one [`PERIOD`].
const BYTES_PER_PERIOD: usize = 64 * 1024;

/// What a request is charged at least, so that small ones use a period up as well: at most 256 in each.
const REQUEST_COST_MIN: usize = BYTES_PER_PERIOD / 256;

/// Time after which the guest may have as many bytes again.
const PERIOD: Duration = Duration::from_millis(50);

/// A virtio-rng device.
#[derive(Debug)]
pub struct RngDevice {
    /// Expires when requests left in the queue may be served.
    resume: Resume,
    period_start: Instant,
    bytes_left: usize,
}

impl RngDevice {
    /// An entropy device.
    ///
    /// # Errors
    /// When the host gives no timerfd.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { resume: Resume::new()?, period_start: Instant::now(), bytes_left: BYTES_PER_PERIOD })
    }

    fn serve(&mut self, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        let broken = |error: virtio_queue::Error| DeviceError::Queue { queue: 0, what: error.to_string() };
        let memory = context.memory;
        let queue = &mut context.queues[0];
        let mut served = false;
        loop {
            if !self.may_serve()? {
                break;
            }
            let Some(chain) = Chain::pop(queue, memory).map_err(|error| error.on(0))? else {
                if queue.enable_notification(memory).map_err(broken)? {
                    continue;
                }
                break;
            };
            let head = chain.head;
            let given = give(chain)?;
            self.bytes_left = self.bytes_left.saturating_sub(given.max(REQUEST_COST_MIN));
            // At most BYTES_PER_REQUEST.
            queue.add_used(memory, head, u32::try_from(given).unwrap_or(0)).map_err(broken)?;
            served = true;
        }
        if served && queue.needs_notification(memory).map_err(broken)? {
            context.interrupt.signal_used();
        }
        Ok(())
    }

    /// Whether a request may be served now; if not, the timer is set for when it may.
    fn may_serve(&mut self) -> Result<bool, DeviceError> {
        let elapsed = self.period_start.elapsed();
        if elapsed >= PERIOD {
            self.period_start = Instant::now();
            self.bytes_left = BYTES_PER_PERIOD;
        }
        if self.bytes_left > 0 {
            return Ok(true);
        }
        self.resume.after(PERIOD - elapsed)?;
        Ok(false)
    }
}

/// Fills up to [`BYTES_PER_REQUEST`] bytes of one request; returns how many.
fn give(mut chain: Chain<'_>) -> Result<usize, DeviceError> {
    let broken = |what: &str| DeviceError::Queue { queue: 0, what: what.to_owned() };
    if !chain.readable.is_empty() {
        return Err(broken("an entropy request has a device-readable buffer"));
    }
    let mut bytes = [0; BYTES_PER_REQUEST];
    let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
    let bytes = &mut bytes[..room.min(BYTES_PER_REQUEST)];
    fill(bytes).map_err(|error| DeviceError::Host { what: "getrandom", source: error.into() })?;
    Ok(chain.writable.write(bytes))
}

fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl VirtioDevice for RngDevice {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn queue_limits(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, into: &mut [u8]) {
        into.fill(0);
    }

    fn activate(&mut self, _context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn queue_notified(&mut self, _queue: usize, context: &mut DeviceContext<'_>) -> Result<(), DeviceError> {
        self.serve(context)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.resume.as_fd())
    }

    fn host_ready(&mut self, context: Option<&mut DeviceContext<'_>>) -> Result<(), DeviceError> {
        self.resume.drain();
        match context {
            Some(context) if context.queues[0].ready() => self.serve(context),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        // The period continues: a reset must not buy entropy.
        self.resume.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::mock_driver::{BUFFERS, HIGH_START, MockDriver, Part};

    fn driver() -> MockDriver {
        MockDriver::live(Box::new(RngDevice::new().unwrap()))
    }

    /// Asks for `length` bytes in one chain; does not wait.
    fn ask(driver: &mut MockDriver, address: u64, length: u32) {
        driver.set_chain(0, 0, &[Part::Writable(address, length)]);
        driver.publish(0, 0);
        driver.kick_for(0, 0);
    }

    #[test]
    fn every_request_gets_bytes_of_its_own() {
        let mut driver = driver();
        let mut seen = Vec::new();
        for _ in 0..20 {
            ask(&mut driver, BUFFERS, 64);
            assert_eq!(driver.last_used(0), (0, 64));
            seen.push(driver.bytes(BUFFERS, 64));
        }
        assert_eq!(driver.bytes(BUFFERS + 64, 64), [0; 64]);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 20);
        // A byte is zero one time in 256: 1280 of them are not all alike.
        assert!(seen.iter().flatten().filter(|&&byte| byte == 0).count() < 64);
    }

    #[test]
    fn a_large_request_is_answered_in_part() {
        let mut driver = driver();
        ask(&mut driver, HIGH_START, 100_000);
        assert_eq!(driver.last_used(0), (0, 4096));
        assert_ne!(driver.bytes(HIGH_START + 4096 - 64, 64), [0; 64]);
        assert_eq!(driver.bytes(HIGH_START + 4096, 64), [0; 64]);
    }

    #[test]
    fn beyond_its_rate_a_guest_waits() {
        let mut driver = driver();
        let start = Instant::now();
        let mut asked: u16 = 0;
        while driver.used_index(0) == asked {
            ask(&mut driver, HIGH_START, 4096);
            asked += 1;
            assert!(asked < 1000, "64 KiB in 50 ms, and no end after {} ms", start.elapsed().as_millis());
        }
        assert!(asked > 16);
        // A reset brings nothing forward, and the timer does in time.
        assert_eq!(driver.used_index(0), asked - 1);
        while !driver.host_fd_is_readable() {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        driver.transport.host_ready();
        assert_eq!(driver.used_index(0), asked);
    }

    #[test]
    fn many_small_requests_are_bounded_too() {
        let mut driver = driver();
        let mut answered = 0;
        let start = Instant::now();
        for _ in 0..2000 {
            let used = driver.used_index(0);
            ask(&mut driver, BUFFERS, 1);
            if driver.used_index(0) == used {
                break;
            }
            answered += 1;
        }
        let periods = 1 + start.elapsed().as_millis() / PERIOD.as_millis();
        assert!(answered <= 256 * periods, "{answered} in {periods} periods");
    }

    #[test]
    fn a_buffer_to_read_from_is_a_broken_queue() {
        let mut driver = driver();
        driver.set_chain(0, 0, &[Part::Readable(BUFFERS, 8), Part::Writable(BUFFERS, 8)]);
        driver.publish(0, 0);
        driver.kick(0);
        assert!(driver.needs_reset());
    }
}
