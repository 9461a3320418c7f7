//! `mcp`: serves sandboxes as tools to AI agents, over the Model Context Protocol.

use crate::{
    environment,
    failure::Failure,
    images::RegistryOptions,
    options::{
        image::{self, Pull},
        permitted::PermittedOptions,
        supervision,
        values::name,
    },
    process_io::signals::Signals,
    runtime,
};
use clap::Args;
use sandboxvm_manager::{SandboxName, SnapshotError};
use sandboxvm_mcp::{HttpSettings, Settings, serve_http, serve_stdio};
use std::{collections::BTreeMap, fmt::Write, net::SocketAddr};

/// Length of a generated token in bytes.
const TOKEN: usize = 32;

/// Serve sandboxes as tools to AI agents (Model Context Protocol)
#[derive(Debug, Args)]
#[command(
    after_help = "The host program of an agent starts this command and talks to it on stdin and stdout; docs/mcp.md \
                        describes how to configure it. Agents can use the sandboxes that they create here and those of \
                        --sandbox, and no others.\n\n\
                        With --http, the path is /mcp, and clients authenticate with the token in SANDBOXVM_MCP_TOKEN or, \
                        without that variable, a new one that is printed on stderr."
)]
pub(crate) struct Mcp {
    /// Serve over HTTP instead of stdin and stdout; the address defaults to 127.0.0.1:3003
    #[arg(long, help_heading = "Network", value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:3003")]
    http: Option<SocketAddr>,
    /// Accept requests with this Host header, besides localhost and the address of --http
    #[arg(long, help_heading = "Network", value_name = "HOST", requires = "http")]
    allow_host: Vec<String>,
    /// Let agents use this existing sandbox; they cannot remove it
    #[arg(long, help_heading = "Scope", value_name = "SANDBOX")]
    sandbox: Vec<String>,
    /// Let agents create sandboxes from this snapshot
    #[arg(long, help_heading = "Scope", value_name = "SNAPSHOT", value_parser = name)]
    template: Vec<SandboxName>,
    /// Let agents create sandboxes from this container image, which is pulled if the home does not have it
    #[arg(long, help_heading = "Scope", value_name = "IMAGE")]
    image: Vec<String>,
    #[command(flatten)]
    network: PermittedOptions,
    /// Maximum number of sandboxes that agents have at a time
    #[arg(long, help_heading = "Limits", value_name = "N", default_value = "16")]
    max_sandboxes: usize,
    /// Keep the sandboxes and snapshots that agents created when the server ends
    #[arg(long, help_heading = "Lifetime")]
    keep: bool,
}

impl Mcp {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let mut settings = self.settings()?;
        runtime::block_on(async {
            let mut signals = Signals::catch()?;
            let registry = RegistryOptions::default();
            for name in &self.image {
                let image = tokio::select! {
                    image = image::bootable(&registry, Pull::Missing, name) => image?,
                    _ = signals.next() => return Ok(signals.exit_code()),
                };
                settings.images.insert(name.clone(), image);
            }
            let mut is_signalled = false;
            let until = async {
                signals.next().await;
                is_signalled = true;
            };
            let left = match self.http {
                None => serve_stdio(settings, until).await?,
                Some(address) => {
                    let http = self.http_settings(address)?;
                    serve_http(settings, http, say_where, until).await?
                }
            };
            for failure in &left {
                Failure::new(failure).report();
            }
            match (left.is_empty(), is_signalled && self.http.is_none()) {
                (false, _) => Err(Failure::silent(125)),
                (true, true) => Ok(signals.exit_code()),
                (true, false) => Ok(0),
            }
        })
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let (network, operator) = self.network.permitted()?;
        let manager = environment::manager()?.with_network(operator);
        let mut sandboxes = Vec::new();
        for reference in &self.sandbox {
            sandboxes.push(manager.find(reference)?.id().clone());
        }
        if let Some(missing) = self.template.iter().find(|name| !manager.has_snapshot(name)) {
            return Err(SnapshotError::Unknown(missing.to_string()).into());
        }
        Ok(Settings {
            manager,
            bundle: environment::bundle(None, None),
            supervisor: supervision::program()?,
            sandboxes,
            images: BTreeMap::new(),
            templates: self.template.clone(),
            max_sandboxes: self.max_sandboxes,
            network,
            secrets: self.network.secrets()?,
            keep: self.keep,
        })
    }

    fn http_settings(&self, address: SocketAddr) -> Result<HttpSettings, Failure> {
        if !address.ip().is_loopback() {
            let message = format!("warning: other machines can reach {address}, and the traffic is not encrypted");
            Failure::new(message).report();
        }
        let token = match environment::mcp_token() {
            Some(token) => token?,
            None => {
                let token = fresh_token()?;
                Failure::new(format_args!("token: {token}")).report();
                token
            }
        };
        Ok(HttpSettings { address, hosts: self.allow_host.clone(), token })
    }
}

fn say_where(address: SocketAddr) {
    Failure::new(format_args!("serving MCP on http://{address}/mcp")).report();
}

fn fresh_token() -> Result<String, Failure> {
    let hint = || "set SANDBOXVM_MCP_TOKEN".to_owned();
    let mut bytes = [0; TOKEN];
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::new(format_args!("cannot create a token: {error}")).hinted(hint()))?;
    if filled < TOKEN {
        return Err(Failure::new("cannot create a token: too little randomness").hinted(hint()));
    }
    Ok(bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}
