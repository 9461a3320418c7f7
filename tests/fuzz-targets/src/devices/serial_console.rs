//! The UART, written and read in any order, and its state saved and restored. The log must stay
//! within its limit.

use crate::input::{Input, file};
use sandboxvm_vmm::devices::console::{BoundedLog, MIN_LIMIT, SerialConsole, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Input: pairs of a register and a value. Bit 3 of the register selects a read, bit 4 saves and
/// restores.
pub fn serial_console(data: &[u8]) {
    let log_file = file(b"");
    let log = || BoundedLog::new(log_file.try_clone().expect("a descriptor"), MIN_LIMIT).expect("the log is in memory");
    let line = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let mut console = SerialConsole::new(line(), log());
    let mut input = Input::new(data);
    while let (Some(register), Some(value)) = (input.byte(), input.byte()) {
        match register {
            0..8 => console.write(register, value),
            8..16 => {
                let _ = console.read(register - 8);
            }
            16..24 => {
                let state = console.save();
                console = SerialConsole::restored(line(), log(), &state).expect("a saved state is valid");
                assert_eq!(console.save(), state);
            }
            // A state as in a damaged file.
            24..28 => {
                let registers = std::array::from_fn(|at| value.rotate_left(u32::try_from(at).unwrap_or(0)) ^ register);
                let state = SerialState { divisor: [value, register], registers };
                if let Ok(restored) = SerialConsole::restored(line(), log(), &state) {
                    console = restored;
                }
            }
            // Much output.
            _ => (0..register >> 3).for_each(|_| console.write(0, value)),
        }
    }
    assert!(log_file.metadata().expect("the log is in memory").len() <= MIN_LIMIT);
}
