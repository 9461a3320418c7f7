//! The two processes of a network, from their start to their link to the machine. They are started
//! and ended together.

use super::{packets, process::Process};
use crate::{
    home::directory::SandboxDirectory,
    network::{
        operator::Provided,
        proxy::{ProxyError, Upstream},
        record::NetworkRecord,
        secrets::Kept,
        trust,
    },
    vmm::{
        card,
        control::{ControlClient, ControlError},
        group::Group,
        wire::WireError,
    },
};
use sandboxvm_protocol::{
    egress::{
        DialerEvent, DialerRequest, DialerSettings, DialerSetup, EgressEvent, EgressRequest, EgressSetup,
        NetworkSettings, SavedPin, TrustAnchors, UpstreamProxy,
    },
    vmm::FdIndex,
};
use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::timeout;

/// The argument that makes the program a dialer.
const DIALER: &std::ffi::CStr = c"dialer";
/// Maximum time until a process is confined and ready, which takes some milliseconds. The limit allows
/// for a host that swaps.
const READY_WITHIN: Duration = Duration::from_secs(4);

/// Maximum number of events of a process that has ended. Its socket holds fewer of any size that occurs.
const MAX_LAST_EVENTS: usize = 1024;
/// Maximum time to read them. The socket of a process that has ended has an end, and no read waits.
const DRAINED_WITHIN: Duration = Duration::from_secs(1);

/// Why a network is down.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFailure {
    /// There is no program for it.
    #[error("the bundle has no egress program")]
    NoProgram,
    /// A process cannot be started.
    #[error("cannot run {}: {source}", .program.display())]
    Spawn {
        /// Path of the program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A process ended or broke the protocol.
    #[error("{0}")]
    Process(String),
    /// The VMM does not take the network.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The upstream proxy cannot be used.
    #[error("cannot use the proxy {proxy}: {problem}")]
    Proxy {
        /// Where it is.
        proxy: String,
        /// Why.
        problem: ProxyError,
    },
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
}

/// The processes of one network.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) egress: Process,
    dialer: Process,
    /// What the dialer has from its start.
    pub(super) fixed: Fixed,
}

/// What a dialer has from its start: another one needs another dialer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fixed {
    operator: Provided,
    proxy: Option<Upstream>,
}

impl Fixed {
    /// Returns what the dialer of the sandbox in `directory` is to have.
    pub(super) fn of(record: &NetworkRecord, directory: &SandboxDirectory) -> Result<Self, NetworkFailure> {
        let kept = Kept::read(directory).map_err(|error| NetworkFailure::Settings(error.to_string()))?;
        let proxy = record.upstream(&kept).map_err(|problem| unusable(record, problem))?;
        Ok(Self { operator: record.operator.clone(), proxy })
    }

    /// Returns true if a proxy carries the connections.
    pub(super) fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }
}

impl Pair {
    /// Starts both processes and gives the machine in `directory` a link.
    pub(super) async fn start(
        directory: &SandboxDirectory,
        program: &Path,
        record: &NetworkRecord,
        pins: Vec<SavedPin>,
    ) -> Result<Self, NetworkFailure> {
        let settings =
            record.egress_settings(directory).map_err(|error| NetworkFailure::Settings(error.to_string()))?;
        let fixed = Fixed::of(record, directory)?;
        let proxy = match &fixed.proxy {
            Some(proxy) => Some(proxy.resolved().await.map_err(|problem| unusable(record, problem))?),
            None => None,
        };
        // First, because a process that is started in the control group of a sandbox that is being
        // ended would be in the way.
        let mut control = ControlClient::connect(directory).await?;
        let failed = |source| NetworkFailure::Spawn { program: program.to_owned(), source };
        let group = Group::of(directory);
        let dialer = Process::spawn("dialer", program, Some(DIALER), group.as_ref()).map_err(failed)?;
        let egress = Process::spawn("egress process", program, None, group.as_ref()).map_err(failed)?;
        let mut pair = Self { egress, dialer, fixed };
        let (frames, frames_of_egress) = packets::pair().map_err(failed)?;
        match timeout(READY_WITHIN, pair.begin(record, proxy, settings, pins, &frames_of_egress)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(pair.failed(&error).await),
            Err(_) => return Err(pair.failed(&WireError::Io(io::ErrorKind::TimedOut.into())).await),
        }
        drop(frames_of_egress);
        card::attach(&mut control, &frames).await?;
        Ok(pair)
    }

