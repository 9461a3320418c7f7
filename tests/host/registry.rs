//! A real registry on loopback, Debian's docker-registry, and images for it, which umoci makes and skopeo
//! sends. Included by the tests that need one.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// A registry that is ended with this value.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    port: u16,
    _home: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program of the host, which must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Registry {
    /// Starts a registry with its data in `home`. `http` is added to that part of its configuration, and `extra`
    /// to its end.
    pub fn start(home: TempDir, http: &str, extra: &str) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let root = home.path().join("registry");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}{extra}",
            root.display()
        );
        let path = home.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: command.spawn().unwrap(), port, _home: home };
        for _ in 0..200 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return registry;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not start");
    }

    /// Returns its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns its name in references.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Sends an image of an OCI layout.
    pub fn fill(&self, layout: &Path, tag: &str, name: &str) {
        let from = format!("oci:{}:{tag}", layout.display());
        run("skopeo", &["copy", "--dest-tls-verify=false", &from, &format!("docker://{}/{name}", self.host())]);
    }
}

/// Makes an OCI layout with one image, `test`, whose only layer is what `root` contains. `config` are arguments of
/// `umoci config`.
pub fn layout(layout: &Path, root: &Path, config: &[&str]) {
    let path = layout.display().to_string();
    let image = format!("{path}:test");
    run("umoci", &["init", "--layout", &path]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, &root.display().to_string(), "/"]);
    run("umoci", &[&["config", "--image", &image][..], config].concat());
}
