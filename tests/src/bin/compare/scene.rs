//! The bait on the host, all of which this program creates: a process, files, a TCP listener, an
//! abstract Unix socket, a System V segment and a file in /dev/shm. Each has a name or content that
//! cannot be guessed. Also makes the copies of the base image that contenders get. Everything is
//! removed when the scene is dropped.

use crate::execution::{self, signal};
use rustix::process::Signal;
use sandboxvm_tests::host::processes::is_alive;
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixListener},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// Limits of the bombs, and the longest time for each.
pub const FORKS: u64 = 2000;
/// See [`FORKS`].
pub const MEMORY_MIB: u64 = 1024;
/// See [`FORKS`].
pub const DISK_MIB: u64 = 512;
const FORK_SECONDS: u64 = 20;
const MEMORY_SECONDS: u64 = 40;
const DESTROY_SECONDS: u64 = 60;
/// Longest time for one probe.
const PROBE_SECONDS: u64 = 100;

/// The bait and the copies of the base image.
#[derive(Debug)]
pub struct Scene {
    directory: TempDir,
    /// Part of all names that this program creates.
    pub token: String,
    secret: String,
    base: PathBuf,
    port: u16,
    /// Listeners on the other addresses of the host.
    addresses: Vec<(Ipv4Addr, u16)>,
    segment: Segment,
    shared_file: PathBuf,
    bait: Child,
}

#[derive(Debug)]
struct Segment {
    id: String,
    key: i64,
}

