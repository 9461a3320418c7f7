//! `key`: who may use the server of `serve`.

use crate::{environment, failure::Failure, json, stdio, table};
use clap::{Args, Subcommand};
use sandboxvm_server::{KeyLimits, KeyStore, WantedKey};
use std::time::{Duration, SystemTime};

/// API keys of the server
#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key and print it; it is shown this once
    Create(Create),
    /// List keys
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a key another secret and print it; the old one is refused from now on
    Rotate {
        /// ID of the key
        id: String,
    },
    /// Remove a key; its sandboxes live as long as they were to
    Rm {
        /// ID of the key
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// What to call it
    name: String,
    /// Sandboxes it may have at a time
    #[arg(long, value_name = "N")]
    sandboxes: Option<u32>,
    /// Snapshots it may have at a time
    #[arg(long, value_name = "N")]
    snapshots: Option<u32>,
    /// Disk space that its sandboxes and snapshots may take together, in MiB
    #[arg(long, value_name = "MIB")]
    storage: Option<u64>,
    /// Disk space that the audit logs of its sandboxes may take together, in MiB
    #[arg(long, value_name = "MIB")]
    audit: Option<u64>,
    /// Requests it may make in a second, over ten seconds
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u32>,
    /// It may look, and make, change or end nothing; it gets no tokens of sandboxes
    #[arg(long)]
    read_only: bool,
    /// Key whose sandboxes it looks at; of its own it has none
    #[arg(long, value_name = "ID", requires = "read_only")]
    of: Option<String>,
    /// Time after which it is refused, as 12h or 30d; never unless given
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,
    /// Template it may use; all unless given
    #[arg(long = "template", value_name = "TEMPLATE")]
    templates: Vec<String>,
}

impl Key {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let keys = KeyStore::open(&KeyStore::path_in(&environment::home()?))?;
        match self.action {
            Action::Create(create) => {
                let limits = KeyLimits {
                    sandboxes: create.sandboxes,
                    snapshots: create.snapshots,
                    storage_mib: create.storage,
                    audit_mib: create.audit,
                    requests_per_second: create.requests_per_second,
                    read_only: create.read_only,
                    templates: create.templates.into_iter().collect(),
                };
                let expires_at = create.expires.map(|after| {
                    let too_late = || Failure::new("--expires: the time is too far away");
                    SystemTime::now().checked_add(after).ok_or_else(too_late)
                });
                let wanted =
                    WantedKey { name: create.name, limits, expires_at: expires_at.transpose()?, looks_at: create.of };
                stdio::print(&format!("{}\n", keys.create(wanted)?.secret))?;
            }
            Action::Ls { json: true } => stdio::print(&json::pretty(&keys.list()?)?)?,
            Action::Ls { json: false } => {
                let now = SystemTime::now();
                let rows = keys.list()?.into_iter().map(|key| {
                    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(key.created_at);
                    let may = if key.limits.read_only { "look" } else { "all" };
                    let age = super::ls::age(now.duration_since(made).unwrap_or_default());
                    let expires = key.expires_at.map_or_else(
                        || "never".to_owned(),
                        |at| match (SystemTime::UNIX_EPOCH + Duration::from_secs(at)).duration_since(now) {
                            Ok(left) if !left.is_zero() => format!("in {}", super::ls::age(left)),
                            _ => "expired".to_owned(),
                        },
                    );
                    [key.id, key.name, key.hint, may.to_owned(), age, expires]
                });
                stdio::print(&table::render(["ID", "NAME", "KEY", "MAY", "CREATED", "EXPIRES"], rows))?;
            }
            Action::Rotate { id } => stdio::print(&format!("{}\n", keys.rotate(&id)?.secret))?,
            Action::Rm { id } => keys.remove(&id)?,
        }
        Ok(0)
    }
}
