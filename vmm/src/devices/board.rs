//! The board: which device answers at which port and address. Called by vCPU threads for every exit that KVM does not
//! serve itself. An access that hits nothing known ends the machine, since our kernel makes none.

use crate::{
    arch::x86_64::layout,
    devices::{GuestAccess, console::SerialConsole, virtio::transport::MmioTransport},
    machine::phase::Shared,
    timeline,
};
use sandboxvm_protocol::vmm::ExitReason;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// First port of the console's UART (COM1).
const SERIAL: u16 = 0x3f8;
/// i8042 data port.
const I8042_DATA: u16 = 0x60;
/// i8042 command and status port.
const I8042_COMMAND: u16 = 0x64;
/// i8042 command: pulse the reset line.
const I8042_RESET: u8 = 0xfe;
/// Where the guest's kernel and agent tell the VMM what they are about; one byte, write only.
const NOTIFY: u16 = 0x510;
const NOTIFY_READY: u8 = 0x02;
const NOTIFY_SHUTDOWN: u8 = 0x03;
const NOTIFY_POWER_OFF: u8 = 0x04;
const NOTIFY_HALT: u8 = 0x05;
const NOTIFY_PANIC: u8 = 0xee;
/// First of eight ports, one byte each, that hold the host's wall clock in nanoseconds since the Unix epoch, the lowest
/// byte first. Reading the first takes the time for all. A time sent over a wire grows old while the machine is slow to
/// read it; this one does not.
const WALL_CLOCK: u16 = 0x518;
/// The last.
const WALL_CLOCK_END: u16 = WALL_CLOCK + 7;

/// Lock a device. A thread that panicked while holding it has ended the process already (see `main.rs`).
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All devices of one machine.
#[derive(Debug)]
pub struct Board {
    shared: Arc<Shared>,
    serial: Mutex<SerialConsole>,
    /// The time, as it was when the first of its ports was read.
    wall_clock: AtomicU64,
    virtio: Vec<Mutex<MmioTransport>>,
}

impl Board {
    /// Devices at their addresses: `virtio[i]` at window `i`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, serial: SerialConsole, virtio: Vec<MmioTransport>) -> Self {
        let virtio = virtio.into_iter().map(Mutex::new).collect();
        Self { shared, serial: Mutex::new(serial), wall_clock: AtomicU64::new(0), virtio }
    }

    /// The console.
    #[must_use]
    pub fn serial(&self) -> &Mutex<SerialConsole> {
        &self.serial
    }

    /// The virtio devices in window order.
    #[must_use]
    pub fn virtio(&self) -> &[Mutex<MmioTransport>] {
        &self.virtio
    }

    /// Device and offset in its window, for an access that lies in one window whole.
    fn window(&self, address: u64, len: usize) -> Option<(&Mutex<MmioTransport>, u64)> {
        let distance = address.checked_sub(layout::VIRTIO_MMIO)?;
        let offset = distance % layout::VIRTIO_MMIO_SIZE;
        if offset + len as u64 > layout::VIRTIO_MMIO_SIZE {
            return None;
        }
        let index = usize::try_from(distance / layout::VIRTIO_MMIO_SIZE).ok()?;
        Some((self.virtio.get(index)?, offset))
    }

    fn wall_clock(&self, port: u16) -> u8 {
        if port == WALL_CLOCK {
            self.wall_clock.store(timeline::wall_clock(), Ordering::Relaxed);
        }
        let byte = usize::from(port - WALL_CLOCK);
        self.wall_clock.load(Ordering::Relaxed).to_le_bytes().get(byte).copied().unwrap_or(0)
    }

    fn notify(&self, code: u8) {
        match code {
            NOTIFY_READY => self.shared.mark_ready(),
            NOTIFY_SHUTDOWN => self.shared.mark_shutdown_announced(),
            NOTIFY_POWER_OFF => self.shared.end(ExitReason::GuestPowerOff),
            NOTIFY_HALT => self.shared.end(ExitReason::GuestHalt),
            NOTIFY_PANIC => self.shared.mark_panicked(),
            // That the agent started (1) has no consequence; other codes are a newer guest's and say nothing to us.
            _ => {}
        }
    }
}

