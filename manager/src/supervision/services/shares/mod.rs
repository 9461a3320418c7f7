//! Serves the live shares of a sandbox: keeps a process for each of them, and gives it connections to the
//! guest. May not read a byte of such a connection, or open anything in a share.
//!
//! When a process ends, what the guest waits for fails, and another process serves the mount. A directory that
//! cannot be opened is not served, and the log says so; the other shares and services are not affected.

mod keeping;

use crate::{
    home::directory::SandboxDirectory,
    limits::admission,
    mounts::share_copy,
    supervision::{
        SuperviseError,
        file::Supervision,
        log::Log,
        service::{Context, Service},
    },
};
use futures_util::future::BoxFuture;
use keeping::Keeping;
use std::{io, path::PathBuf};
use tokio::task::JoinHandle;

/// Why the shares of a sandbox are not served.
#[derive(Debug, thiserror::Error)]
pub enum ShareFailure {
    /// There is no program that serves them.
    #[error("the bundle has no program that serves shares")]
    NoProgram,
    /// The program cannot be used.
    #[error("cannot use {}: {source}", .program.display())]
    Program {
        /// Path of the program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The service of the shares.
#[derive(Default)]
pub(super) struct Shares {
    keeping: Vec<JoinHandle<()>>,
}

impl Shares {
    fn begin(&mut self, context: &mut Context) -> Result<(), SuperviseError> {
        if !context.record.shares {
            return Ok(());
        }
        let home = &context.sandbox.home;
        let program = home.share_program().cloned().ok_or(ShareFailure::NoProgram)?;
        if let Err(source) = std::fs::metadata(&program) {
            return Err(ShareFailure::Program { program, source }.into());
        }
        let floor = admission::disk_floor(home)?;
        for share in context.sandbox.record.mounts.shares() {
            let root = match share_copy::open_share(home, &context.directory, &share) {
                Ok(root) => root,
                Err(error) => {
                    context.log.note(format_args!("the share at {} is not served: {error}", share.at));
                    continue;
                }
            };
            let keeping = Keeping {
                directory: SandboxDirectory::open(context.directory.path().to_owned())?,
                program: program.clone(),
                log: Log::open(&context.directory)?,
                root,
                number: share.number,
                at: share.at.to_string(),
                argument: keeping::argument(&share, floor),
            };
            self.keeping.push(tokio::spawn(keeping.run()));
        }
        Ok(())
    }
}

impl Service for Shares {
    fn is_needed(&self, record: &Supervision) -> bool {
        record.shares
    }

    fn start<'a>(&'a mut self, context: &'a mut Context) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(async move { self.begin(context) })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for keeping in std::mem::take(&mut self.keeping) {
                // Drops the process, which kills it. An error reports that the task was stopped.
                keeping.abort();
                let _ = keeping.await;
            }
        })
    }
}
