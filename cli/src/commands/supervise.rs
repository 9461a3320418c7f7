//! `supervise`: what other commands start to keep up a sandbox's ports and rules. Not for people.

use crate::{failure::Failure, runtime};
use clap::Args;
use rustix::io::close;
use sandboxvm_manager::{Manager, keeper};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::fd::RawFd,
    path::PathBuf,
};
use tokio::signal::unix::{SignalKind, signal};

/// Keep up ports and rules of a sandbox until it ends
#[derive(Debug, Args)]
pub(crate) struct Supervise {
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
            // To whoever started it; what comes later is for the log alone.
            let _ = std::io::stdout().write_all(failure.text().as_bytes());
        }
        kept
    }

    fn keep(&self, is_ready: &mut bool) -> Result<u8, Failure> {
        let manager = Manager::open(&self.home)?;
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

/// Says so, and lets go of the caller's end.
fn say_ready() {
    // A caller that is gone, or did not want to know, is as good.
    let _ = std::io::stdout().write_all(keeper::READY.as_bytes());
    let _ = std::io::stdout().flush();
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// A session of its own, so that no terminal's Ctrl-C is for it, and none of the files that the caller's caller left open.
fn leave_the_caller() {
    // Fails for the leader of a process group, which a shell makes of it when somebody starts it by hand.
    let _ = rustix::process::setsid();
    let inherited: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in inherited {
        // SAFETY: this is the first thing the process does, on its only thread: above the standard streams there are only
        // descriptors that it was started with, which nothing in it owns, and the listing's own, which is closed by now.
        unsafe { close(fd) };
    }
}
