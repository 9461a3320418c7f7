//! `supervise`: serves the ports and applies the rules of a sandbox. Internal; started by other commands.

use crate::{background::leave_the_caller, failure::Failure, runtime};
use clap::Args;
use sandboxvm_manager::{Manager, keeper};
use std::{fs::OpenOptions, io::Write, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Serve the ports and apply the rules of a sandbox until it ends
#[derive(Debug, Args)]
pub(crate) struct Supervise {
    /// The program of the processes of a network
    #[arg(long)]
    egress: Option<PathBuf>,
    /// The program of the process of a share
    #[arg(long)]
    share: Option<PathBuf>,
    /// The home
    home: PathBuf,
    /// ID of the sandbox
    sandbox: String,
}

impl Supervise {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        leave_the_caller();
        let mut is_ready = false;
        let kept = self.keep(&mut is_ready);
        if let Err(failure) = &kept
            && !is_ready
        {
            // For the command that started it; later failures are only logged.
            let _ = std::io::stdout().write_all(failure.text().as_bytes());
        }
        kept
    }

    fn keep(&self, is_ready: &mut bool) -> Result<u8, Failure> {
        let mut manager = Manager::open(&self.home)?;
        if let Some(egress) = &self.egress {
            manager = manager.with_network_program(egress.clone());
        }
        if let Some(share) = &self.share {
            manager = manager.with_share_program(share.clone());
        }
        runtime::block_on(async {
            let mut ends = Vec::new();
            for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
                ends.push(signal(kind)?);
            }
            let told_to_end = async {
                let [terminate, interrupt, hangup] = ends.as_mut_slice() else { return };
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
            };
            let ready = || {
                *is_ready = true;
                say_ready();
            };
            keeper::keep(&manager, &self.sandbox, ready, told_to_end).await?;
            Ok(0)
        })
    }
}

/// Reports to the caller that the supervisor is ready, and closes the pipe to it.
fn say_ready() {
    // The caller may be gone, or may not read.
    let _ = std::io::stdout().write_all(keeper::READY.as_bytes());
    let _ = std::io::stdout().flush();
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}
