//! The serial console: a 16550A whose output goes to a bounded log file. The guest decides what is in that file and
//! nothing else: never its size beyond the limit, never its name.

use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// Smallest limit that still holds a panic message.
pub const MIN_LIMIT: u64 = 4096;

/// A log that keeps its newest bytes: when it would pass its limit the older half is dropped.
#[derive(Debug)]
pub struct BoundedLog {
    file: File,
    len: u64,
    limit: u64,
}

impl BoundedLog {
    /// Appends to `file`, which holds at most `limit` bytes from now on (at least [`MIN_LIMIT`]).
    ///
    /// # Errors
    /// When the file's length cannot be read.
    pub fn new(file: File, limit: u64) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len, limit: limit.max(MIN_LIMIT) })
    }

    fn drop_older_half(&mut self) -> io::Result<()> {
        let keep = (self.limit / 2).min(self.len);
        let mut from = self.len - keep;
        let mut to = 0;
        let mut chunk = [0; 4096];
        while from < self.len {
            let n = self.file.read_at(&mut chunk, from)?;
            if n == 0 {
                break;
            }
            self.file.write_all_at(&chunk[..n], to)?;
            from += n as u64;
            to += n as u64;
        }
        self.file.set_len(to)?;
        self.len = to;
        Ok(())
    }
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len + bytes.len() as u64 > self.limit {
            self.drop_older_half()?;
        }
        let n = self.file.write_at(bytes, self.len)?;
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The UART's interrupt: an irqfd.
#[derive(Debug)]
pub struct SerialLine(EventFd);

impl Trigger for SerialLine {
    type E = io::Error;

    fn trigger(&self) -> Result<(), io::Error> {
        self.0.write(1)
    }
}

/// The UART's registers, for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low then high byte.
    pub divisor: [u8; 2],
    /// IER, IIR, LCR, LSR, MCR, MSR, SCR.
    pub registers: [u8; 7],
}

/// The UART.
pub struct SerialConsole {
    uart: Serial<SerialLine, NoEvents, BoundedLog>,
}

impl std::fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialConsole").field("log", self.uart.writer()).finish_non_exhaustive()
    }
}

impl SerialConsole {
    /// A UART that writes to `log` and interrupts through `line`.
    #[must_use]
    pub fn new(line: EventFd, log: BoundedLog) -> Self {
        Self { uart: Serial::new(SerialLine(line), log) }
    }

    /// A UART with these registers.
    ///
    /// # Errors
    /// When the UART cannot interrupt as its registers ask it to.
    pub fn restored(line: EventFd, log: BoundedLog, state: &SerialState) -> io::Result<Self> {
        let [
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let registers = vm_superio::serial::SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: Vec::new(),
        };
        let uart = Serial::from_state(&registers, SerialLine(line), NoEvents, log)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{error:?}")))?;
        Ok(Self { uart })
    }

    /// The registers as they stand. The console takes no input, so there is none to save.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let state = self.uart.state();
        SerialState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            registers: [
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
        }
    }

    /// The guest wrote register `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) {
        // A log that cannot be written (disk full) loses text, and the guest keeps running.
        let _ = self.uart.write(offset, value);
    }

    /// The guest read register `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_bytes_below_its_limit() {
        let file = tempfile::tempfile().unwrap();
        let mut log = BoundedLog::new(file.try_clone().unwrap(), MIN_LIMIT).unwrap();
        for i in 0..10_000u32 {
            log.write_all(format!("{i:07}\n").as_bytes()).unwrap();
            assert!(file.metadata().unwrap().len() <= MIN_LIMIT);
        }
        let mut end = [0; 8];
        file.read_exact_at(&mut end, file.metadata().unwrap().len() - 8).unwrap();
        assert_eq!(&end, b"0009999\n");
    }
}
