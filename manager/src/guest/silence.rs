//! How long a request waits for a sandbox that does not answer, and which part of it does not.
//!
//! A VMM answers its control socket from its event loop whatever its guest does, so a stopped VMM
//! can be distinguished from a slow guest within seconds. A guest gets more time, depending on how
//! its kernel is executed. A request that is answered in time costs one timer: the VMM and its host
//! mode are checked only after [`FIRST_LOOK`].
//!
//! Streams have no limit here: a process may write nothing for a year.

use crate::{
    home::directory::SandboxDirectory,
    vmm::{
        control::{ANSWER_WITHIN, ControlClient, ControlError},
        state,
    },
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::{
    agent::{HostMessage, files::FileOperation},
    machine::HostMode,
};
use serde::{Deserialize, Serialize};
use std::{fmt, future::Future, time::Duration};
use tokio::time::{Instant, sleep};

/// Time after which the VMM is checked for the first time.
pub(crate) const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Time between further checks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Time for the handshake with a native guest. The connection stays in memory, and an agent that
/// runs natively accepts it within a millisecond.
const NATIVE_HANDSHAKE: Duration = Duration::from_secs(10);
/// The same for guests whose kernel is interpreted, of which many may share one processor: the VMM
/// itself waits two minutes for a connection.
const INTERPRETED_HANDSHAKE: Duration = Duration::from_secs(150);
/// Time for an answer of a native guest. Starting a process may read its program from a disk that
/// others keep busy.
const NATIVE_ANSWER: Duration = Duration::from_secs(60);
const INTERPRETED_ANSWER: Duration = Duration::from_secs(150);
/// Time for work of the guest, such as removing a tree of a million files or syncing a file that
/// was written.
const WORK: Duration = Duration::from_secs(600);
/// Time for a boot that another process started.
pub(crate) const BOOT: Duration = Duration::from_secs(300);

/// A part of a sandbox that did not answer in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("its {part} did not answer within {} s", .within.as_secs())]
pub struct Silence {
    /// The part.
    pub part: SilentPart,
    /// The time that it had.
    pub within: Duration,
}

/// A part of a sandbox that may not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SilentPart {
    /// The process that runs the machine. It was stopped, or is stuck in the host's kernel.
    Vmm,
    /// The guest, which runs and does not answer.
    Agent,
}

impl fmt::Display for SilentPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "VMM",
            Self::Agent => "guest agent",
        })
    }
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// The connection, the agreed version and the machine's identity.
    Handshake,
    /// An answer that comes before any work.
    Answer,
    /// An answer that comes after work of the guest.
    Work,
    /// The end of a boot.
    Boot,
}

impl Step {
    /// Returns the step of the first answer to `request`.
    pub(crate) fn answer_to(request: &HostMessage) -> Self {
        match request {
            // A program in the guest may be slow to accept the connection.
            HostMessage::Connect(_) => Self::Work,
            HostMessage::Files(request) => match request.operation {
                FileOperation::List { .. }
                | FileOperation::Remove { .. }
                | FileOperation::SetMode { .. }
                | FileOperation::SetOwner { .. } => Self::Work,
                _ => Self::Answer,
            },
            _ => Self::Answer,
        }
    }

    fn limit(self, host_mode: Option<HostMode>) -> Duration {
        let is_native = matches!(host_mode, Some(HostMode::Vmx | HostMode::Svm));
        match self {
            Self::Handshake if is_native => NATIVE_HANDSHAKE,
            Self::Handshake => INTERPRETED_HANDSHAKE,
            Self::Answer if is_native => NATIVE_ANSWER,
            Self::Answer => INTERPRETED_ANSWER,
            Self::Work => WORK,
            Self::Boot => BOOT,
        }
    }
}

/// Returns the result of `answer`, unless a part of the sandbox that it depends on does not answer
/// for too long.
pub(crate) async fn bounded<T>(
    directory: &SandboxDirectory,
    step: Step,
    answer: impl Future<Output = T>,
) -> Result<T, Silence> {
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        silence = watch(directory, step) => Err(silence),
    }
}

