//! Reaches a sandbox's agent: waits until it listens, tells it its identity, and explains a broken connection by what
//! became of the sandbox.

use crate::{
    audit::Event,
    guest::{
        agent::{AgentConnection, AgentError},
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
use tokio::time::{Instant, sleep};

impl Sandbox {
    /// Waits until its agent can be asked something. The value is what it is to be told first.
    pub(crate) async fn reachable(&self) -> Result<Option<Identity>, ExecError> {
        let mut state = self.state()?;
        if state == State::Paused && in_use::is_idle_paused(&self.directory) {
            // From here until the connection is there the idle rule's time is what keeps it awake.
            drop(InUse::begin(&self.directory).await.map_err(AgentError::from)?);
            state = self.state()?;
        }
        match state {
            State::Running => {}
            State::Creating => self.ready().await?,
            state => return Err(ExecError::NotRunning { sandbox: self.label(), state }),
        }
        Ok(identity::due(&self.directory, &self.record))
    }

    /// Turns the failure of a connection to the agent into what became of the sandbox behind it, when something did: call
    /// it with what [`crate::OutputStream::next`] failed with. Takes up to a second.
    pub async fn explain(&self, error: AgentError) -> ExecError {
        if let AgentError::Silent(silence) = error {
            return match self.state() {
                // Paused while it was asked, say.
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
            // A VMM that is being ended by somebody who said why has that written down before.
            if let Ok(Some(_no_vmm)) = lock::try_exclude_vmm(&self.directory) {
                return self.how_it_ended();
            }
            if Instant::now() >= deadline {
                return error.into();
            }
            sleep(POLL).await;
        }
    }

    /// Why there is no VMM any more.
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

    /// What became of it since it was found, if something did: of a process that was killed, whether it was for that.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        interruption::since_opened(&self.directory, &self.trail())
    }

    /// Says that its time is over and that it is about to be ended for that: those who use it learn why, and so does its
    /// log. For owners that keep a sandbox's time themselves; a supervisor does it for those it keeps.
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

    /// Tells the machine who it is, if it was not told since it was restored, forked or reset: clock, entropy,
    /// hostname, machine-id. [`Self::exec`] does it by itself; this is for whoever hands the sandbox on.
    ///
    /// # Errors
    /// When the agent does not answer or refuses.
    pub async fn settle(&self) -> Result<(), ExecError> {
        match AgentConnection::settle(&self.directory, &self.record).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }
}
