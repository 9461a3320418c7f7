//! `serve-front`: the process of `serve` that parses what comes from the network. Internal; started by `serve`.

use crate::{
    background::leave_the_caller,
    commands::server::serve::{LogFormat, observe},
    failure::Failure,
};
use clap::Args;
use sandboxvm_server::{FrontUser, confine, serve_front};
use std::os::fd::AsFd;

/// Serve the requests of a server until it ends
#[derive(Debug, Args)]
pub(crate) struct ServeFront {
    /// User ID to change to
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// Group ID to change to
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
    /// OpenTelemetry collector
    #[arg(long)]
    otlp: Option<String>,
    /// Format of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log: LogFormat,
}

impl ServeFront {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        leave_the_caller();
        let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
        let user = self.uid.zip(self.gid).map(|(uid, gid)| FrontUser { uid, gid });
        // Before any other thread, and before a byte of a client is read.
        confine(user, self.otlp.is_some())?;
        let _traces = observe(self.log, self.otlp.as_deref())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format_args!("cannot set up the event loop: {error}")))?;
        let served = runtime.block_on(serve_front(socket));
        // A task that does not end must not keep the process.
        runtime.shutdown_background();
        served?;
        Ok(0)
    }
}
