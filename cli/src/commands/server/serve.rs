//! `serve`: runs the server for E2B's client libraries.

use crate::{
    commands::host::doctor,
    environment,
    failure::Failure,
    options::supervision,
    stdio,
    wall::{Weakness, weaknesses},
};
use clap::{Args, ValueEnum};
use sandboxvm_images::bundle::Bundle;
use sandboxvm_server::{
    Config, FrontLog, FrontMode, FrontUser, KeyStore, NamedPart, Reachable, Server, TlsFiles, Traces, WantedKey,
    user_of_front,
};
use std::{
    env, fs, io,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Largest configuration file.
const MAX_CONFIG: u64 = 1 << 20;

/// Serve the E2B API for E2B's client libraries
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Configuration file (TOML); options and environment variables override it
    #[arg(long, value_name = "FILE", env = "SANDBOXVM_SERVE_CONFIG")]
    config: Option<PathBuf>,
    /// Address on which the control plane listens [default: 127.0.0.1:3000]
    #[arg(long, help_heading = "Network", value_name = "ADDRESS", env = "SANDBOXVM_SERVE_API")]
    api: Option<SocketAddr>,
    /// Address on which requests to sandboxes are accepted [default: 127.0.0.1:3002]
    #[arg(long, help_heading = "Network", value_name = "ADDRESS", env = "SANDBOXVM_SERVE_SANDBOXES")]
    sandboxes: Option<SocketAddr>,
    /// Address on which /metrics is served for Prometheus [default: not served]
    #[arg(long, help_heading = "Output", value_name = "ADDRESS", env = "SANDBOXVM_SERVE_METRICS")]
    metrics: Option<SocketAddr>,
    /// Base domain of the host names PORT-ID.DOMAIN, which must resolve to the address of --sandboxes
    #[arg(long, help_heading = "Network", value_name = "DOMAIN", env = "SANDBOXVM_SERVE_DOMAIN")]
    domain: Option<String>,
    /// What a sandbox reaches on the network if its client asks for nothing [default: none, or as configured]
    #[arg(long, help_heading = "Network", value_enum, value_name = "REACH", env = "SANDBOXVM_SERVE_NET")]
    net: Option<Net>,
    /// Number of machines of a template to keep ready in a pool (0-1000) [default: 0, or as configured]
    #[arg(long, help_heading = "Machine", value_name = "TEMPLATE=N", value_parser = pool)]
    pool: Vec<(String, usize)>,
    /// Certificate chain (PEM); with it, both addresses accept only TLS
    #[arg(long, help_heading = "Network", value_name = "FILE", requires = "tls_key", env = "SANDBOXVM_SERVE_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, help_heading = "Network", value_name = "FILE", requires = "tls_cert", env = "SANDBOXVM_SERVE_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// OpenTelemetry collector to send traces to by OTLP over HTTP, such as http://127.0.0.1:4318; for builds
    /// with the feature otlp [default: no traces]
    #[arg(long, help_heading = "Output", value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
    /// Refuse to start if this host weakens the isolation between guests: SMT without core scheduling, KSM, a processor
    /// vulnerability that is not mitigated, incomplete confinement, mode pvm, or a server that is not root
    #[arg(long, help_heading = "Security", env = "SANDBOXVM_SERVE_STRICT")]
    strict: bool,
    /// Parse requests in the process that holds the home, with all its privileges (for debugging only)
    #[arg(long, hide = true)]
    single_process: bool,
    /// Format of the log on stderr
    #[arg(long, help_heading = "Output", value_enum, default_value_t = LogFormat::Text, env = "SANDBOXVM_SERVE_LOG")]
    log: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Net {
    /// Nothing
    None,
    /// The public internet
    Public,
}

fn pool(text: &str) -> Result<(String, usize), String> {
    let parsed = text.split_once('=').and_then(|(name, count)| Some((name.to_owned(), count.parse().ok()?)));
    parsed
        .filter(|(_, count)| *count <= 1000)
        .ok_or_else(|| "expected TEMPLATE=N with N between 0 and 1000, such as base=4".to_owned())
}

impl Serve {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let _traces = observe(self.log, self.otlp.as_deref())?;
        let config = self.configuration()?;
        let manager = environment::manager()?;
        let keys = KeyStore::open(&KeyStore::path_in(manager.root()))?;
        let bundle = environment::bundle(None, None);
        let user = user_of_front();
        let shares_user = user.is_none() || self.single_process;
        let weakness = check_wall(&bundle, config.strict, shares_user)?;
        let mode = self.front_mode(user);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format_args!("cannot set up the event loop: {error}")))?;
        runtime.block_on(async {
            let mut ends = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let scheme = if config.tls.is_some() { "https" } else { "http" };
            let server = Server::open(config, manager, bundle, supervision::program()?, mode).await?;
            let mut text = format!(
                "export E2B_API_URL={scheme}://{api}\nexport E2B_SANDBOX_URL={scheme}://{}\n\
                 export E2B_VOLUME_API_URL={scheme}://{api}\n",
                server.sandboxes_address()?,
                api = server.api_address()?
            );
            if keys.list()?.is_empty() {
                let first = WantedKey { name: "first".to_owned(), ..WantedKey::default() };
                text += &format!("export E2B_API_KEY={}\n", keys.create(first)?.secret);
            } else {
                stdio::notice("the server already has API keys");
                stdio::notice("hint: `sandboxvm key create NAME` creates another");
            }
            stdio::print(&text)?;
            if let Some(list) = weakness {
                tracing::warn!("this host weakens the isolation between guests: {list}");
            }
            sd_notify::notify(false, &[sd_notify::NotifyState::Ready])?;
            let told_to_end = async {
                tokio::select! {
                    _ = ends.0.recv() => {}
                    _ = ends.1.recv() => {}
                }
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
            };
            server.run(told_to_end).await?;
            Ok(0)
        })
    }

    /// Returns where the front runs, as which user.
    fn front_mode(&self, user: Option<FrontUser>) -> FrontMode {
        if self.single_process {
            return FrontMode::SingleProcess;
        }
        let log = self.log.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let otlp = self.otlp.clone();
        let command = Box::new(move || {
            // This program, also after an update has replaced its file.
            let mut command = Command::new("/proc/self/exe");
            command.arg0("sandboxvm").args(["serve-front", "--log", &log]).stdout(Stdio::null());
            // Ctrl-C is for this process: it tells the front to end.
            command.process_group(0).current_dir("/").env_clear();
            let kept = env::vars_os().filter(|(name, _)| is_for_the_front(&name.to_string_lossy(), otlp.is_some()));
            command.envs(kept);
            if let Some(user) = user {
                command.args(["--uid", &user.uid.to_string(), "--gid", &user.gid.to_string()]);
            }
            if let Some(otlp) = &otlp {
                command.args(["--otlp", otlp]);
            }
            command
        });
        let log = match self.log {
            LogFormat::Text => FrontLog::Text,
            LogFormat::Json => FrontLog::Json,
        };
        FrontMode::Process { command, log }
    }

    fn configuration(&self) -> Result<Config, Failure> {
        let mut config = match &self.config {
            None => Config::default(),
            Some(path) => {
                let failed = |error: &dyn std::fmt::Display| {
                    Failure::new(format_args!("cannot use the configuration {}: {error}", path.display()))
                };
                if fs::metadata(path).map_err(|error| failed(&error))?.len() > MAX_CONFIG {
                    return Err(failed(&io::Error::from(io::ErrorKind::FileTooLarge)));
                }
                let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
                toml::from_str(&text).map_err(|error| failed(&error))?
            }
        };
        config.api = self.api.unwrap_or(config.api);
        config.sandboxes = self.sandboxes.unwrap_or(config.sandboxes);
        config.metrics = self.metrics.or(config.metrics);
        config.domain = self.domain.clone().or(config.domain);
        if let Some(net) = self.net {
            let part = match net {
                Net::None => NamedPart::None,
                Net::Public => NamedPart::Public,
            };
            config.network.default = Some(Reachable::Named(part));
        }
        config.strict |= self.strict;
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            config.tls = Some(TlsFiles { certificate: certificate.clone(), key: key.clone() });
        }
        for (name, count) in &self.pool {
            let unknown =
                || Failure::new(format_args!("invalid --pool {name}={count}: no template has the name {name:?}"));
            config.templates.get_mut(name).ok_or_else(unknown)?.pool = *count;
        }
        Ok(config)
    }
}

