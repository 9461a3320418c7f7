//! The way of a user: a sandbox with a rule, a change while it runs, the log and the suggestion.

use sandboxvm_tests::{
    home::{Home, SMALL, eventually},
    namespace::{self, SERVER},
};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::Duration,
};

/// Prints the last line of the response to a request for `host`, or an error.
fn get(host: &str) -> String {
    format!("exec 3<>/dev/tcp/{host}/80 && printf 'GET / HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' >&3 && tail -n 1 <&3")
}

/// A SOCKS5 proxy on loopback, Debian's microsocks, which ends with this value.
struct Socks(Child);

impl Socks {
    fn start(port: u16) -> Self {
        let arguments = ["-i", "127.0.0.1", "-p", &port.to_string()];
        let process = Command::new("microsocks").args(arguments).spawn().expect("the package microsocks is installed");
        let connected = || TcpStream::connect(("127.0.0.1", port)).ok().map(drop);
        eventually(Duration::from_secs(20), connected).expect("microsocks listens");
        Self(process)
    }
}

impl Drop for Socks {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn guest_reaches_what_is_allowed_and_the_log_says_what_was_refused() {
    if !namespace::enter() {
        return;
    }
    let Some(home) = Home::with_kvm() else { return };
    namespace::serve_http();
    let resolver = namespace::serve_dns();
    let config = home.scratch("config");
    fs::create_dir_all(config.join("sandboxvm")).unwrap();
    let operator = format!("[operator]\nopen = [\"{SERVER}/32\"]\nresolvers = [\"{resolver}\"]\n");
    fs::write(config.join("sandboxvm/network.toml"), operator).unwrap();
    let cli = |arguments: &[&str]| home.cli(arguments).env("XDG_CONFIG_HOME", &config).run();

    let _ = cli(&["create", "--name", "demo", "-m", SMALL, "--allow", "allowed.example"]).succeeds();
    let exec = |host: &str| cli(&["exec", "demo", "--", "bash", "-c", &get(host)]);
    assert_eq!(exec("allowed.example").succeeds().out(), "hello from allowed.example\n");
    let refused = exec("refused.example");
    assert_ne!(refused.code(), Some(0), "{refused:?}");

    let hint = "no rule allows it; to allow it: sandboxvm network set demo --add --allow refused.example\n";
    // Refusals that are alike are collected for a second before they are logged.
    let mut log = String::new();
    let logged = eventually(Duration::from_secs(20), || {
        log = cli(&["network", "log", "demo"]).succeeds().out();
        log.contains(hint).then_some(())
    });
    assert!(logged.is_some(), "{log}");
    let suggestion = cli(&["network", "suggest", "demo"]).succeeds().out();
    assert!(suggestion.contains("# \"refused.example\","), "{suggestion}");

    let _ = cli(&["network", "set", "demo", "--allow", "refused.example"]).succeeds();
    assert_eq!(exec("refused.example").succeeds().out(), "hello from refused.example\n");
    assert_ne!(exec("allowed.example").code(), Some(0), "the change replaced the rule");

    // Through an upstream proxy: nothing is reached while it is down, and with it the log says so.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = format!("socks5://127.0.0.1:{port}");
    let _ = cli(&["network", "set", "demo", "--allow", "allowed.example", "--proxy", &proxy]).succeeds();
    assert_ne!(exec("allowed.example").code(), Some(0), "it was reached past its proxy");
    let _running = Socks::start(port);
    assert_eq!(exec("allowed.example").succeeds().out(), "hello from allowed.example\n");
    let proxied = eventually(Duration::from_secs(20), || {
        let events = cli(&["events", "--json", "demo"]).succeeds().out();
        events.lines().any(|line| line.contains("\"proxied\":true")).then_some(())
    });
    assert!(proxied.is_some(), "the log does not say that a connection used the proxy");

    let _ = cli(&["rm", "-f", "demo"]).succeeds();
    home.assert_nothing_left();
}
