//! One sandbox, as a caller holds it: what it was made as, what it does, and everything that can be asked of it.

use crate::{
    agent::AgentError,
    audit::{AuditError, Event, Trail},
    control::{ControlClient, ControlError},
    directory::{CONSOLE_LOG, DirectoryError, SandboxDirectory, VMM_LOG},
    end::{self, EndError, NOTICE_WITHIN, POLL},
    ending::{self, Interruption},
    exec::Exec,
    home::Home,
    identity::{self, Identity},
    in_use::{self, InUse},
    last_words::LastWords,
    limits, lock,
    record::SandboxRecord,
    silence::{self, Silence, SilentPart, Step, bounded},
    state::{self, State},
    supervision::rules::AtEnd,
    wire::WireError,
};
use sandboxvm_protocol::{
    agent::{CText, CTextError, ExecRequest, MAX_ARGUMENTS_TOTAL},
    identity::SandboxId,
    vmm::{ControlRequest, ExitReason, Timeline, VmStats, VmStatus},
};
use std::path::PathBuf;
use tokio::time::{Instant, sleep};

/// Why a process was not run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Nothing to run.
    #[error("the command is empty")]
    NoCommand,
    /// An argument that no program can be given.
    #[error("{what}: {source}")]
    Argument {
        /// Which.
        what: String,
        /// Why.
        source: CTextError,
    },
    /// Arguments and environment together are too long.
    #[error("arguments and environment take {0} bytes, and Linux accepts at most {MAX_ARGUMENTS_TOTAL}")]
    TooLong(usize),
    /// The sandbox does not run.
    #[error("sandbox {sandbox} is {state}")]
    NotRunning {
        /// Its name, else its ID.
        sandbox: String,
        /// What it does instead.
        state: State,
    },
    /// The sandbox ended meanwhile.
    #[error("sandbox {sandbox} ended while the command was running: {reason}{last_words}")]
    Ended {
        /// Its name, else its ID.
        sandbox: String,
        /// Why.
        reason: ExitReason,
        /// What its logs end with; nothing when nothing went wrong.
        last_words: LastWords,
    },
    /// Its VMM vanished meanwhile.
    #[error("sandbox {sandbox} ended while the command was running: its VMM disappeared (killed?){last_words}")]
    Vanished {
        /// Its name, else its ID.
        sandbox: String,
        /// What its logs end with.
        last_words: LastWords,
    },
    /// It was taken away from under the request.
    #[error("sandbox {sandbox} {how} before the request was completed")]
    Interrupted {
        /// Its name, else its ID.
        sandbox: String,
        /// What became of it.
        how: Interruption,
    },
    /// It is there, and does not answer.
    #[error("sandbox {sandbox} does not answer: {silence}")]
    Unresponsive {
        /// Its name, else its ID.
        sandbox: String,
        /// Which part of it.
        silence: Silence,
    },
    /// The agent refused or failed.
    #[error("{0}")]
    Agent(#[from] AgentError),
    /// The VMM's control socket failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The sandbox did not become ready.
    #[error("sandbox {0} is still booting after {limit} s", limit = silence::BOOT.as_secs())]
    NotReady(String),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// What cannot be logged is not done.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

impl ExecError {
    /// True when the request cannot succeed again since its machine, or all of the sandbox, is gone: it was removed, it
    /// expired, or its machine ended.
    #[must_use]
    pub fn is_of_an_ended_sandbox(&self) -> bool {
        match self {
            Self::Interrupted { how, .. } => *how != Interruption::Reset,
            Self::Ended { .. } | Self::Vanished { .. } => true,
            Self::NotRunning { state, .. } => matches!(state, State::Exited { .. } | State::Dead),
            _ => false,
        }
    }
}

/// A log of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The guest's serial console: kernel and agent. Hostile bytes.
    Console,
    /// The VMM's own messages.
    Vmm,
}

/// One sandbox.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) home: Home,
    pub(crate) directory: SandboxDirectory,
    pub(crate) record: SandboxRecord,
}

