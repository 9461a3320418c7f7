//! `image login` and `image logout`: credentials for registries.

use crate::{
    failure::Failure,
    images::{self, RegistryOptions, settings::Settings},
    runtime, stdio,
};
use clap::Args;
use sandboxvm_oci::registry::Credentials;
use std::io::{self, IsTerminal, Read};

/// Maximum length of a password in bytes. Tokens of registries have some thousand.
const MAX_PASSWORD: u64 = 64 << 10;

/// Verify credentials for a registry, and keep them in ~/.config/sandboxvm/credentials.json
#[derive(Debug, Args)]
#[command(after_help = "The file has mode 0600 and is not encrypted. Credentials of `docker login`, and of docker's \
                        credential helpers, are used too, and need no login here.")]
pub(super) struct Login {
    /// Registry, as host or host:port
    registry: String,
    /// Name of the user
    #[arg(short, long)]
    username: String,
    /// Read the password from standard input, even if that is a terminal
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    options: RegistryOptions,
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub(super) struct Logout {
    /// Registry, as host or host:port
    registry: String,
}

impl Login {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let password = self.password()?;
        if password.is_empty() {
            return Err(Failure::new("the password is empty"));
        }
        let opened = images::open_for(Settings::read()?, &self.options, Some(&self.registry))?;
        let credentials = Credentials::Password { user: self.username.clone(), password: password.clone() };
        runtime::block_on(async {
            opened.store.images().check_credentials(&self.registry, credentials).await?;
            opened.settings.credential_files()?.login(&self.registry, &self.username, &password)?;
            stdio::print(&format!("{}\n", self.registry))?;
            Ok(0)
        })
    }
}

impl Login {
    fn password(&self) -> Result<String, Failure> {
        if !self.password_stdin && io::stdin().is_terminal() {
            return Ok(rpassword::prompt_password("Password: ")?);
        }
        let mut password = String::new();
        io::stdin().lock().take(MAX_PASSWORD).read_to_string(&mut password)?;
        Ok(password.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl Logout {
    pub(super) fn run(self) -> Result<u8, Failure> {
        if !Settings::read()?.credential_files()?.logout(&self.registry)? {
            return Err(Failure::new(format_args!("there are no credentials for {}", self.registry)));
        }
        stdio::print(&format!("{}\n", self.registry))?;
        Ok(0)
    }
}
