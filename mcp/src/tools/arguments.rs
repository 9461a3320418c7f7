//! Arguments that several tools share, and their errors.

use base64::{Engine, engine::general_purpose::STANDARD};
use sandboxvm_protocol::{
    agent::{CText, files::FilePath},
    identity::SandboxName,
    machine::MIB,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An invalid argument.
#[derive(Debug, thiserror::Error)]
#[error("invalid argument {name}: {problem}")]
pub(crate) struct BadArgument {
    name: &'static str,
    problem: String,
}

impl BadArgument {
    pub(crate) fn new(name: &'static str, problem: impl ToString) -> Self {
        Self { name, problem: problem.to_string() }
    }
}

/// Encoding of the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encoding {
    /// UTF-8.
    Text,
    /// Base64, for bytes that are not text.
    Base64,
}

impl Encoding {
    pub(crate) fn decode(self, content: String) -> Result<Vec<u8>, BadArgument> {
        match self {
            Self::Text => Ok(content.into_bytes()),
            Self::Base64 => STANDARD.decode(content).map_err(|error| BadArgument::new("content", error)),
        }
    }
}

pub(crate) fn text(name: &'static str, value: &str) -> Result<CText, BadArgument> {
    CText::try_from(value).map_err(|error| BadArgument::new(name, error))
}

pub(crate) fn texts(name: &'static str, values: &[String]) -> Result<Vec<CText>, BadArgument> {
    values.iter().map(|value| text(name, value)).collect()
}

pub(crate) fn path(value: &str) -> Result<FilePath, BadArgument> {
    FilePath::try_from(value).map_err(|error| BadArgument::new("path", error))
}

pub(crate) fn name(argument: &'static str, value: &str) -> Result<SandboxName, BadArgument> {
    SandboxName::try_from(value.to_owned()).map_err(|error| BadArgument::new(argument, error))
}

/// Converts a size in MiB.
pub(crate) fn mib<T: TryFrom<u64, Error: ToString>>(name: &'static str, mib: u64) -> Result<T, BadArgument> {
    let bytes = mib.checked_mul(MIB).ok_or_else(|| BadArgument::new(name, "the size is too large"))?;
    T::try_from(bytes).map_err(|error| BadArgument::new(name, error))
}

/// Checks that a number is within bounds.
pub(crate) fn within(name: &'static str, value: u64, least: u64, most: u64) -> Result<u64, BadArgument> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(BadArgument::new(name, format_args!("{value} is not between {least} and {most}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::machine::MemorySize;

    #[test]
    fn what_is_wrong_names_the_argument_and_the_bounds() {
        let message = mib::<MemorySize>("memory_mib", 1).unwrap_err().to_string();
        assert!(message.starts_with("invalid argument memory_mib: ") && message.contains("64 MiB"), "{message}");
        assert!(mib::<MemorySize>("memory_mib", u64::MAX).is_err());
        assert_eq!(
            within("count", 0, 1, 16).unwrap_err().to_string(),
            "invalid argument count: 0 is not between 1 and 16"
        );
        assert!(text("user", "a\0b").is_err() && path("").is_err() && name("name", "A").is_err());
    }

    #[test]
    fn content_is_decoded_or_refused() {
        assert_eq!(Encoding::Text.decode("ä".into()).unwrap(), "ä".as_bytes());
        assert_eq!(Encoding::Base64.decode("AP8=".into()).unwrap(), [0, 255]);
        assert!(Encoding::Base64.decode("not base64!".into()).unwrap_err().to_string().contains("content"));
    }
}
