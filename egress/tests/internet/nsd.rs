//! NSD, Debian's authoritative name server, in the internet of a test.

use super::Internet;
use std::{
    fs,
    net::UdpSocket,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Where it listens.
pub const AT: &str = "9.9.9.9";

const ZONE: &str = "
$ORIGIN example.
$TTL 600
@       SOA ns.example. mail.example. 1 600 600 600 40
        NS  ns
ns      A   9.9.9.9
www     A   1.1.1.1
www     AAAA 2606:4700::1
short   0 A 1.1.1.1
long    864000 A 1.1.1.1
alias   CNAME www
chain   CNAME alias
secret  A   1.1.1.1
to-secret CNAME secret
private A   10.0.0.1
        A   169.254.169.254
private AAAA ::1
mixed   A   1.1.1.1
        A   192.168.0.1
rebind  CNAME private
disguised AAAA 64:ff9b::a9fe:a9fe
        AAAA ::ffff:127.0.0.1
        AAAA 64:ff9b::101:101
svc     HTTPS 1 . alpn=h2 ipv4hint=10.0.0.1 ech=AEX+DQBBpQAgACB/ ipv6hint=2606:4700::1
txt     TXT \"some text\"
mail    MX  10 www
_x._tcp SRV 1 2 443 www
";

pub struct Nsd {
    process: Child,
    _directory: TempDir,
}

impl Nsd {
    /// Starts it.
    pub fn start(internet: &Internet) -> Self {
        assert!(Path::new("/usr/sbin/nsd").exists(), "the package nsd is not installed: scripts/test installs it");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let many: String = (0..120).map(|last| format!("many A 1.1.1.{last}\n")).collect();
        fs::write(path.join("zone"), format!("{ZONE}{many}")).unwrap();
        let zones = path.display();
        let configuration = format!(
            "server:\n ip-address: {AT}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{zones}\"\n pidfile: \"\"\n \
             xfrdfile: \"\"\n xfrdir: \"{zones}\"\n zonelistfile: \"{zones}/list\"\n database: \"\"\n server-count: 1\n\
             remote-control:\n control-enable: no\nzone:\n name: example\n zonefile: zone\n"
        );
        fs::write(path.join("conf"), configuration).unwrap();
        let process = internet.run(move || {
            let mut command = Command::new("/usr/sbin/nsd");
            command.arg("-d").arg("-c").arg(path.join("conf")).stderr(Stdio::null());
            let process = command.spawn().unwrap();
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.connect((AT, 53)).unwrap();
            client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let query = b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x03www\x07example\0\0\x01\0\x01";
            let until = Instant::now() + Duration::from_secs(20);
            while client.send(query).and_then(|_| client.recv(&mut [0; 512])).is_err() {
                assert!(Instant::now() < until, "nsd does not answer");
                thread::sleep(Duration::from_millis(20));
            }
            process
        });
        Self { process, _directory: directory }
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        // It has forked, and its processes end together.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}
