//! What a caller holds: the [`Manager`] of a home, and a [`Sandbox`] found in it.

use crate::{
    agent::{AgentConnection, AgentError},
    control::{ControlClient, ControlError},
    directory::{CONSOLE_LOG, DirectoryError, SandboxDirectory, VMM_LOG},
    end::{self, EndError, NOTICE_WITHIN},
    exec::Exec,
    home::{Home, HomeError},
    names,
    record::{RecordError, SandboxRecord},
    state::{self, State},
    wire::WireError,
};
use sandboxvm_protocol::{
    agent::{AgentMessage, CText, CTextError, ExecRequest, HostMessage, MAX_ARGUMENTS_TOTAL},
    identity::{SandboxId, SandboxName},
    vmm::{ControlRequest, ExitReason, VmStats, VmStatus},
};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, timeout, timeout_at};

/// How long an exec waits for a sandbox that another process is still booting.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// What the guest itself may take to shut down, after its processes ended.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);
/// Shortest ID prefix that is looked up.
const MIN_PREFIX: usize = 4;

/// Why a sandbox was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None is called that.
    #[error("no sandbox has the name or ID {0:?}; `sandboxvm ls` lists them")]
    Unknown(String),
    /// Several IDs begin like that.
    #[error("{prefix:?} begins the IDs of several sandboxes, {first} and {second} among them; give more of the ID")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// One.
        first: SandboxId,
        /// Another.
        second: SandboxId,
    },
    /// Its record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Why a process was not run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Nothing to run.
    #[error("no command: state a program and its arguments after `--`")]
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
    #[error(
        "arguments and environment take {0} bytes, {MAX_ARGUMENTS_TOTAL} is the most; pass data by stdin or a file"
    )]
    TooLong(usize),
    /// The sandbox does not run.
    #[error("sandbox {id} is {state}{}", hint(.state, .id))]
    NotRunning {
        /// Which.
        id: SandboxId,
        /// What it does instead.
        state: State,
    },
    /// The sandbox ended meanwhile.
    #[error("sandbox {id} ended while the command ran: {reason}")]
    Ended {
        /// Which.
        id: SandboxId,
        /// Why.
        reason: ExitReason,
    },
    /// Its VMM vanished meanwhile.
    #[error("sandbox {0} ended while the command ran: its VMM vanished (killed?)")]
    Vanished(SandboxId),
    /// The agent refused or failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The VMM's control socket failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The sandbox did not become ready.
    #[error("sandbox {0} is still booting after {limit} s; `sandboxvm logs {0}` may say why", limit = READY_WITHIN.as_secs())]
    NotReady(SandboxId),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

fn hint(state: &State, id: &SandboxId) -> String {
    match state {
        State::Paused => format!("; `sandboxvm resume {id}` lets it go on"),
        State::Exited { .. } | State::Dead => {
            format!("; `sandboxvm logs {id}` shows its console, `sandboxvm rm {id}` removes it")
        }
        State::Creating | State::Running => String::new(),
    }
}

/// Why a sandbox did not stop.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It does not run.
    #[error("sandbox {id} is {state}")]
    NotRunning {
        /// Which.
        id: SandboxId,
        /// What it does instead.
        state: State,
    },
    /// It cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// A log of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The guest's serial console: kernel and agent. Hostile bytes.
    Console,
    /// The VMM's own messages.
    Vmm,
}

/// One row of `ls`.
#[derive(Debug, Clone, Serialize)]
pub struct SandboxSummary {
    /// What it was made as.
    #[serde(flatten)]
    pub record: SandboxRecord,
    /// What it does.
    #[serde(flatten)]
    pub state: State,
}

/// The sandboxes of one home.
#[derive(Debug, Clone)]
pub struct Manager {
    pub(crate) home: Home,
}

