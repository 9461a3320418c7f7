//! `attach`: taking part in a process that somebody started in a sandbox.

use crate::{
    failure::Failure,
    options,
    process_io::{self, Attendance, Leaving, Outcome},
    runtime,
    signals::Signals,
    supervision, terminal,
};
use clap::Args;
use sandboxvm_manager::{AttachSpec, View};

/// Show what is kept of a process's output and all that follows, to its end
#[derive(Debug, Args)]
#[command(
    after_help = "Leaving it does not end it: Ctrl-P Ctrl-Q with -it, else a second Ctrl-C (the first is passed on), or \
                  the end of the terminal.\n\n\
                  Exit code: the process's own; 128+N killed by signal N, or left by it; 124 out of time; 125 sandboxvm \
                  failed."
)]
pub(crate) struct Attach {
    /// Name or ID of the sandbox
    sandbox: String,
    /// ID of the process, as `exec -d` and `ps` print it
    pid: u32,
    /// Pass standard input on to it, in place of whoever did so far; it must have been started with -i
    #[arg(short, long)]
    interactive: bool,
    /// Have its terminal follow the size of this one; it must have been started with -t
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
