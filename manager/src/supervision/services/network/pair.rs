//! The two processes of a network, from their start to their link to the machine. They are started
//! and ended together.

use super::{packets, process::Process};
use crate::{
    home::directory::SandboxDirectory,
    network::{operator::Provided, record::NetworkRecord},
    vmm::{
        control::{ControlClient, ControlError},
        descriptors::LaunchFiles,
        group::Group,
        wire::WireError,
    },
};
use sandboxvm_protocol::{
    egress::{
        DialerEvent, DialerRequest, DialerSettings, DialerSetup, EgressEvent, EgressRequest, EgressSetup,
        NetworkSettings, SavedPin, TrustAnchors,
    },
    vmm::{ControlReply, ControlRequest, FdIndex},
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
/// Maximum time until a process is confined and ready, which takes some milliseconds, and until a VMM
/// has attached a socket. The limit allows for a host that swaps.
const READY_WITHIN: Duration = Duration::from_secs(4);

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
    pub(super) operator: Provided,
}

impl Pair {
    /// Starts both processes and gives the machine in `directory` a link.
    pub(super) async fn start(
        directory: &SandboxDirectory,
        program: &Path,
        record: &NetworkRecord,
        pins: Vec<SavedPin>,
    ) -> Result<Self, NetworkFailure> {
        // First, because a process that is started in the control group of a sandbox that is being
        // ended would be in the way.
        let mut control = ControlClient::connect(directory).await?;
        let failed = |source| NetworkFailure::Spawn { program: program.to_owned(), source };
        let group = Group::of(directory);
        let dialer = Process::spawn("dialer", program, Some(DIALER), group.as_ref()).map_err(failed)?;
        let egress = Process::spawn("egress process", program, None, group.as_ref()).map_err(failed)?;
        let mut pair = Self { egress, dialer, operator: record.operator.clone() };
        let (frames, frames_of_egress) = packets::pair().map_err(failed)?;
        match timeout(READY_WITHIN, pair.begin(record, pins, &frames_of_egress)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(pair.failed(&error).await),
            Err(_) => return Err(pair.failed(&WireError::Io(io::ErrorKind::TimedOut.into())).await),
        }
        drop(frames_of_egress);
        let mut files = LaunchFiles::default();
        let request = ControlRequest::AttachNetwork { frames: files.add(&frames) };
        match control.request_with(request, &files, READY_WITHIN).await? {
            Ok(ControlReply::Done) => Ok(pair),
            Ok(_) => Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
            Err(refusal) => Err(ControlError::from(refusal).into()),
        }
    }

    async fn begin(&mut self, record: &NetworkRecord, pins: Vec<SavedPin>, frames: impl AsFd) -> Result<(), WireError> {
        let (dialing, dialed) = packets::pair()?;
        let opened: Vec<String> = record.operator.opened.iter().map(ToString::to_string).collect();
        let resolvers = record.operator.resolvers();
        let known = if record.settings.dns.is_empty() { resolvers.len() } else { record.settings.dns.len() };
        let dialer = DialerRequest::Begin(DialerSetup {
            requests: FdIndex(0),
            opened: opened.clone(),
            resolvers,
            settings: dialer_settings(record),
        });
        let egress = EgressRequest::Begin(Box::new(EgressSetup {
            frames: FdIndex(0),
            dialer: FdIndex(1),
            settings: record.settings.settings(&opened),
            resolvers: u8::try_from(known).unwrap_or(u8::MAX),
            pins,
            trust: TrustAnchors::default(),
        }));
        self.dialer.packets.send(&dialer, &[dialed.as_fd()]).await?;
        self.egress.packets.send(&egress, &[frames.as_fd(), dialing.as_fd()]).await?;
        drop((dialing, dialed));
        let DialerEvent::Ready = self.dialer.packets.next().await?;
        match self.egress.packets.next().await? {
            EgressEvent::Ready => Ok(()),
            _ => Err(WireError::Unexpected("event before the process is ready")),
        }
    }

    /// Puts other settings in force. After an error the pair must not be used any more.
    pub(super) async fn configure(&mut self, record: &NetworkRecord) -> Result<(), WireError> {
        self.dialer.packets.send(&DialerRequest::Configure(dialer_settings(record)), &[]).await?;
        let DialerEvent::Ready = self.dialer.packets.next().await?;
        let opened: Vec<String> = record.operator.opened.iter().map(ToString::to_string).collect();
        let settings: NetworkSettings = record.settings.settings(&opened);
        self.egress.packets.send(&EgressRequest::Configure(Box::new(settings)), &[]).await
    }

    /// Returns the next event of the egress process. Ends with an error once one of the processes has
    /// ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<EgressEvent, WireError> {
        let Self { egress, dialer, .. } = self;
        tokio::select! {
            event = egress.packets.next() => event,
            () = dialer.ended() => Err(WireError::Closed),
        }
    }

    /// Ends both processes, and returns which of them failed and how.
    pub(super) async fn failed(self, error: &WireError) -> NetworkFailure {
        let Self { egress, dialer, .. } = self;
        let culprit = if dialer.has_ended() { dialer } else { egress };
        let how = culprit.end().await;
        NetworkFailure::Process(if error.is_disconnect() { how } else { format!("{how} ({error})") })
    }

    /// Ends both processes, and returns once they have ended.
    pub(super) async fn kill(self) {
        tokio::join!(self.egress.kill(), self.dialer.kill());
    }
}

fn dialer_settings(record: &NetworkRecord) -> DialerSettings {
    DialerSettings { host_ports: record.settings.host_ports(), tenant_resolvers: record.settings.dns.clone() }
}