/// Variables of the log, and of the export of traces. Others may be secrets of this process.
fn is_for_the_front(name: &str, exports: bool) -> bool {
    let is_of_export = || {
        let name = name.to_ascii_uppercase();
        name.starts_with("OTEL_") || name.starts_with("SSL_CERT_") || name.ends_with("_PROXY")
    };
    matches!(name, "SANDBOXVM_LOG" | "RUST_BACKTRACE") || exports && is_of_export()
}

/// Returns what weakens the isolation between guests on this host, for a warning when the server has started; fails with
/// `strict`.
fn check_wall(bundle: &Bundle, strict: bool, front_shares_user: bool) -> Result<Option<String>, Failure> {
    let mut found = weaknesses(&doctor::probe(bundle));
    if front_shares_user {
        found.push(Weakness::FrontSharesUser);
    }
    if found.is_empty() {
        return Ok(None);
    }
    let list = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if strict {
        return Err(Failure::new(format_args!(
            "this host weakens the isolation between guests, and strict mode does not allow that: {list}"
        )));
    }
    Ok(Some(list))
}

/// Starts the log on stderr and, if there is a collector, traces, for as long as the returned value lives.
pub(crate) fn observe(format: LogFormat, collector: Option<&str>) -> Result<Option<Traces>, Failure> {
    let traces = collector.map(Traces::to).transpose()?;
    let filter = environment::log_filter().unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    // `eprintln!` would report them, and it panics if stderr is closed.
    let log = log.log_internal_errors(false);
    let log = match format {
        LogFormat::Text => log.with_ansi(false).boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    let exported = traces.as_ref().map(Traces::layer);
    tracing_subscriber::registry().with(filter).with(log).with(exported).init();
    Ok(traces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_parsed_and_invalid_ones_are_rejected() {
        assert_eq!(pool("base=4"), Ok(("base".to_owned(), 4)));
        for wrong in ["base", "base=", "base=-1", "base=1001", "=x"] {
            pool(wrong).unwrap_err();
        }
    }
}
