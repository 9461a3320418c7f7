//! A supervisor: starts an egress process and its dialer, and talks to both.

use super::guest::Guest;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use sandboxvm_egress::packets::{self, PacketError};
use sandboxvm_protocol::{
    egress::{
        DialerEvent, DialerRequest, DialerSettings, DialerSetup, EgressEvent, EgressRequest, EgressSetup, FlowRecord,
        MAX_MESSAGE, NameRecord, NetworkSettings, Reach, SavedPin, TrafficCounters, TrustAnchors, UpstreamProxy, WIRE,
    },
    frame::Message,
    vmm::FdIndex,
};
use std::{
    collections::VecDeque,
    io::{IoSlice, Seek, Write},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// What a sandbox of a test begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub settings: NetworkSettings,
    pub pins: Vec<SavedPin>,
    pub host_ports: Vec<u16>,
    pub resolvers: Vec<SocketAddr>,
    pub proxy: Option<UpstreamProxy>,
    /// Certificates of authorities as PEM.
    pub trust: String,
}

/// Settings with these rules, where the addresses of the servers are above the floor. They are the host's, so each is opened
/// by itself.
pub fn listed(allow: &[&str], deny: &[&str]) -> NetworkSettings {
    let texts = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
    NetworkSettings {
        reach: Reach::Listed,
        allow: texts(allow),
        deny: texts(deny),
        opened: (1..=4).flat_map(|host| [format!("198.51.100.{host}/32"), format!("2001:db8::{host}/128")]).collect(),
        ..NetworkSettings::default()
    }
}

/// The same for everything above the floor.
pub fn public() -> NetworkSettings {
    // The addresses of the servers are opened, so they need rules even here.
    NetworkSettings { reach: Reach::Public, ..listed(&["198.51.100.0/24", "2001:db8::/32"], &[]) }
}

/// A pin of `name` at 198.51.100.`host`, and at the IPv6 address with the same end.
pub fn pin(name: &str, host: u8) -> [SavedPin; 2] {
    let pin = |address| SavedPin { name: name.to_owned(), address, seconds: 3000 };
    [pin([198, 51, 100, host].into()), pin([0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()].into())]
}

impl From<NetworkSettings> for Setup {
    fn from(settings: NetworkSettings) -> Self {
        let (pins, host_ports, resolvers, trust) = Default::default();
        Self { settings, pins, host_ports, resolvers, proxy: None, trust }
    }
}

pub struct Sandbox {
    egress: Child,
    dialer: Child,
    control: OwnedFd,
    dialer_control: OwnedFd,
    events: VecDeque<EgressEvent>,
}

impl Sandbox {
    pub fn start(setup: impl Into<Setup>) -> (Self, Guest) {
        let setup = setup.into();
        let (frames, egress_frames) = pair();
        let (requests, egress_requests) = pair();
        let (control, egress_control) = pair();
        let (dialer_control, dialer_end) = pair();
        let dialer = spawn(&["dialer"], dialer_end);
        let begin = DialerRequest::Begin(DialerSetup {
            requests: FdIndex(0),
            opened: setup.settings.opened.clone(),
            resolvers: setup.resolvers.clone(),
            proxy: setup.proxy.clone(),
            settings: DialerSettings { host_ports: setup.host_ports.clone(), ..DialerSettings::default() },
        });
        send(&dialer_control, &begin, &[requests.as_fd()]);
        let resolvers = u8::try_from(setup.resolvers.len()).unwrap();
        let egress = spawn(&[], egress_control);
        let begin = EgressRequest::Begin(Box::new(EgressSetup {
            frames: FdIndex(0),
            dialer: FdIndex(1),
            settings: setup.settings,
            resolvers,
            pins: setup.pins,
            trust: TrustAnchors { files: vec![FdIndex(2)] },
        }));
        let mut trust = tempfile::tempfile().unwrap();
        trust.write_all(setup.trust.as_bytes()).unwrap();
        trust.rewind().unwrap();
        send(&control, &begin, &[egress_frames.as_fd(), egress_requests.as_fd(), trust.as_fd()]);
        drop((egress_frames, egress_requests, requests));
        let mut sandbox = Self { egress, dialer, control, dialer_control, events: VecDeque::new() };
        assert!(matches!(sandbox.event(), EgressEvent::Ready));
        let ready = packets::receive_message::<DialerEvent>(&sandbox.dialer_control).unwrap().unwrap();
        assert_eq!(ready.message, DialerEvent::Ready);
        (sandbox, Guest::new(frames))
    }

