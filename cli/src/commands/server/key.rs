//! `key`: manages the API keys of the server.

use crate::{
    environment,
    failure::Failure,
    output::{
        age::{age, in_one_unit},
        json, table,
    },
    stdio,
};
use clap::{Args, Subcommand};
use sandboxvm_server::{KeyLimits, KeyStore, WantedKey};
use std::time::{Duration, SystemTime};

/// Create, list, rotate and remove API keys of the server
#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a key and print it; it is not shown again
    Create(Create),
    /// List keys
    Ls {
        /// Print JSON
        #[arg(long, help_heading = "Output")]
        json: bool,
    },
    /// Replace the secret of a key and print the new one; the old one is rejected from now on
    Rotate {
        /// ID of the key
        id: String,
    },
    /// Remove a key; its sandboxes keep running until their timeout
    Rm {
        /// ID of the key
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Name of the key
    name: String,
    /// Maximum number of sandboxes of this key at a time [default: sandboxes_per_key of the configuration]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    sandboxes: Option<u32>,
    /// Maximum number of snapshots of this key at a time [default: snapshots_per_key of the configuration]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    snapshots: Option<u32>,
    /// Maximum disk space of its sandboxes and snapshots together, in MiB [default: storage_per_key of the configuration]
    #[arg(long, help_heading = "Limits", value_name = "MIB")]
    storage: Option<u64>,
    /// Maximum disk space of the audit logs of its sandboxes together, in MiB [default: audit_per_key of the
    /// configuration]
    #[arg(long, help_heading = "Limits", value_name = "MIB")]
    audit: Option<u64>,
    /// Maximum number of volumes of this key at a time [default: volumes_per_key of the configuration]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    volumes: Option<u32>,
    /// Maximum number of requests per second, averaged over ten seconds [default: requests_per_second of the
    /// configuration]
    #[arg(long, help_heading = "Limits", value_name = "N")]
    requests_per_second: Option<u32>,
    /// Allow only requests that read; the key can create, change and end nothing and receives no sandbox tokens
    #[arg(long, help_heading = "Permissions")]
    read_only: bool,
    /// ID of the key whose sandboxes a read-only key sees; it has none of its own
    #[arg(long, help_heading = "Permissions", value_name = "ID", requires = "read_only")]
    of: Option<String>,
    /// Time after which the key expires, such as 12h or 30d [default: never]
    #[arg(long, help_heading = "Lifetime", value_name = "TIME", value_parser = lifetime)]
    expires: Option<Duration>,
    /// Template that the key may use; repeat for more [default: all templates]
    #[arg(long = "template", help_heading = "Permissions", value_name = "TEMPLATE")]
    templates: Vec<String>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a time such as 12h or 30d".to_owned())
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
                    volumes: create.volumes,
                    requests_per_second: create.requests_per_second,
                    read_only: create.read_only,
                    templates: create.templates.into_iter().collect(),
                };
                let expires_at = create.expires.map(|after| {
                    let too_late = || Failure::new("invalid --expires: the time is too far in the future");
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
                    let age = age(now.duration_since(made).unwrap_or_default());
                    let expires = expiry(key.expires_at, now);
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

/// Says when a key expires, given in seconds since 1970.
fn expiry(expires_at: Option<u64>, now: SystemTime) -> String {
    let Some(at) = expires_at else { return "never".to_owned() };
    match (SystemTime::UNIX_EPOCH + Duration::from_secs(at)).duration_since(now) {
        Ok(left) if !left.is_zero() => format!("in {}", in_one_unit(left)),
        _ => "expired".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_in_how_much_time_it_expires() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(expiry(None, now), "never");
        assert_eq!(expiry(Some(1000 + 7200), now), "in 2 hours");
        assert_eq!(expiry(Some(1000), now), "expired");
        assert_eq!(expiry(Some(0), now), "expired");
    }
}