impl Scene {
    /// Creates the bait and unpacks the base image.
    pub fn new(image: &Path) -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix("sandboxvm-compare-")
            .tempdir()
            .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
        let random = directory.path().to_string_lossy().rsplit('-').next().unwrap_or_default().to_owned();
        let token = format!("sandboxvm-compare-{}-{random}", std::process::id());
        let secret = format!("secret-{token}");
        let base = directory.path().join("base");
        let mut unpack = Command::new("fsck.erofs");
        unpack.arg(format!("--extract={}", base.display())).arg(image);
        execution::run(unpack, "", Duration::from_secs(300))?
            .success()
            .map_err(|error| format!("cannot unpack {}: {error}", image.display()))?;
        let told = |what: &'static str| move |error: std::io::Error| format!("cannot {what}: {error}");
        fs::write(base.join(".compare-copy"), &token).map_err(told("write into the copy of the base image"))?;
        fs::create_dir(directory.path().join("bait")).map_err(told("make the bait's directory"))?;
        fs::write(directory.path().join("bait/secret"), &secret).map_err(told("write bait"))?;
        let port = listen_on(Ipv4Addr::LOCALHOST, &secret).map_err(told("listen on the loopback"))?;
        // An address that cannot be listened on is one that a rogue does not reach either.
        let listen = |address| Some((address, listen_on(address, &secret).ok()?));
        let addresses = other_addresses().into_iter().filter_map(listen).collect();
        listen_abstract(&token, &secret).map_err(told("listen on an abstract socket"))?;
        let shared_file = Path::new("/dev/shm").join(&token);
        fs::write(&shared_file, &secret).map_err(told("write to /dev/shm"))?;
        let segment = Segment::new()?;
        let bait = start_bait(&token)?;
        let scene = Self { directory, token, secret, base, port, addresses, segment, shared_file, bait };
        scene.lay_precious();
        Ok(scene)
    }

    /// Returns the temporary directory of this program.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the unpacked base image, in which nothing is ever run.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Returns the text that proves that a program has read the bait.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Replaces a directory by a new copy of the base image.
    pub fn copy(&self, to: &Path) -> Result<(), String> {
        debug_assert!(to.starts_with(self.path()));
        if to.exists() {
            fs::remove_dir_all(to).map_err(|error| format!("cannot remove {}: {error}", to.display()))?;
        }
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&self.base).arg(to);
        execution::run(copy, "", Duration::from_secs(300))?.success().map(drop)
    }

    fn precious(&self) -> PathBuf {
        self.path().join("bait/precious")
    }

    fn lay_precious(&self) {
        // Without the file, `destroy` would report damage that it did not cause. So the probe
        // checks before that it exists.
        if fs::write(self.precious(), "precious").is_err() {
            eprintln!("compare: the bait file cannot be written");
        }
    }

    /// Restores the bait that the last contender may have damaged.
    pub fn renew(&mut self) -> Result<(), String> {
        self.lay_precious();
        if !is_alive(self.bait.id()) {
            let _ = self.bait.wait();
            self.bait = start_bait(&self.token)?;
        }
        Ok(())
    }

    /// Returns whether the bait process runs.
    pub fn bait_lives(&self) -> bool {
        is_alive(self.bait.id())
    }

    /// Returns whether the bait file exists.
    pub fn precious_is_whole(&self) -> bool {
        self.precious().exists()
    }

    /// Returns the complete program of the rogue for these probes.
    pub fn script(&self, contender: &str, probes: &[&str]) -> String {
        let config = self.config(contender, probes);
        // Numbers, strings and lists of strings have the same form in JSON and in Python.
        format!("CONFIG = {config}\n{}", include_str!("rogue.py"))
    }

    fn config(&self, contender: &str, probes: &[&str]) -> Value {
        json!({
            "probes": probes,
            "process": process_name(&self.token),
            "directory": self.path().join("bait"),
            "file": self.path().join("bait/secret"),
            "precious": self.precious(),
            "copy": self.token,
            "port": self.port,
            "addresses": self.addresses,
            "abstract": self.token,
            "shm_key": self.segment.key,
            "shm_file": self.token,
            "left": format!("left-{contender}"),
            "forks": FORKS, "fork_seconds": FORK_SECONDS,
            "memory_mib": MEMORY_MIB, "memory_seconds": MEMORY_SECONDS,
            "disk_mib": DISK_MIB,
            "destroy_seconds": DESTROY_SECONDS, "probe_seconds": PROBE_SECONDS,
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        signal(self.bait.id(), Signal::KILL);
        let _ = self.bait.wait();
        let _ = fs::remove_file(&self.shared_file);
    }
}

/// Returns the name of the bait process in its own arguments. No other process has this text there.
fn process_name(token: &str) -> String {
    format!("bait-{token}")
}

fn start_bait(token: &str) -> Result<Child, String> {
    let mut bait = Command::new("sleep");
    bait.arg0(process_name(token)).arg("86400").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    bait.spawn().map_err(|error| format!("cannot start the bait process: {error}"))
}

/// Returns the host's addresses other than its loopback, at most eight.
fn other_addresses() -> Vec<Ipv4Addr> {
    let output = Command::new("hostname").arg("-I").stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().filter_map(|address| address.parse().ok()).take(8).collect()
}

fn listen_on(address: Ipv4Addr, secret: &str) -> std::io::Result<u16> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    let secret = secret.to_owned();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.write_all(secret.as_bytes());
        }
    });
    Ok(port)
}

fn listen_abstract(name: &str, secret: &str) -> std::io::Result<()> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    let secret = secret.to_owned();
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.write_all(secret.as_bytes());
        }
    });
    Ok(())
}

impl Segment {
    /// Creates a segment with a random key by util-linux.
    fn new() -> Result<Self, String> {
        let mut make = Command::new("ipcmk");
        make.args(["-M", "4096", "-p", "0600"]);
        let made = execution::run(make, "", Duration::from_secs(10))?.success()?;
        let id = made.out.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let table = fs::read_to_string("/proc/sysvipc/shm").map_err(|error| format!("/proc/sysvipc/shm: {error}"))?;
        let row = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|row| row.get(1) == Some(&id.as_str()));
        let key = row.and_then(|row| row.first()?.parse().ok()).ok_or("ipcmk created a segment that does not exist")?;
        Ok(Self { id, key })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = Command::new("ipcrm").args(["-m", &self.id]).status();
    }
}
