//! A dialer as a supervisor starts it.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use sandboxvm_egress::packets::{receive_message, send_with, to_packet};
use sandboxvm_protocol::{
    egress::{DialerEvent, DialerRequest, DialerSettings, DialerSetup, UpstreamProxy},
    vmm::FdIndex,
};
use std::{
    fs,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
};

pub struct Dialer {
    pub process: Child,
    pub supervisor: OwnedFd,
}

/// A pair of sockets as all wires here use.
pub fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

impl Dialer {
    /// Starts a dialer. Returns the egress process's end of its connection too.
    pub fn start(opened: &[&str], resolvers: &[SocketAddr], settings: DialerSettings) -> (Self, OwnedFd) {
        Self::start_as(0, opened, resolvers, settings)
    }

    /// Starts one that asks a proxy.
    pub fn start_with(proxy: UpstreamProxy) -> (Self, OwnedFd) {
        Self::start_set_up(0, |requests| DialerSetup {
            requests,
            opened: Vec::new(),
            resolvers: Vec::new(),
            proxy: Some(proxy),
            settings: DialerSettings::default(),
        })
    }

    /// The same by another user than root.
    pub fn start_as(user: u32, opened: &[&str], resolvers: &[SocketAddr], settings: DialerSettings) -> (Self, OwnedFd) {
        Self::start_set_up(user, |requests| DialerSetup {
            requests,
            opened: opened.iter().map(|net| (*net).to_owned()).collect(),
            resolvers: resolvers.to_vec(),
            proxy: None,
            settings,
        })
    }

    fn start_set_up(user: u32, setup: impl FnOnce(FdIndex) -> DialerSetup) -> (Self, OwnedFd) {
        let (supervisor, theirs) = pair();
        // A copy, since another user may not reach the directory of the build.
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("egress");
        fs::copy(env!("CARGO_BIN_EXE_sandboxvm-egress"), &program).unwrap();
        let mut command = Command::new(program);
        let process = command.arg("dialer").uid(user).gid(user).stdin(Stdio::from(theirs)).spawn().unwrap();
        let (requests, dialers_end) = pair();
        let begin = to_packet(&DialerRequest::Begin(setup(FdIndex(0)))).unwrap();
        send_with(&supervisor, &begin, Some(&dialers_end)).unwrap();
        let dialer = Self { process, supervisor };
        dialer.expect_ready();
        (dialer, requests)
    }

    pub fn configure(&self, settings: DialerSettings) {
        send_with(&self.supervisor, &to_packet(&DialerRequest::Configure(settings)).unwrap(), None).unwrap();
        self.expect_ready();
    }

    fn expect_ready(&self) {
        let event = receive_message::<DialerEvent>(&self.supervisor).unwrap().expect("the dialer has not ended");
        assert_eq!(event.message, DialerEvent::Ready);
    }

    pub fn wait(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
