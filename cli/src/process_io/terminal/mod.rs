//! The terminal of the caller: its size, and raw mode that is always undone, after SIGKILL by a [`guardian`].

pub(crate) mod guardian;

use crate::failure::Failure;
use guardian::Guardian;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use sandboxvm_manager::TerminalSize;
use std::io;

/// The size to use if none of our streams is a terminal.
const USUAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// Returns the size of our terminal.
pub(crate) fn size() -> TerminalSize {
    [rustix::stdio::stdout(), rustix::stdio::stdin(), rustix::stdio::stderr()]
        .into_iter()
        .filter_map(|fd| tcgetwinsize(fd).ok())
        .find(|size| size.ws_row > 0 && size.ws_col > 0)
        .map_or(USUAL, |size| TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Keeps stdin in raw mode while this value lives: every key is sent to the guest, including Ctrl-C.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
    /// Dropped after the terminal was restored.
    _guardian: Option<Guardian>,
}

impl RawMode {
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let guardian = Guardian::start();
        if let Err(error) = &guardian {
            let message = format!(
                "warning: the terminal stays in raw mode if this program is killed (`reset` restores it): {error}"
            );
            Failure::new(message).report();
        }
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before, _guardian: guardian.ok() })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Drain first, so that the last output is shown in raw mode. A terminal that hung up needs no settings.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}
