//! Options for the most that clients of a server may ask for on the network.

use super::network::{policy_file::Files, secret_values};
use crate::failure::Failure;
use clap::{Args, ValueEnum};
use sandboxvm_manager::{EgressLimits, NetworkOperator, NetworkSpec, Permitted, Reach, SecretSpec};
use std::env;

/// The most that agents may ask for on the network.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Scope")]
pub(crate) struct PermittedOptions {
    /// What agents may ask for on the network without rules [default: none]
    #[arg(long, value_enum, value_name = "REACH")]
    net: Option<Net>,
    /// Let agents ask for what this rule allows, in the form of `run --allow`. Can be repeated, or a list with commas
    #[arg(long, value_name = "RULE", allow_hyphen_values = true)]
    allow: Vec<String>,
    /// Let agents ask for a secret by its name, in the form of `run --secret`: their sandboxes have a placeholder, and its hosts
    /// have to be allowed too. Can be repeated
    #[arg(long, value_name = "NAME[=FILE]@HOST[,HOST]")]
    secret: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Net {
    /// Only what --allow lists
    None,
    /// The public internet
    Public,
}

impl PermittedOptions {
    /// Returns what is permitted, and what the user provides as the operator of the host.
    pub(crate) fn permitted(&self) -> Result<(Permitted, NetworkOperator), Failure> {
        let files = Files::read(None)?;
        Ok((self.within(&files)?, files.operator))
    }

    /// Returns the secrets that agents may ask for.
    pub(crate) fn secrets(&self) -> Result<Vec<SecretSpec>, Failure> {
        let secrets = self.secret.iter().map(|text| secret_values::secret(text, |name| env::var(name)));
        let spec = NetworkSpec { secrets: secrets.collect::<Result<_, _>>()?, ..NetworkSpec::default() };
        spec.check()?;
        Ok(spec.secrets)
    }

    fn within(&self, files: &Files) -> Result<Permitted, Failure> {
        let allow = files.rules(&self.allow)?;
        let reach = match self.net {
            Some(Net::Public) => Reach::Public,
            None | Some(Net::None) if allow.is_empty() => Reach::Nothing,
            None | Some(Net::None) => Reach::Listed,
        };
        Ok(Permitted { reach, allow, resolvers: false, proxies: false, limits: EgressLimits::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_may_ask_for_nothing_unless_options_permit_it() {
        let permitted = |net, allow: &[&str]| {
            let allow = allow.iter().map(|text| (*text).to_owned()).collect();
            PermittedOptions { net, allow, secret: Vec::new() }.within(&Files::default()).unwrap()
        };
        assert_eq!(permitted(None, &[]).reach, Reach::Nothing);
        assert_eq!(permitted(Some(Net::None), &[]).reach, Reach::Nothing);
        let listed = permitted(None, &["*.example,host:5432"]);
        assert_eq!((listed.reach, listed.allow.len(), listed.resolvers), (Reach::Listed, 2, false));
        assert_eq!(permitted(Some(Net::Public), &["host:5432"]).reach, Reach::Public);
        let wrong =
            PermittedOptions { allow: vec!["a b".into()], ..PermittedOptions::default() }.within(&Files::default());
        assert!(wrong.unwrap_err().text().starts_with("invalid rule \"a b\""));
    }
}