/// Returns once a part of the sandbox has not answered for too long.
pub(crate) fn watch<'a>(directory: &'a SandboxDirectory, step: Step) -> BoxFuture<'a, Silence> {
    Box::pin(async move {
        let began = Instant::now();
        sleep(FIRST_LOOK).await;
        // The VMM reports the mode: with a wrong one it only gets the longer of two limits.
        let host_mode = state::status(directory).ok().flatten().map(|status| status.host_mode);
        let limit = step.limit(host_mode);
        loop {
            if !vmm_answers(directory).await {
                return Silence { part: SilentPart::Vmm, within: ANSWER_WITHIN };
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Silence { part: SilentPart::Agent, within: limit };
            }
            sleep(left.min(LOOK_EVERY)).await;
        }
    })
}

/// Returns false if the VMM accepts no connection or no request. If it has ended, the connection
/// that the caller waits for shows that.
async fn vmm_answers(directory: &SandboxDirectory) -> bool {
    let asked = async { ControlClient::connect(directory).await?.timeline().await };
    !matches!(asked.await, Err(ControlError::Silent(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::directory::{CONTROL_SOCKET, STATUS};
    use sandboxvm_protocol::vmm::{
        ControlReply, ControlRequest, MAX_MESSAGE, Phase, Timeline, VmStatus, VmmMessage, WIRE,
    };
    use std::future::pending;
    use tokio::net::UnixListener;

    const TIMELINE: Timeline = Timeline { process_start: 1, confined: 2, launched: 3, built: None, first_run: None };

    /// Creates a directory of a VMM that reports this mode, and its control socket.
    fn directory(host_mode: HostMode) -> (tempfile::TempDir, SandboxDirectory, UnixListener) {
        let home = tempfile::tempdir().unwrap();
        let directory = SandboxDirectory::create(home.path().join("x")).unwrap();
        let status = VmStatus {
            pid: 1,
            phase: Phase::Ready,
            host_mode,
            reason: None,
            missing: Vec::new(),
            clocks_jump: false,
            wire: 1,
        };
        directory.write_new(STATUS, &serde_json::to_vec(&status).unwrap()).unwrap();
        let listener = directory.listen(CONTROL_SOCKET).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        (home, directory, listener)
    }

    /// Answers every control request.
    async fn answering(listener: UnixListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut reader = crate::vmm::wire::FrameReader::new(reader, WIRE, MAX_MESSAGE);
                while reader.next_message::<ControlRequest>().await.is_ok() {
                    let reply = VmmMessage::Reply(ControlReply::Timeline(TIMELINE));
                    if crate::vmm::wire::send(&mut writer, WIRE, &reply, MAX_MESSAGE).await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stopped_vmm_is_distinguished_from_a_slow_guest_within_seconds() {
        for mode in [HostMode::Vmx, HostMode::Pvm] {
            let (_home, directory, _listener) = directory(mode);
            let began = Instant::now();
            let silence = bounded(&directory, Step::Work, pending::<()>()).await.unwrap_err();
            assert_eq!(silence, Silence { part: SilentPart::Vmm, within: ANSWER_WITHIN });
            assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_guest_gets_the_time_of_its_host_mode_and_step() {
        for (mode, step, limit) in [
            (HostMode::Vmx, Step::Handshake, 10),
            (HostMode::Svm, Step::Handshake, 10),
            (HostMode::Pvm, Step::Handshake, 150),
            (HostMode::Vmx, Step::Answer, 60),
            (HostMode::Pvm, Step::Answer, 150),
            (HostMode::Vmx, Step::Work, 600),
        ] {
            let (_home, directory, listener) = directory(mode);
            let vmm = tokio::spawn(answering(listener));
            let silence = bounded(&directory, step, pending::<()>()).await.unwrap_err();
            assert_eq!(
                silence,
                Silence { part: SilentPart::Agent, within: Duration::from_secs(limit) },
                "{mode:?} {step:?}"
            );
            vmm.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answer_is_awaited_while_the_vmm_answers() {
        let (_home, directory, listener) = directory(HostMode::Pvm);
        let vmm = tokio::spawn(answering(listener));
        let slow = async {
            sleep(Duration::from_secs(100)).await;
            7
        };
        assert_eq!(bounded(&directory, Step::Handshake, slow).await, Ok(7));
        vmm.abort();
    }
}