impl Sandbox {
    /// Its ID.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.record.id
    }

    pub(crate) fn label(&self) -> String {
        self.record.name.as_ref().map_or_else(|| self.record.id.to_string(), ToString::to_string)
    }

    /// What it was made as.
    #[must_use]
    pub fn record(&self) -> &SandboxRecord {
        &self.record
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// What it does now.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn state(&self) -> Result<State, DirectoryError> {
        state::read(&self.directory)
    }

    /// What its VMM last said of itself, true or not any more.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn vmm_status(&self) -> Result<Option<VmStatus>, DirectoryError> {
        state::status(&self.directory)
    }

    /// Which of its limits are not in force, and why; one sentence each.
    #[must_use]
    pub fn unkept_limits(&self) -> Vec<String> {
        limits::unkept(&self.directory)
    }

    /// At most the last `cap` bytes of a log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self, log: Log, cap: u64) -> Result<Vec<u8>, DirectoryError> {
        let name = match log {
            Log::Console => CONSOLE_LOG,
            Log::Vmm => VMM_LOG,
        };
        self.directory.read_tail(name, cap)
    }

    /// Runs a process. The sandbox's own environment comes before the request's; a sandbox that still boots is waited
    /// for.
    ///
    /// # Errors
    /// Every [`ExecError`].
    pub async fn exec(&self, mut request: ExecRequest) -> Result<Exec, ExecError> {
        let own = self.record.env.iter().filter(|text| !is_set(&request.env, text));
        let own: Vec<CText> = own
            .map(|text| CText::try_from(text.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|source| ExecError::Argument { what: "environment of the sandbox".into(), source })?;
        request.env.splice(0..0, own);
        check_request(&request)?;
        let identity = self.reachable().await?;
        let trail = self.trail();
        let exec = trail.append(Event::exec(&request))?;
        match Exec::start(&self.directory, identity.as_ref(), request).await {
            Ok(mut started) => {
                trail.note(Event::Started { exec, pid: started.pid });
                started.log_end(trail);
                Ok(started)
            }
            Err(error) => {
                trail.note(Event::NotStarted { exec, reason: error.to_string() });
                Err(self.explain(error).await)
            }
        }
    }

    /// Its audit log.
    #[must_use]
    pub fn trail(&self) -> Trail {
        Trail::of(&self.home, &self.record.id)
    }

    /// Logs how its machine ended, if it did: before another takes its place.
    pub(crate) fn note_end(&self) -> Result<(), DirectoryError> {
        if let Some(reason) = self.state()?.end() {
            self.trail().note(Event::MachineEnded { reason });
        }
        Ok(())
    }

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
            if let Some(how) = ending::since_opened(&self.directory, &self.trail()) {
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
        ending::since_opened(&self.directory, &self.trail())
    }

    /// Says that its time is over and that it is about to be ended for that: those who use it learn why, and so does its
    /// log. For owners that keep a sandbox's time themselves; a supervisor does it for those it keeps.
    pub fn announce_expiry(&self, then: AtEnd) {
        ending::announce(&self.directory, Interruption::Expired);
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
        match identity::settle(&self.directory, &self.record).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Counters of its VMM.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn stats(&self) -> Result<VmStats, ControlError> {
        self.control().await?.stats().await
    }

    /// When its machine came to life.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn timeline(&self) -> Result<Timeline, ControlError> {
        self.control().await?.timeline().await
    }

    /// Stops all vCPUs between two instructions. Nothing but [`Self::resume`] has them go on, also where the sandbox was
    /// paused already because nobody used it.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn pause(&self) -> Result<(), ControlError> {
        self.control().await?.ask(ControlRequest::Pause).await?;
        in_use::stay_paused(&self.directory)?;
        self.trail().note(Event::Paused);
        Ok(())
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn resume(&self) -> Result<(), ControlError> {
        let mut control = self.control().await?;
        // Its idle time begins anew.
        let in_use = InUse::begin(&self.directory).await;
        control.ask(ControlRequest::Resume).await?;
        drop(in_use);
        self.trail().note(Event::Resumed);
        Ok(())
    }

    pub(crate) async fn control(&self) -> Result<ControlClient, ControlError> {
        match (ControlClient::connect(&self.directory).await, self.state()) {
            // Nobody listens where nothing runs.
            (Err(_), Ok(state)) if !state.is_live() => Err(ControlError::NotRunning { sandbox: self.label(), state }),
            (connected, _) => Ok(connected?.called(self.label())),
        }
    }

    /// Ends its VMM now, with everything that it started: by request, and by SIGKILL when that takes more than a second.
    /// Nothing happens when all of it is gone. Returns when it has let go of everything.
    ///
    /// # Errors
    /// Every [`EndError`].
    pub async fn kill(&self) -> Result<(), EndError> {
        self.end().await.map(drop)
    }

    /// As [`Self::kill`]; false when there was nothing to end.
    pub(crate) async fn end(&self) -> Result<bool, EndError> {
        end::now(&self.home, &self.directory, self.id()).await
    }
}

/// True when `env` sets the variable that `entry` sets.
fn is_set(env: &[CText], entry: &str) -> bool {
    let key_and_equals = entry.split_inclusive('=').next().unwrap_or(entry).as_bytes();
    env.iter().any(|other| other.as_bytes().starts_with(key_and_equals))
}

/// Refuses what the agent could not run, before anything is sent.
pub(crate) fn check_request(request: &ExecRequest) -> Result<(), ExecError> {
    if request.argv.first().is_none_or(|program| program.as_bytes().is_empty()) {
        return Err(ExecError::NoCommand);
    }
    let total = request.argv.iter().chain(&request.env).map(|text| text.as_bytes().len() + 1).sum();
    if total > MAX_ARGUMENTS_TOTAL { Err(ExecError::TooLong(total)) } else { Ok(()) }
}

impl From<WireError> for ExecError {
    fn from(error: WireError) -> Self {
        Self::Agent(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::tests::manager_with;
    use std::time::Duration;

    fn request(argv: &[&str]) -> ExecRequest {
        ExecRequest::plain(argv.iter().map(|word| CText::try_from(*word).unwrap()).collect())
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is_sent() {
        assert!(matches!(check_request(&request(&[])), Err(ExecError::NoCommand)));
        assert!(matches!(check_request(&request(&[""])), Err(ExecError::NoCommand)));
        check_request(&request(&["echo", ""])).unwrap();
        let part = "x".repeat(127 * 1024);
        let message = check_request(&request(&[part.as_str(); 9])).unwrap_err().to_string();
        assert!(message.contains("arguments and environment take 1170441 bytes"), "{message}");
    }

    #[test]
    fn a_variable_of_the_request_hides_the_sandboxs() {
        let env = [CText::try_from("AB=1").unwrap()];
        assert!(is_set(&env, "AB=2") && is_set(&env, "AB="));
        assert!(!is_set(&env, "A=2") && !is_set(&env, "ABC=2"));
    }

    #[tokio::test]
    async fn nothing_runs_in_a_dead_sandbox_and_it_says_so_by_name() {
        let (_dir, manager) = manager_with(&["abcdefgh"]);
        let sandbox = manager.find("abcdefgh").unwrap();
        assert_eq!(sandbox.state().unwrap(), State::Dead);
        let error = sandbox.exec(request(&["true"])).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo is not running"), "{error}");
        let error = sandbox.stop(Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("sandbox demo: it is not running"), "{error}");
    }
}