impl Manager {
    /// Opens the home at `root`, making it first where it is missing.
    ///
    /// # Errors
    /// [`HomeError::Create`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        Ok(Self { home: Home::open(root)? })
    }

    /// Path of the home.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.home.root()
    }

    /// Finds a sandbox by ID, name, or the beginning of an ID (at least four characters).
    ///
    /// # Errors
    /// Every [`FindError`].
    pub fn find(&self, reference: &str) -> Result<Sandbox, FindError> {
        let id = self.resolve(reference)?;
        self.open_sandbox(&id)?.ok_or_else(|| FindError::Unknown(reference.to_owned()))
    }

    /// Which sandbox is meant; it may be gone by the time it is opened.
    pub(crate) fn resolve(&self, reference: &str) -> Result<SandboxId, FindError> {
        if let Ok(id) = SandboxId::try_from(reference.to_owned())
            && self.home.sandbox(&id).exists()
        {
            return Ok(id);
        }
        let by_name = SandboxName::try_from(reference.to_owned()).ok();
        if let Some(id) = by_name.and_then(|name| names::resolve(&self.home, &name)) {
            return Ok(id);
        }
        let mut matching = self.ids()?.into_iter().filter(|id| id.as_str().starts_with(reference));
        match (matching.next(), matching.next()) {
            (Some(id), None) if reference.len() >= MIN_PREFIX => Ok(id),
            (Some(first), Some(second)) if reference.len() >= MIN_PREFIX => {
                Err(FindError::Ambiguous { prefix: reference.to_owned(), first, second })
            }
            _ => Err(FindError::Unknown(reference.to_owned())),
        }
    }

    /// All sandboxes, oldest first, with what they do. One whose record is damaged is left out; `prune` names it.
    ///
    /// # Errors
    /// When the home cannot be listed.
    pub fn list(&self) -> Result<Vec<SandboxSummary>, DirectoryError> {
        let mut summaries: Vec<SandboxSummary> = self
            .ids()?
            .iter()
            .filter_map(|id| self.open_sandbox(id).ok().flatten())
            .filter_map(|sandbox| Some(SandboxSummary { state: sandbox.state().ok()?, record: sandbox.record }))
            .collect();
        summaries.sort_by(|a, b| (a.record.created_at, &a.record.id).cmp(&(b.record.created_at, &b.record.id)));
        Ok(summaries)
    }

    pub(crate) fn ids(&self) -> Result<Vec<SandboxId>, DirectoryError> {
        let path = self.home.sandboxes();
        let entries = fs::read_dir(&path).map_err(|e| DirectoryError::new("list", &path, e))?;
        Ok(entries.flatten().filter_map(|e| SandboxId::try_from(e.file_name().into_string().ok()?).ok()).collect())
    }

    /// `None` when there is none with this ID.
    fn open_sandbox(&self, id: &SandboxId) -> Result<Option<Sandbox>, FindError> {
        let directory = match SandboxDirectory::open(self.home.sandbox(id)) {
            Ok(directory) => directory,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match SandboxRecord::read(&directory) {
            Ok(record) => Ok(Some(Sandbox { home: self.home.clone(), directory, record })),
            // Deleted between the two steps.
            Err(RecordError::Directory(error)) if error.is_not_found() && !directory.exists() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
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
        let own = self.record.env.iter().map(|text| CText::try_from(text.as_str()));
        let own: Vec<CText> = own
            .collect::<Result<_, _>>()
            .map_err(|source| ExecError::Argument { what: "environment of the sandbox".into(), source })?;
        request.env.splice(0..0, own);
        check_request(&request)?;
        match self.state()? {
            State::Running => {}
            State::Creating => self.ready().await?,
            state => return Err(ExecError::NotRunning { id: self.id().clone(), state }),
        }
        match Exec::start(&self.directory, request).await {
            Ok(exec) => Ok(exec),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Turns the failure of a connection to the agent into why the machine behind it is gone, when it is: call it with
    /// what [`crate::OutputStream::next`] failed with. Takes up to a second.
    pub async fn explain(&self, error: AgentError) -> ExecError {
        if !error.is_disconnect() {
            return error.into();
        }
        match end::gone_within(&self.directory, NOTICE_WITHIN).await {
            Ok(true) => match self.state() {
                Ok(State::Exited { reason }) => ExecError::Ended { id: self.id().clone(), reason },
                _ => ExecError::Vanished(self.id().clone()),
            },
            _ => error.into(),
        }
    }

    async fn ready(&self) -> Result<(), ExecError> {
        let ready = async {
            let mut client = ControlClient::connect(&self.directory).await?;
            client.ask(ControlRequest::Watch).await?;
            client.ready().await
        };
        match timeout(READY_WITHIN, ready).await {
            Err(_) => Err(ExecError::NotReady(self.id().clone())),
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                end::gone_within(&self.directory, NOTICE_WITHIN).await?;
                match self.state()? {
                    state if state.is_live() => Err(error.into()),
                    state => Err(ExecError::NotRunning { id: self.id().clone(), state }),
                }
            }
        }
    }

    /// Counters of its VMM.
    ///
    /// # Errors
    /// When there is no VMM or it does not answer.
    pub async fn stats(&self) -> Result<VmStats, ControlError> {
        ControlClient::connect(&self.directory).await?.stats().await
    }

    /// Stops all vCPUs between two instructions.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn pause(&self) -> Result<(), ControlError> {
        ControlClient::connect(&self.directory).await?.ask(ControlRequest::Pause).await
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// When there is no VMM, it does not answer, or it refuses.
    pub async fn resume(&self) -> Result<(), ControlError> {
        ControlClient::connect(&self.directory).await?.ask(ControlRequest::Resume).await
    }

    /// Ends it in order: processes get SIGTERM and `grace` to end, file systems are synced. What does not end by then is
    /// ended as by [`Self::kill`]. A paused sandbox cannot be asked and is ended at once.
    ///
    /// # Errors
    /// Every [`StopError`].
    pub async fn stop(&self, grace: Duration) -> Result<(), StopError> {
        let state = self.state()?;
        if !state.is_live() {
            return Err(StopError::NotRunning { id: self.id().clone(), state });
        }
        if state == State::Running && self.shut_down(grace).await? {
            return Ok(());
        }
        Ok(self.kill().await?)
    }

    /// Asks the agent; true when the VMM has ended.
    async fn shut_down(&self, grace: Duration) -> Result<bool, DirectoryError> {
        let request = HostMessage::Shutdown { grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX) };
        // After its processes the guest itself needs a moment; one that stalls gets no more than that.
        let deadline = Instant::now() + grace + SHUTDOWN_WITHIN;
        let asked = timeout_at(deadline, AgentConnection::request(&self.directory, &request)).await;
        match asked {
            // The connection stays open until the end, so that the agent is not told the caller went away.
            Ok(Ok((_connection, AgentMessage::ShuttingDown))) => {
                end::gone_within(&self.directory, deadline - Instant::now()).await
            }
            _ => Ok(false),
        }
    }

    /// Ends its VMM now: by request, and by SIGKILL when that takes more than a second. Nothing happens when it is
    /// gone. Returns when it has let go of everything.
    ///
    /// # Errors
    /// Every [`EndError`].
    pub async fn kill(&self) -> Result<(), EndError> {
        end::now(&self.directory, self.id()).await
    }
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