/// Ports of PC hardware that is not there, which a kernel may probe: reads float high, writes vanish. PIT and speaker,
/// CMOS, POST and I/O delay, COM2 to COM4, the PCI configuration mechanism.
fn is_absent_hardware(port: u16) -> bool {
    matches!(port, 0x40..=0x43 | 0x61 | 0x70..=0x71 | 0x80 | 0xed | 0x2e8..=0x2ef | 0x2f8..=0x2ff | 0x3e8..=0x3ef | 0xcf8..=0xcff)
}

fn unknown_port(port: u16, write: bool, len: usize) -> ExitReason {
    ExitReason::UnknownPort { port, write, size: u8::try_from(len).unwrap_or(u8::MAX) }
}

fn unknown_mmio(address: u64, write: bool, len: usize) -> ExitReason {
    ExitReason::UnknownMmio { address, write, size: u8::try_from(len).unwrap_or(u8::MAX) }
}

impl GuestAccess for Board {
    fn port_write(&self, port: u16, data: &[u8]) -> Result<(), ExitReason> {
        match (port, data) {
            (SERIAL..=0x3ff, &[value]) => {
                let offset = (port - SERIAL).to_le_bytes()[0];
                lock(&self.serial).write(offset, value);
            }
            (I8042_COMMAND, &[I8042_RESET]) => self.shared.end_by_reset(),
            (I8042_DATA | I8042_COMMAND, _) => {}
            (NOTIFY, &[code]) => self.notify(code),
            _ if is_absent_hardware(port) => {}
            _ => return Err(unknown_port(port, true, data.len())),
        }
        Ok(())
    }

    fn port_read(&self, port: u16, data: &mut [u8]) -> Result<(), ExitReason> {
        match (port, &mut *data) {
            (SERIAL..=0x3ff, [value]) => {
                let offset = (port - SERIAL).to_le_bytes()[0];
                *value = lock(&self.serial).read(offset);
            }
            // Status 0: input buffer empty, so that the kernel's reset need not wait; nothing to read.
            (I8042_DATA | I8042_COMMAND, _) => data.fill(0),
            (WALL_CLOCK..=WALL_CLOCK_END, [value]) => *value = self.wall_clock(port),
            _ if is_absent_hardware(port) => data.fill(0xff),
            _ => return Err(unknown_port(port, false, data.len())),
        }
        Ok(())
    }

    fn mmio_write(&self, address: u64, data: &[u8]) -> Result<(), ExitReason> {
        let (device, offset) =
            self.window(address, data.len()).ok_or_else(|| unknown_mmio(address, true, data.len()))?;
        lock(device).write(offset, data);
        Ok(())
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) -> Result<(), ExitReason> {
        let (device, offset) =
            self.window(address, data.len()).ok_or_else(|| unknown_mmio(address, false, data.len()))?;
        lock(device).read(offset, data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{devices::console::BoundedLog, timeline::StartTimes};
    use sandboxvm_protocol::machine::HostMode;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    fn board() -> Board {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        let shared = Arc::new(Shared::new(StartTimes::of_fork(), HostMode::Pvm, Vec::new(), eventfd(), false));
        let log = BoundedLog::new(tempfile::tempfile().unwrap(), 1 << 20).unwrap();
        Board::new(shared, SerialConsole::new(eventfd(), log), Vec::new())
    }

    fn read(board: &Board, port: u16) -> u8 {
        let mut value = [0];
        board.port_read(port, &mut value).unwrap();
        value[0]
    }

    #[test]
    fn the_time_is_whole_whenever_its_bytes_are_read() {
        let board = board();
        let before = timeline::wall_clock();
        let mut bytes = [0; 8];
        for (byte, port) in bytes.iter_mut().zip(WALL_CLOCK..=WALL_CLOCK_END) {
            *byte = read(&board, port);
            // Taken with the first byte: what goes by between the others does not show.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let time = u64::from_le_bytes(bytes);
        assert!((before..before + 2_000_000).contains(&time), "{before} {time}");
        // Read as more than one byte, or written to, it is refused like a port that no device owns.
        assert!(board.port_read(WALL_CLOCK, &mut [0; 4]).is_err());
        assert!(board.port_write(WALL_CLOCK, &[0]).is_err());
        assert!(board.port_read(WALL_CLOCK_END + 1, &mut [0]).is_err());
    }
}
