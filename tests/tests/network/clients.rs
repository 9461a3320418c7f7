//! Clients that agents use, against servers of the namespace: curl, git, pip and apt, servers that speak first, a
//! service of the host, a flow across a pause, and a sandbox from a snapshot of a machine with a card.

use sandboxvm_tests::{
    cli::Finished,
    home::{Home, SMALL, eventually},
    namespace::{self, SERVER},
};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

/// An address that no resolver of the namespace gives.
const FIXED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);

/// A server of files on port 80 of [`SERVER`], which ends with this value.
struct Files(Child);

impl Files {
    fn serve(root: &Path) -> Self {
        let mut command = Command::new("busybox");
        command.args(["httpd", "-f", "-p", &format!("{SERVER}:80"), "-h"]).arg(root);
        let process = command.spawn().expect("the package busybox-static is installed");
        eventually(Duration::from_secs(20), || TcpStream::connect((SERVER, 80)).ok().map(drop)).expect("httpd listens");
        Self(process)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a script on the host in `directory`.
fn host(directory: &Path, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(directory).status().expect("sh runs");
    assert!(status.success(), "{script}");
}

/// Makes a git repository with one file.
fn make_repository(root: &Path) {
    host(
        root,
        "git init -q -b main work && cd work && echo text >file && git add file
        git -c user.name=t -c user.email=t@git.example commit -qm first
        git clone -q --bare . ../repository.git && cd ../repository.git && git update-server-info",
    );
}

/// Makes an index of Python packages and a Debian mirror, each with one package.
fn make_packages(root: &Path) {
    host(
        root,
        "mkdir -p simple/demo wheel/demo-1.dist-info && cd wheel
        echo 'answer = 42' >demo.py
        printf 'Metadata-Version: 2.1\\nName: demo\\nVersion: 1\\n' >demo-1.dist-info/METADATA
        printf 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n' \\
            >demo-1.dist-info/WHEEL
        printf 'demo.py,,\\ndemo-1.dist-info/METADATA,,\\ndemo-1.dist-info/WHEEL,,\\ndemo-1.dist-info/RECORD,,\\n' \\
            >demo-1.dist-info/RECORD
        python3 -m zipfile -c ../simple/demo/demo-1-py3-none-any.whl demo.py demo-1.dist-info
        echo '<a href=\"demo-1-py3-none-any.whl\">demo-1-py3-none-any.whl</a>' >../simple/demo/index.html",
    );
    host(
        root,
        "mkdir -p deb/DEBIAN mirror && cd mirror
        printf 'Package: demo\\nVersion: 1\\nArchitecture: all\\nMaintainer: t <t@m.example>\\nDescription: d\\n' \\
            >../deb/DEBIAN/control
        mkdir -p ../deb/opt && echo 'of a package' >../deb/opt/demo
        dpkg-deb --root-owner-group -b ../deb demo.deb >/dev/null && dpkg-deb -f demo.deb >Packages",
    );
    let package = fs::read(root.join("mirror/demo.deb")).expect("the scratch directory is the test's");
    let hash: String = Sha256::digest(&package).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut packages = fs::OpenOptions::new()
        .append(true)
        .open(root.join("mirror/Packages"))
        .expect("the scratch directory is the test's");
    write!(packages, "Filename: ./demo.deb\nSize: {}\nSHA256: {hash}\n", package.len())
        .expect("the scratch directory is the test's");
}

/// Serves connections that get a greeting first, and then what they sent.
fn serve_greeting(address: Ipv4Addr, port: u16) {
    let listener = TcpListener::bind((address, port)).expect("a port of the namespace");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(b"ready\n");
                let mut buffer = [0; 100];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A home, its configuration, and servers in the namespace.
struct Story {
    home: Home,
    config: PathBuf,
    _files: Files,
}

impl Story {
    /// Begins with the files that `make` makes. Returns `None` where the test cannot run.
    fn begin(make: fn(&Path)) -> Option<Self> {
        if !namespace::enter() {
            return None;
        }
        let home = Home::with_kvm()?;
        let (root, config) = (home.scratch("files"), home.scratch("config"));
        fs::create_dir_all(&root).expect("the scratch directory is the test's");
        fs::create_dir_all(config.join("sandboxvm")).expect("the scratch directory is the test's");
        fs::write(root.join("hello"), "hello from a file\n").expect("the scratch directory is the test's");
        make(&root);
        let files = Files::serve(&root);
        serve_greeting(SERVER, 22);
        serve_greeting(SERVER, 23);
        host(&root, &format!("ip address add {FIXED}/32 dev lo"));
        serve_greeting(FIXED, 24);
        serve_greeting(Ipv4Addr::LOCALHOST, 5432);
        serve_greeting(Ipv4Addr::LOCALHOST, 5433);
        let story = Self { home, config, _files: files };
        story.configure(namespace::serve_dns());
        Some(story)
    }

    /// Makes this resolver the operator's.
    fn configure(&self, resolver: SocketAddr) {
        let operator = format!("[operator]\nopen = [\"{SERVER}/32\", \"{FIXED}/32\"]\nresolvers = [\"{resolver}\"]\n");
        fs::write(self.config.join("sandboxvm/network.toml"), operator).expect("the scratch directory is the test's");
    }

    fn cli(&self, arguments: &[&str]) -> Finished {
        self.home.cli(arguments).env("XDG_CONFIG_HOME", &self.config).run()
    }

    /// Returns what a script in the sandbox prints. Asserts that it succeeds.
    #[track_caller]
    fn prints(&self, sandbox: &str, script: &str) -> String {
        let command =
            self.home.cli(["exec", sandbox, "--", "bash", "-ec", script]).env("XDG_CONFIG_HOME", &self.config);
        // apt took six minutes on a host that was busy.
        command.deadline(Duration::from_mins(10)).run().succeeds().out()
    }

    /// Opens a connection to the greeting server, which sends a line once `/tmp/go` exists.
    #[track_caller]
    fn open_flow(&self, sandbox: &str) {
        let waits = "exec 3<>/dev/tcp/git.example/22; read -r a <&3; : >/tmp/open; until [ -e /tmp/go ]; do sleep 0.2; \
            done; echo again >&3; read -r a <&3; echo $a >/tmp/said";
        let script =
            format!("setsid bash -c '{waits}' </dev/null >/dev/null 2>&1 & until [ -e /tmp/open ]; do sleep 0.2; done");
        assert_eq!(self.prints(sandbox, &script), "");
    }

    /// Asserts that the connection of [`Self::open_flow`] is still open.
    #[track_caller]
    fn assert_flow_is_open(&self, sandbox: &str) {
        let script = ": >/tmp/go; for _ in {1..100}; do [ -s /tmp/said ] && break; sleep 0.2; done; cat /tmp/said";
        assert_eq!(self.prints(sandbox, script), "again\n");
    }
}

#[test]
fn clients_reach_the_hosts_of_their_rules_across_a_pause_and_a_snapshot() {
    let Some(story) = Story::begin(make_repository) else { return };
    let rules = "git.example,git.example:22,fixed.example:24,host:5432";
    let fixed = format!("fixed.example:{FIXED}");
    let _ = story.cli(&["create", "--name", "demo", "-m", SMALL, "--allow", rules, "--add-host", &fixed]).succeeds();

    assert_eq!(story.prints("demo", "curl -sS http://git.example/hello"), "hello from a file\n");
    let clone = "git clone -q http://git.example/repository.git /tmp/g; cat /tmp/g/file";
    assert_eq!(story.prints("demo", clone), "text\n");

    // Servers that speak first: by a name, at the address of `--add-host`, and on the host. Two are beside one on a
    // port that no rule names.
    let greeted = "for at in git.example/22 git.example/23 fixed.example/24 host.internal/5432 host.internal/5433; do
        (exec 3<>/dev/tcp/$at && read -r said <&3 && echo $at $said) 2>/dev/null || echo $at refused; done";
    assert_eq!(
        story.prints("demo", greeted),
        "git.example/22 ready\ngit.example/23 refused\nfixed.example/24 ready\n\
        host.internal/5432 ready\nhost.internal/5433 refused\n"
    );

    story.open_flow("demo");
    let _ = story.cli(&["pause", "demo"]).succeeds();
    thread::sleep(Duration::from_secs(1));
    let _ = story.cli(&["resume", "demo"]).succeeds();
    story.assert_flow_is_open("demo");

    // The options of `create --from` decide on the network, not the snapshot. Only the resolver of `--dns` answers.
    let _ = story.cli(&["snapshot", "create", "demo", "with-card"]).succeeds();
    let _ = story.cli(&["rm", "-f", "demo"]).succeeds();
    story.configure((Ipv4Addr::LOCALHOST, 9).into());
    namespace::serve_dns_at((SERVER, 53));
    let options = ["--from", "with-card", "--allow", "index.example", "--dns", &SERVER.to_string()];
    let _ = story.cli(&[&["create", "--name", "copy"], &options[..]].concat()).succeeds();
    let fetch = "curl -sS http://index.example/hello
        if curl -sS -m 20 http://git.example/hello 2>/dev/null; then exit 9; fi";
    assert_eq!(story.prints("copy", fetch), "hello from a file\n");
    let _ = story.cli(&["rm", "-f", "copy"]).succeeds();
    let _ = story.cli(&["snapshot", "rm", "with-card"]).succeeds();
    story.home.assert_nothing_left();
}

#[test]
#[ignore = "soak: pip and apt take minutes where the kernel is interpreted, and a connection is idle for ten"]
fn packages_install_while_another_connection_is_idle_for_ten_minutes() {
    let Some(story) = Story::begin(make_packages) else { return };
    let rules = "index.example,mirror.example,git.example:22";
    let _ = story.cli(&["create", "--name", "demo", "-m", SMALL, "--allow", rules]).succeeds();
    story.open_flow("demo");
    let opened = Instant::now();

    let install = "pip install -q --no-cache-dir --disable-pip-version-check --no-deps --root-user-action ignore \
        --target /tmp/p --trusted-host index.example -i http://index.example/simple demo; cat /tmp/p/demo.py";
    assert_eq!(story.prints("demo", install), "answer = 42\n");
    let install = "echo 'deb [trusted=yes] http://mirror.example/mirror ./' >/tmp/l
        options='-o Dir::Etc::sourcelist=/tmp/l -o Dir::Etc::sourceparts=- -o Acquire::Languages=none'
        apt-get $options update -qq >/dev/null; apt-get $options install -qq -y demo >/dev/null; cat /opt/demo";
    assert_eq!(story.prints("demo", install), "of a package\n");

    thread::sleep(Duration::from_mins(10).saturating_sub(opened.elapsed()));
    story.assert_flow_is_open("demo");
    let _ = story.cli(&["rm", "-f", "demo"]).succeeds();
    story.home.assert_nothing_left();
}
