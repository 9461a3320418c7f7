//! `sandboxvm serve` under test: a real server on free loopback ports, and real HTTP requests.

pub mod attack;
pub mod envd;
pub mod load;

use crate::{
    cli,
    home::{Home, without_groups},
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Maximum number of bytes that are read of a response.
const MAX_ANSWER: u64 = 16 << 20;

/// A server. It is killed when the value is dropped, and its sandboxes with the home.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    /// Base URL of the control plane.
    pub api: String,
    /// Base URL of the sandbox plane.
    pub sandboxes: String,
    /// The key that the server created, or none if the home had keys.
    pub key: Option<String>,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The complete body.
    pub body: String,
}

impl Answer {
    /// Returns the body as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts the status.
    #[track_caller]
    #[must_use]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Returns the value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Returns a configuration whose template `base` is the machine that all tests share (see
/// [`crate::seed`]).
#[must_use]
pub fn small_config() -> String {
    "concurrent_starts = 4\n[templates.base]\nmemory = 128\n".to_owned()
}

impl Server {
    /// Starts a server in `home` with this configuration (TOML).
    #[must_use]
    pub fn start(home: &Home, config: &str) -> Self {
        Self::start_with(home, config, &[])
    }

    /// As [`Self::start`], but without any control group of version 2.
    #[must_use]
    pub fn start_without_groups(home: &Home, config: &str) -> Self {
        Self::begin(home, without_groups(&home.artefacts().program), config, &[])
    }

    /// As [`Self::start`], but another program starts it, with these arguments before its own.
    #[must_use]
    pub fn start_under(home: &Home, config: &str, program: &str, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).arg(&home.artefacts().program);
        Self::begin(home, command, config, &[])
    }

    /// As [`Self::start`], with more flags.
    #[must_use]
    pub fn start_with(home: &Home, config: &str, flags: &[&str]) -> Self {
        Self::begin(home, Command::new(&home.artefacts().program), config, flags)
    }

    fn begin(home: &Home, mut command: Command, config: &str, flags: &[&str]) -> Self {
        let path = home.scratch("server.toml");
        fs::write(&path, config).expect("the test's directory can be written");
        let log = home.scratch("server.log");
        let err =
            fs::File::options().append(true).create(true).open(&log).expect("the test's directory can be written");
        command.args(["serve", "--api", "127.0.0.1:0", "--sandboxes", "127.0.0.1:0", "--log", "json", "--config"]);
        command.arg(&path).args(flags).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("SANDBOXVM_HOME", home.path()).env("SANDBOXVM_BUNDLE", &home.artefacts().bundle);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(err);
        let mut child = command.spawn().expect("sandboxvm can be run");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let mut value = |name: &str| {
            let line = lines.next()?.ok()?;
            Some(line.strip_prefix(&format!("export {name}="))?.to_owned())
        };
        let (api, sandboxes) = (value("E2B_API_URL"), value("E2B_SANDBOX_URL"));
        let volumes = value("E2B_VOLUME_API_URL");
        let (Some(api), Some(sandboxes), Some(_)) = (api, sandboxes, volumes) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server does not start: {}", fs::read_to_string(&log).unwrap_or_default());
        };
        // A server whose home has keys prints none. It logs that before it prints its addresses.
        let has_keys = fs::read_to_string(&log).is_ok_and(|log| log.contains("already has API keys"));
        let key = if has_keys { None } else { value("E2B_API_KEY") };
        Self { child, log, api, sandboxes, key }
    }

    /// Returns the output on stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the PID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the server.
    pub fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Sends SIGTERM and waits for the end of the server.
    ///
    /// # Panics
    /// Panics if the server does not end gracefully.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a child can be signalled");
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Returns the key that the server printed.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key.as_deref().expect("the home had no keys")
    }

    /// Sends a request to the control plane, with the key that the server printed.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.ask_as(self.key(), method, path, body)
    }

    /// As [`Self::ask`], with another key.
    #[must_use]
    pub fn ask_as(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let url = format!("{}{path}", self.api);
        request(
            method,
            &url,
            &[("x-api-key", key)],
            body.map(|body| ("application/json", body.to_string().into_bytes())),
        )
    }

    /// Creates a sandbox and returns the response.
    #[track_caller]
    #[must_use]
    pub fn create(&self, body: &Value) -> Value {
        self.ask("POST", "/v2/sandboxes", Some(body)).expect(201).json()
    }

    /// Runs a program of `tests/sdk` with the variables that users of E2B set. Asserts that it
    /// exits with 0.
    #[track_caller]
    pub fn runs(&self, interpreter: &Path, program: &Path, node_modules: &Path, within: Duration) {
        self.runs_with(interpreter, program, node_modules, within, &[]);
    }

    /// As [`Self::runs`], with further variables.
    #[track_caller]
    pub fn runs_with(
        &self,
        interpreter: &Path,
        program: &Path,
        node_modules: &Path,
        within: Duration,
        variables: &[(&str, &str)],
    ) {
        let mut command = Command::new(interpreter);
        command.envs(variables.iter().copied());
        command.arg(program).env("E2B_API_URL", &self.api).env("E2B_SANDBOX_URL", &self.sandboxes);
        command.env("E2B_VOLUME_API_URL", &self.api);
        command
            .env("E2B_API_KEY", self.key())
            .env("NODE_PATH", node_modules)
            .env("E2B_JS", node_modules)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let ended = cli::Invocation::new(command).deadline(within).run();
        assert!(ended.code() == Some(0), "{}\n--- the server ---\n{}", ended.transcript(), tail(&self.log()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server ---\n{}", tail(&self.log()));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(6000);
    text.get(start..).unwrap_or(text)
}

/// Sends one request on a new connection.
///
/// # Panics
/// Panics if there is no response.
#[track_caller]
#[must_use]
pub fn request(method: &str, url: &str, headers: &[(&str, &str)], body: Option<(&str, Vec<u8>)>) -> Answer {
    try_request(method, url, headers, body).unwrap_or_else(|error| panic!("{method} {url}: {error}"))
}

/// As [`request`], for a server that may end meanwhile.
///
/// # Errors
/// Fails if there is no response.
pub fn try_request(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<(&str, Vec<u8>)>,
) -> Result<Answer, ureq::Error> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .timeout_global(Some(Duration::from_secs(120) * cli::patience()))
        .build()
        .into();
    let mut builder = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let mut answered = match body {
        None => agent.run(builder.body(())?),
        Some((kind, body)) => agent.run(builder.header("content-type", kind).body(body)?),
    }?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = answered.headers().iter();
    let headers = headers.map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes()))).collect();
    let status = answered.status().as_u16();
    let mut body = Vec::new();
    answered.body_mut().as_reader().take(MAX_ANSWER).read_to_end(&mut body)?;
    Ok(Answer { status, headers, body: text(&body) })
}
