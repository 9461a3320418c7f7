//! The policy file that options refer to, and the user's own one, which also says what the host offers. Reads them; what their
//! rules mean is the manager's.

use crate::{environment, failure::Failure};
use sandboxvm_manager::{NetworkOperator, OperatorTable, PolicyError, PolicyFile, Rule};
use std::{fs, io, path::Path};

/// The policy file that `@SET` refers to, and what the user's own file says about the host.
#[derive(Default)]
pub(in crate::options) struct Files {
    pub(super) policy: PolicyFile,
    pub(in crate::options) operator: NetworkOperator,
}

impl Files {
    /// Returns the rules that `texts` stand for.
    pub(in crate::options) fn rules(&self, texts: &[String]) -> Result<Vec<Rule>, Failure> {
        self.policy.rules(texts.iter().map(String::as_str)).map_err(refused)
    }

    pub(in crate::options) fn read(policy: Option<&Path>) -> Result<Self, Failure> {
        let own = match environment::policy_file() {
            Some(path) => read(&path)?.unwrap_or_default(),
            None => PolicyFile::default(),
        };
        let provides = own.operator.clone().map(OperatorTable::provided).transpose();
        let provides = provides.map_err(|problem| {
            Failure::new(format_args!("invalid proxy in the table [operator] of the policy file: {problem}"))
        })?;
        let provides = provides.unwrap_or_default();
        let operator = NetworkOperator { provides, ..NetworkOperator::default() };
        let Some(path) = policy else { return Ok(Self { policy: own, operator }) };
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let mut policy = read(path)?.ok_or_else(|| unreadable(path, &missing()))?;
        if policy.operator.is_some() {
            let problem = "only the user's own file can have a table [operator]";
            return Err(Failure::new(format_args!("invalid policy file {}: {problem}", path.display())));
        }
        for (name, rules) in own.sets {
            policy.sets.entry(name).or_insert(rules);
        }
        Ok(Self { policy, operator })
    }
}

/// Returns `None` if there is no such file.
fn read(path: &Path) -> Result<Option<PolicyFile>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some).map_err(|problem| {
            Failure::new(format_args!("invalid policy file {}: {}", path.display(), problem.trim_end()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

pub(super) fn parse(text: &str) -> Result<PolicyFile, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format_args!("cannot read the policy file {}: {error}", path.display()))
}

pub(super) fn refused(error: PolicyError) -> Failure {
    let hint = match &error {
        PolicyError::NoSet { .. } => {
            let file = environment::policy_file().map_or_else(String::new, |path| format!(" {}", path.display()));
            Some(format!("define it below [sets] in the policy file{file}"))
        }
        PolicyError::Rule { .. } | PolicyError::Nested { .. } => None,
    };
    Failure::new(error).hinted(hint)
}
