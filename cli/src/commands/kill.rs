//! `kill`: sends a signal to processes in a sandbox.

use crate::{failure::Failure, options::supervision, runtime};
use clap::Args;
use sandboxvm_manager::SignalNumber;

/// Send a signal to processes and their process groups
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Name or ID of the sandbox
    sandbox: String,
    /// IDs of processes, as printed by `exec -d` and `ps`
    #[arg(required = true, value_name = "PID")]
    pids: Vec<u32>,
    /// Signal to send: a name such as TERM or SIGTERM, or a number (1-64)
    #[arg(short, long, default_value = "TERM", value_parser = signal)]
    signal: SignalNumber,
}

impl Kill {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        runtime::block_on(async {
            let mut outcome = Ok(0);
            for pid in &self.pids {
                if let Err(error) = sandbox.signal(*pid, self.signal).await {
                    Failure::from(error).report();
                    outcome = Err(Failure::silent(125));
                }
            }
            outcome
        })
    }
}

/// Names of the signals from 1 on (signal(7), x86-64).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

fn signal(text: &str) -> Result<SignalNumber, String> {
    let unknown = || "expected a name such as TERM or SIGTERM, or a number between 1 and 64".to_owned();
    let number = match text.parse::<u8>() {
        Ok(number) => number,
        Err(_) => {
            let upper = text.to_ascii_uppercase();
            let name = upper.strip_prefix("SIG").unwrap_or(&upper);
            let index = NAMES.iter().position(|known| *known == name).ok_or_else(unknown)?;
            u8::try_from(index + 1).map_err(|_| unknown())?
        }
    };
    SignalNumber::try_from(number).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("SIGHUP", 1), ("sys", 31), ("64", 64), ("USR1", 10)] {
            assert_eq!(signal(text).unwrap().get(), number, "{text}");
        }
        for text in ["", "SIG", "0", "65", "256", "-9", "TERM ", "NOPE"] {
            assert!(signal(text).unwrap_err().contains("name such as TERM"), "{text}");
        }
    }
}
