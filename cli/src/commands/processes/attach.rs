//! `attach`: connects to a process that another command started in a sandbox.

use crate::{
    failure::Failure,
    options,
    options::supervision,
    process_io::{self, Attendance, Leaving, Outcome, signals::Signals, terminal},
    runtime,
};
use clap::Args;
use sandboxvm_manager::{AttachSpec, View};

/// Attach to a process: show its recent and new output until it ends
#[derive(Debug, Args)]
#[command(
    after_help = "Detaching does not end the process. To detach, type Ctrl-P Ctrl-Q with -it, otherwise Ctrl-C twice (the \
                  first is passed to the process), or close the terminal.\n\n\
                  Exit code: that of the process; 128+N if signal N killed it or made this command detach; 124 on timeout; \
                  125 if sandboxvm failed."
)]
pub(crate) struct Attach {
    /// Name or ID of the sandbox
    sandbox: String,
    /// ID of the process, as printed by `exec -d` and `ps`
    pid: u32,
    /// Pass standard input to the process, in place of the client that did so before; it must have been started with -i
    #[arg(short, long)]
    interactive: bool,
    /// Resize the terminal of the process with this one; it must have been started with -t
    #[arg(short, long)]
    tty: bool,
}

impl Attach {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let raw = options::is_raw(self.interactive, self.tty)?;
        let attendance =
            Attendance { interactive: self.interactive, raw, tty: self.tty, timeout: None, leaving: Leaving::LetsItBe };
        let spec = AttachSpec {
            pid: self.pid,
            view: View::Attend,
            stdin: self.interactive,
            terminal: self.tty.then(terminal::size),
        };
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            match process_io::attach(&sandbox, spec, &attendance, &mut signals).await? {
                Outcome::Ended(code) | Outcome::Left(code) => Ok(code),
            }
        })
    }
}