    pub(super) async fn begin(
        &mut self,
        record: &NetworkRecord,
        proxy: Option<UpstreamProxy>,
        settings: NetworkSettings,
        pins: Vec<SavedPin>,
        frames: impl AsFd,
    ) -> Result<(), WireError> {
        let (dialing, dialed) = packets::pair()?;
        let opened: Vec<String> = record.operator.opened.iter().map(ToString::to_string).collect();
        let resolvers = record.operator.resolvers();
        let known = if record.settings.dns.is_empty() { resolvers.len() } else { record.settings.dns.len() };
        let dialer = DialerRequest::Begin(DialerSetup {
            requests: FdIndex(0),
            opened,
            resolvers,
            proxy,
            settings: dialer_settings(record),
        });
        let trust = trust::files(&record.operator.trust);
        let egress = EgressRequest::Begin(Box::new(EgressSetup {
            frames: FdIndex(0),
            dialer: FdIndex(1),
            settings,
            resolvers: u8::try_from(known).unwrap_or(u8::MAX),
            pins,
            trust: TrustAnchors { files: (2..).map(FdIndex).take(trust.len()).collect() },
        }));
        self.dialer.packets.send(&dialer, &[dialed.as_fd()]).await?;
        let mut files = vec![frames.as_fd(), dialing.as_fd()];
        files.extend(trust.iter().map(AsFd::as_fd));
        self.egress.packets.send(&egress, &files).await?;
        drop((dialing, dialed));
        let DialerEvent::Ready = self.dialer.packets.next().await?;
        match self.egress.packets.next().await? {
            EgressEvent::Ready => Ok(()),
            _ => Err(WireError::Unexpected("event before the process is ready")),
        }
    }

    /// Puts other settings in force. After an error the pair must not be used any more.
    pub(super) async fn configure(
        &mut self,
        record: &NetworkRecord,
        settings: NetworkSettings,
    ) -> Result<(), WireError> {
        self.dialer.packets.send(&DialerRequest::Configure(dialer_settings(record)), &[]).await?;
        let DialerEvent::Ready = self.dialer.packets.next().await?;
        self.egress.packets.send(&EgressRequest::Configure(Box::new(settings)), &[]).await
    }

    /// Returns the next event of the egress process. Ends with an error once one of the processes has
    /// ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<EgressEvent, WireError> {
        let Self { egress, dialer, .. } = self;
        tokio::select! {
            event = egress.packets.next() => event,
            () = dialer.child.ended() => Err(WireError::Closed),
        }
    }

    /// Ends both processes, and returns which of them failed and how.
    pub(super) async fn failed(self, error: &WireError) -> NetworkFailure {
        let Self { egress, dialer, .. } = self;
        let culprit = if dialer.child.has_ended() { dialer } else { egress };
        let how = culprit.child.end().await;
        NetworkFailure::Process(if error.is_disconnect() { how } else { format!("{how} ({error})") })
    }

    /// Ends both processes, and returns once they have ended.
    pub(super) async fn kill(mut self) {
        tokio::join!(self.egress.child.kill(), self.dialer.child.kill());
    }

    /// Ends both processes, and returns what the egress process reported before.
    pub(super) async fn finish(mut self) -> Vec<EgressEvent> {
        // First, because a process that was taken over may report without end.
        tokio::join!(self.egress.child.kill(), self.dialer.child.kill());
        let mut events = Vec::new();
        let drain = async {
            while events.len() < MAX_LAST_EVENTS
                && let Ok(event) = self.egress.packets.next().await
            {
                events.push(event);
            }
        };
        // What was read until then is returned.
        let _ = timeout(DRAINED_WITHIN, drain).await;
        events
    }
}

fn unusable(record: &NetworkRecord, problem: ProxyError) -> NetworkFailure {
    let proxy = record.proxy().map(|(proxy, _)| proxy.to_string()).unwrap_or_default();
    NetworkFailure::Proxy { proxy, problem }
}

fn dialer_settings(record: &NetworkRecord) -> DialerSettings {
    DialerSettings { host_ports: record.settings.host_ports(), tenant_resolvers: record.settings.dns.clone() }
}

#[cfg(test)]
impl Pair {
    pub(super) fn of(egress: Process, dialer: Process, fixed: Fixed) -> Self {
        Self { egress, dialer, fixed }
    }
}
