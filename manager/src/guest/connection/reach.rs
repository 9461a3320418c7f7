//! Reaches the agent of a sandbox: waits until it listens, gives it its identity, and explains a
//! broken connection by what happened to the sandbox.

use crate::{
    audit::Event,
    guest::{
        connection::agent::{AgentConnection, AgentError},
        error::ExecError,
        identity::{self, Identity},
        in_use::{self, InUse},
        interruption::{self, Interruption},
        silence::{Silence, SilentPart, Step, bounded},
    },
    limits::lifetime::AtEnd,
    sandbox::Sandbox,
    vmm::{
        control::ControlClient,
        end::{self, NOTICE_WITHIN, POLL},
        last_words::LastWords,
        lock,
        state::State,
    },
};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep};

impl Sandbox {
    /// Waits until the agent accepts requests. Returns the identity that has to be sent first, if
    /// any.
    pub(crate) fn reachable<'a>(&'a self) -> BoxFuture<'a, Result<Option<Identity>, ExecError>> {
        Box::pin(async move {
            let mut state = self.state()?;
            if state == State::Paused && in_use::is_idle_paused(&self.directory) {
                // From here until the connection is open, the time of the idle rule keeps the sandbox
                // running.
                drop(InUse::begin(&self.directory).await.map_err(AgentError::from)?);
                state = self.state()?;
            }
            match state {
                State::Running => {}
                State::Creating => self.ready().await?,
                state => return Err(ExecError::NotRunning { sandbox: self.label(), state }),
            }
            Ok(identity::due(&self.directory, &self.record))
        })
    }

    /// Turns the failure of a connection to the agent into what happened to the sandbox, if
    /// something did. Call it with the error of [`crate::OutputStream::next`]. Takes up to a
    /// second.
    pub fn explain<'a>(&'a self, error: AgentError) -> BoxFuture<'a, ExecError> {
        Box::pin(async move {
            if let AgentError::Silent(silence) = error {
                return match self.state() {
                    // For example, it was paused during the request.
                    Ok(state @ (State::Paused | State::Exited { .. } | State::Dead))
                        if silence.part == SilentPart::Agent =>
                    {
                        ExecError::NotRunning { sandbox: self.label(), state }
                    }
                    _ => ExecError::Unresponsive { sandbox: self.label(), silence },
                };
            }
            if !error.is_disconnect() {
                return error.into();
            }
            let deadline = Instant::now() + NOTICE_WITHIN;
            loop {
                if let Some(how) = interruption::since_opened(&self.directory, &self.trail()) {
                    return ExecError::Interrupted { sandbox: self.label(), how };
                }
                // A process that ends a VMM for a reason records the reason before.
                if let Ok(Some(_no_vmm)) = lock::try_exclude_vmm(&self.directory) {
                    return self.how_it_ended();
                }
                if Instant::now() >= deadline {
                    return error.into();
                }
                sleep(POLL).await;
            }
        })
    }

    /// Returns why there is no VMM any more.
    fn how_it_ended(&self) -> ExecError {
        let sandbox = self.label();
        match self.state() {
            Ok(State::Exited { reason }) if reason.is_orderly() => {
                ExecError::Ended { sandbox, reason, last_words: LastWords::default() }
            }
            Ok(State::Exited { reason }) => {
                ExecError::Ended { sandbox, reason, last_words: LastWords::read(&self.directory) }
            }
            _ => ExecError::Vanished { sandbox, last_words: LastWords::read(&self.directory) },
        }
    }

    /// Returns what happened to the sandbox since it was found, if anything. For a process that was
    /// killed, this shows whether that was the cause.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        interruption::since_opened(&self.directory, &self.trail())
    }

    /// Announces that the sandbox has expired and is about to be ended, for clients that use it and
    /// in its audit log. For owners that maintain the timeout of a sandbox themselves; a supervisor
    /// does this for its own sandbox.
    pub fn announce_expiry(&self, then: AtEnd) {
        interruption::announce(&self.directory, Interruption::Expired);
        self.trail().note(Event::TimeUp { then });
    }

    async fn ready(&self) -> Result<(), ExecError> {
        let ready = async {
            let mut client = ControlClient::connect(&self.directory).await?.called(self.label());
            client.watch().await?;
            client.ready().await
        };
        match bounded(&self.directory, Step::Boot, ready).await {
            Err(Silence { part: SilentPart::Agent, .. }) => Err(ExecError::NotReady(self.label())),
            Err(silence) => Err(ExecError::Unresponsive { sandbox: self.label(), silence }),
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                end::gone_within(&self.directory, NOTICE_WITHIN).await?;
                match self.state()? {
                    state if state.is_live() => Err(error.into()),
                    state => Err(ExecError::NotRunning { sandbox: self.label(), state }),
                }
            }
        }
    }

    /// Sends the machine its identity (clock, entropy, hostname, machine-id) if it has not received
    /// it since it was restored, forked or reset, and makes it mount its workspace and its volumes. [`Self::exec`] does this automatically; this
    /// method is for a caller that hands the sandbox on.
    ///
    /// # Errors
    /// When the agent does not answer or refuses.
    pub async fn settle(&self) -> Result<(), ExecError> {
        match AgentConnection::settle(&self.directory, &self.record).await {
            Ok(()) => self.mount_all().await,
            Err(error) => Err(self.explain(error).await),
        }
    }
}
