//! Debian's microsocks (SOCKS5) and tinyproxy (HTTP CONNECT).

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;

/// A proxy, which ends with its value.
pub struct Proxy {
    process: Child,
    _configuration: Option<NamedTempFile>,
}

impl Proxy {
    /// Starts microsocks in the namespace of this thread. With a password it wants the user `me`.
    pub fn socks(at: SocketAddr, password: Option<&str>) -> Self {
        let mut command = Command::new(installed("/usr/bin/microsocks"));
        command.args(["-i", &at.ip().to_string(), "-p", &at.port().to_string()]);
        if let Some(password) = password {
            command.args(["-u", "me", "-P", password]);
        }
        Self::spawn(command, at, None)
    }

    /// Starts tinyproxy in the namespace of this thread, for the user `me`.
    pub fn http(at: SocketAddr, password: &str) -> Self {
        let mut configuration = NamedTempFile::new().unwrap();
        let (address, port) = (at.ip(), at.port());
        writeln!(configuration, "Listen {address}\nPort {port}\nTimeout 60\nBasicAuth me {password}").unwrap();
        let mut command = Command::new(installed("/usr/bin/tinyproxy"));
        command.arg("-d").arg("-c").arg(configuration.path());
        Self::spawn(command, at, Some(configuration))
    }

    fn spawn(mut command: Command, at: SocketAddr, configuration: Option<NamedTempFile>) -> Self {
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_err() {
            assert!(Instant::now() < until, "the proxy does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Self { process, _configuration: configuration }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn installed(program: &str) -> &Path {
    let program = Path::new(program);
    assert!(program.exists(), "{} is not installed: scripts/test installs it", program.display());
    program
}
