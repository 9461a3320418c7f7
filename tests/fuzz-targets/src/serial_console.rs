//! The UART, written and read in any order, its state saved and taken up again. What must hold: the log keeps its limit.

use crate::input::{Input, file};
use sandboxvm_vmm::devices::console::{BoundedLog, MIN_LIMIT, SerialConsole, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Input: pairs of a register and a value; bit 3 of the register reads instead, bit 4 saves and restores.
pub fn serial_console(data: &[u8]) {
    let log_file = file(b"");
    let log = || BoundedLog::new(log_file.try_clone().expect("a descriptor"), MIN_LIMIT).expect("a file of our own");
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
                console = SerialConsole::restored(line(), log(), &state).expect("its own state");
                assert_eq!(console.save(), state);
            }
            // A state from a damaged file.
            24..28 => {
                let registers = std::array::from_fn(|at| value.rotate_left(u32::try_from(at).unwrap_or(0)) ^ register);
                let state = SerialState { divisor: [value, register], registers };
                if let Ok(restored) = SerialConsole::restored(line(), log(), &state) {
                    console = restored;
                }
            }
            // Output in bulk.
            _ => (0..register >> 3).for_each(|_| console.write(0, value)),
        }
    }
    assert!(log_file.metadata().expect("a file of our own").len() <= MIN_LIMIT);
}