    /// The next event.
    pub fn event(&mut self) -> EgressEvent {
        self.event_within(Duration::from_secs(20)).expect("an event")
    }

    pub fn event_within(&mut self, time: Duration) -> Option<EgressEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        self.receive(time)
    }

    fn receive(&mut self, time: Duration) -> Option<EgressEvent> {
        let timeout = Timespec::try_from(time).unwrap();
        let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
            return None;
        }
        match packets::receive_message::<EgressEvent>(&self.control) {
            Ok(Some(received)) => Some(received.message),
            Ok(None) => panic!("the egress process ended: {:?}", self.egress.wait()),
            Err(PacketError::Socket(error)) => panic!("the egress process ended: {error} {:?}", self.egress.wait()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The answer to `request`. Other events are kept for later.
    pub fn ask(&mut self, request: &EgressRequest) -> EgressEvent {
        send(&self.control, request, &[]);
        loop {
            let event = self.receive(Duration::from_secs(20)).expect("an answer");
            if matches!(event, EgressEvent::Configured(_) | EgressEvent::Pins(_) | EgressEvent::Counters(_)) {
                return event;
            }
            self.events.push_back(event);
        }
    }

    pub fn tell(&self, request: &EgressRequest) {
        send(&self.control, request, &[]);
    }

    pub fn configure(&mut self, settings: NetworkSettings) -> Result<(), String> {
        match self.ask(&EgressRequest::Configure(Box::new(settings))) {
            EgressEvent::Configured(result) => result,
            other => panic!("{other:?}"),
        }
    }

    pub fn counters(&mut self) -> TrafficCounters {
        match self.ask(&EgressRequest::Counters) {
            EgressEvent::Counters(counters) => counters,
            other => panic!("{other:?}"),
        }
    }

    /// The next record of a flow.
    pub fn flow(&mut self) -> FlowRecord {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let EgressEvent::Flow(record) = self.event() {
                return record;
            }
        }
        panic!("no record of a flow");
    }

    /// The next record of a question.
    pub fn name(&mut self) -> NameRecord {
        loop {
            if let EgressEvent::Name(record) = self.event() {
                return record;
            }
        }
    }

    pub fn egress_pid(&self) -> u32 {
        self.egress.id()
    }

    /// The egress process and its dialer.
    pub fn pids(&self) -> [u32; 2] {
        [self.egress.id(), self.dialer.id()]
    }

    /// A line of the status of the egress process in KiB, such as `VmRSS`.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.egress.id())).unwrap();
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        found.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("the line")
    }

    /// User and system time of the egress process.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.egress.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Returns true if the egress process ends soon.
    pub fn ended(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if self.egress.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub fn end_dialer(&mut self) {
        self.dialer.kill().unwrap();
        self.dialer.wait().unwrap();
    }

    /// Closes the supervisor's end of the socket.
    pub fn hang_up(&mut self) {
        self.control = pair().0;
    }

    pub fn assert_alive(&mut self) {
        assert_eq!(self.egress.try_wait().unwrap(), None, "the egress process has ended");
        self.counters();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for child in [&mut self.egress, &mut self.dialer] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn spawn(arguments: &[&str], socket: OwnedFd) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxvm-egress"));
    command.args(arguments).stdin(Stdio::from(socket)).spawn().expect("the egress process")
}

fn send(socket: &OwnedFd, message: &impl Message, fds: &[BorrowedFd<'_>]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut packet = Vec::new();
    WIRE.append_message(&mut packet, message, MAX_MESSAGE).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    sendmsg(socket, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL).unwrap();
}
