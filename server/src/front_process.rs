//! The front as the launcher sees it: a process that it starts, serves over one socket, and ends.

use crate::{
    front::serve_front,
    front_log::FrontLog,
    launcher::{SharedLauncher, serve::Channel},
};
use std::{
    fmt,
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    process::{Command as StdCommand, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::oneshot,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// How long a front may take until it serves.
const SERVES_WITHIN: Duration = Duration::from_secs(30);
/// How long a front may take to end once its socket is closed, or its grace is over.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// How long the last lines of a front that has ended may take.
const LOGGED_WITHIN: Duration = Duration::from_secs(1);

/// Where the front runs.
pub enum FrontMode {
    /// In a separate process.
    Process {
        /// Returns the command that runs [`serve_front`] with the socket that is its standard input.
        command: Box<dyn Fn() -> StdCommand + Send + Sync>,
        /// How its log is written to stderr, from where this process takes it.
        log: FrontLog,
    },
    /// In this process, with all that it may do. For debugging.
    SingleProcess,
}

impl fmt::Debug for FrontMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process { .. } => "Process",
            Self::SingleProcess => "SingleProcess",
        })
    }
}

#[derive(Debug)]
pub(crate) struct Front {
    channel: Arc<Channel>,
    serving: AbortOnDropHandle<String>,
    running: Running,
    /// Ends with the front's end of its log.
    logged: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
enum Running {
    /// Killed when dropped.
    Process(Child),
    Task(AbortOnDropHandle<()>),
}

impl Front {
    /// Starts one, and returns once it serves.
    pub(crate) async fn start(
        launcher: &SharedLauncher,
        listeners: &[TcpListener],
        mode: &FrontMode,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let ours = UnixStream::from_std(ours).map_err(failed)?;
        let listeners = listeners.iter().map(|listener| listener.try_clone().map(OwnedFd::from));
        let listeners = listeners.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let (serves, serving) = oneshot::channel();
        let channel = Channel::new(Arc::clone(launcher), ours, listeners, Some(serves));
        let mut logged = None;
        let running = match mode {
            FrontMode::Process { command, log } => {
                let mut command = Command::from(command());
                command.stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::piped()).kill_on_drop(true);
                let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
                let (stderr, log) = (child.stderr.take(), *log);
                logged = stderr.map(|stderr| {
                    AbortOnDropHandle::new(tokio::spawn(async move {
                        if let Err(error) = log.pass_on(stderr, std::io::stderr()).await {
                            tracing::warn!(%error, "cannot read the log of the front");
                        }
                    }))
                });
                Running::Process(child)
            }
            FrontMode::SingleProcess => Running::Task(AbortOnDropHandle::new(tokio::spawn(async move {
                if let Err(error) = serve_front(theirs.into()).await {
                    tracing::error!(%error, "the front does not serve");
                }
            }))),
        };
        let served = AbortOnDropHandle::new(tokio::spawn({
            let channel = Arc::clone(&channel);
            async move { channel.serve().await.to_string() }
        }));
        let mut front = Self { channel, serving: served, running, logged };
        let outcome = tokio::select! {
            serving = timeout(SERVES_WITHIN, serving) => match serving {
                Ok(Ok(())) => return Ok(front),
                _ => "it did not serve in time".to_owned(),
            },
            ended = front.ended() => ended,
        };
        Err(outcome)
    }

    /// Returns how it ended, once it has.
    pub(crate) async fn ended(&mut self) -> String {
        let channel = (&mut self.serving).await.unwrap_or_else(|error| error.to_string());
        let Running::Process(child) = &mut self.running else { return channel };
        // It may only have broken the protocol.
        let status = match timeout(ENDS_WITHIN, child.wait()).await {
            Ok(status) => status,
            Err(_) => child.kill().await.and_then(|()| child.try_wait().map(Option::unwrap_or_default)),
        };
        self.has_logged().await;
        match status {
            Ok(status) => format!("{channel} ({status})"),
            Err(error) => format!("{channel} ({error})"),
        }
    }

    /// Tells it to end, and returns when it has, with its requests complete as far as `grace` allows.
    pub(crate) async fn end(mut self, grace: Duration) {
        if timeout(ENDS_WITHIN, self.channel.end()).await.is_err() {
            tracing::warn!("the front does not read its socket");
        }
        let within = grace + ENDS_WITHIN;
        let ended = match &mut self.running {
            Running::Process(child) => timeout(within, child.wait()).await.is_ok(),
            Running::Task(task) => timeout(within, task).await.is_ok(),
        };
        if !ended {
            tracing::warn!("the front did not end in time");
        }
        self.has_logged().await;
    }

    /// Returns once its last lines are in the log.
    async fn has_logged(&mut self) {
        if let Some(logged) = &mut self.logged {
            let _ = timeout(LOGGED_WITHIN, logged).await;
        }
    }
}
