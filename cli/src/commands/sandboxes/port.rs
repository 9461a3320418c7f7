//! `port`: lists, publishes and unpublishes ports of a sandbox.

use crate::{failure::Failure, options::supervision, output::json, runtime, stdio};
use clap::Args;
use sandboxvm_manager::{HostEnd, Publish, PublishedPort, Sandbox};

/// List, publish or unpublish ports of a sandbox
#[derive(Debug, Args)]
#[command(
    after_help = "With GUEST alone, prints where the port is published, and publishes it on a free port of 127.0.0.1 if it is \
                  not published yet. Connections go to the port on the loopback interface of the sandbox; no process needs to \
                  listen on it yet.\n\n\
                  Every user of this host can connect to a TCP port, even on 127.0.0.1. A Unix socket (/PATH/TO.SOCK) has \
                  mode 0600, so only its owner can connect: use one for services that execute code or require no password."
)]
pub(crate) struct Port {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Port to publish: GUEST, HOST:GUEST, ADDRESS:HOST:GUEST or /PATH/TO.SOCK:GUEST
    port: Option<Publish>,
    /// Unpublish the port, at all addresses or only at the given one; open connections stay open
    #[arg(long, requires = "port")]
    rm: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Port {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        // The caller connects to the port next, so a supervisor must listen.
        let sandbox = supervision::find(&self.sandbox)?;
        let ports = match &self.port {
            None => published(&sandbox)?,
            Some(publish) => runtime::block_on(self.change(&sandbox, publish))?,
        };
        let text = if self.json {
            json::pretty(&ports)?
        } else if self.port.is_some() {
            ports.iter().map(|port| format!("{}\n", port.host)).collect()
        } else {
            ports.iter().map(line).collect()
        };
        stdio::print(&text)?;
        Ok(0)
    }

    async fn change(&self, sandbox: &Sandbox, publish: &Publish) -> Result<Vec<PublishedPort>, Failure> {
        let program = supervision::program()?;
        let anywhere = publish.host == HostEnd::ANY;
        if self.rm {
            let host = (!anywhere).then(|| publish.host.clone());
            return Ok(sandbox.unpublish(&program, publish.guest, host).await?);
        }
        if anywhere && sandbox.state()?.is_live() {
            let mut there = published(sandbox)?;
            there.retain(|port| port.guest_port == publish.guest && port.error.is_none());
            if !there.is_empty() {
                return Ok(there);
            }
        }
        supervision::warn_of_open(std::slice::from_ref(publish));
        Ok(vec![sandbox.publish(&program, publish.clone()).await?])
    }
}

fn published(sandbox: &Sandbox) -> Result<Vec<PublishedPort>, Failure> {
    Ok(sandbox.supervision()?.map(|supervision| supervision.ports).unwrap_or_default())
}

fn line(port: &PublishedPort) -> String {
    let problem = port.error.as_ref().map(|error| format!(" (not listening: {error})")).unwrap_or_default();
    format!("{}/tcp -> {}{problem}\n", port.guest_port, port.host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;

    #[test]
    fn lines_match_docker_and_json_is_pinned() {
        let ports = crate::commands::sandboxes::ls::tests::example_supervision().ports;
        assert_golden("port.json", &json::pretty(&ports).unwrap());
        let lines: Vec<String> = ports.iter().map(line).collect();
        let problem = "443/tcp -> /run/x.sock (not listening: Address in use (os error 98))\n";
        assert_eq!(lines, ["80/tcp -> 127.0.0.1:8080\n", problem]);
    }
}
