//! Access keys of AWS: secrets that sign requests instead of being part of them. The egress process gets one as a value of
//! two or three lines, which no other secret has: ID, secret, and the session token of a temporary key.

use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};

/// Variable of the guest with the placeholder of the ID, which is the name of the secret.
pub(super) const ID_VARIABLE: &str = "AWS_ACCESS_KEY_ID";

/// Variable of the guest with the placeholder of the secret, which is the same.
pub(super) const SECRET_VARIABLE: &str = "AWS_SECRET_ACCESS_KEY";

/// Maximum size of a file with keys in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// Maximum length of a profile's name in bytes.
const MAX_PROFILE: usize = 128;

/// Maximum length of a key in bytes, as of every secret.
const MAX_KEY: usize = 4096;

/// What a secret is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// A text that replaces its placeholder in headers.
    #[default]
    Text,
    /// An access key of AWS, with which requests that the guest signed with the placeholder are signed again.
    AccessKey {
        /// The profile, where the value is in a file, which has the form of AWS's credentials file.
        profile: String,
    },
}

impl SecretKind {
    pub(crate) fn is_text(&self) -> bool {
        *self == Self::Text
    }

    /// Returns what is wrong with it, for a secret with this name.
    pub(in crate::network) fn problem(&self, name: &str) -> Option<&'static str> {
        let Self::AccessKey { profile } = self else { return None };
        if name != ID_VARIABLE {
            return Some("the name of an access key is AWS_ACCESS_KEY_ID");
        }
        let is_plain = |character: char| !character.is_control() && !matches!(character, '[' | ']');
        let is_profile = !profile.is_empty() && profile.len() <= MAX_PROFILE && profile.chars().all(is_plain);
        (!is_profile)
            .then_some("the profile is empty, longer than 128 bytes, or contains a bracket or control character")
    }
}

/// Returns the value of a secret that is an access key.
pub(super) fn joined(id: &str, secret: &str, token: Option<&str>) -> String {
    [id, secret].into_iter().chain(token).collect::<Vec<_>>().join("\n")
}

/// Returns what is wrong with the value of an access key.
pub(in crate::network) fn value_problem(value: &str) -> Option<&'static str> {
    let is_plain = |line: &str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_graphic());
    let lines: Vec<&str> = value.split('\n').collect();
    if !(2..=3).contains(&lines.len()) || !lines.iter().all(|line| is_plain(line)) {
        return Some("an access key has an ID and a secret, and a session token if it is temporary");
    }
    let is_id = lines[0].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_id {
        return Some("the ID of an access key has letters and digits only");
    }
    (value.len() > MAX_KEY).then_some("it is longer than 4096 bytes")
}

/// Reads the key of a profile from a file in the form of AWS's credentials file.
pub(super) fn from_file(path: &Path, profile: &str) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    let key = of_profile(&text, profile).ok_or_else(|| {
        io::Error::other(format!("it has no profile {profile:?} with aws_access_key_id and aws_secret_access_key"))
    })?;
    value_problem(&key).map_or(Ok(key), |problem| Err(io::Error::other(problem)))
}

fn of_profile(text: &str, profile: &str) -> Option<String> {
    let [mut id, mut secret, mut token] = [None, None, None];
    let mut is_wanted = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_wanted = section.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_wanted && !line.starts_with(['#', ';']))
        {
            match name.trim() {
                "aws_access_key_id" => id = Some(value.trim()),
                "aws_secret_access_key" => secret = Some(value.trim()),
                "aws_session_token" => token = Some(value.trim()),
                _ => {}
            }
        }
    }
    Some(joined(id?, secret?, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# keys\n[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key=abc/+=\n\n[ci]\n\
        region = eu-test-1\naws_access_key_id=AKIDCI\n;aws_access_key_id=AKIDOLD\naws_secret_access_key = x\naws_session_token = t==\n\
        [half]\naws_access_key_id = AKIDHALF\n";

    #[test]
    fn key_of_a_profile_is_read_and_no_other() {
        assert_eq!(of_profile(FILE, "default").unwrap(), "AKIDDEFAULT\nabc/+=");
        assert_eq!(of_profile(FILE, "ci").unwrap(), "AKIDCI\nx\nt==");
        assert_eq!((of_profile(FILE, "half"), of_profile(FILE, "none"), of_profile("", "default")), (None, None, None));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), FILE).unwrap();
        assert_eq!(from_file(file.path(), "ci").unwrap(), "AKIDCI\nx\nt==");
        let error = from_file(file.path(), "half").unwrap_err().to_string();
        assert!(error.starts_with("it has no profile \"half\"") && !error.contains("AKID"), "{error}");
    }

    #[test]
    fn values_that_are_not_an_access_key_are_rejected() {
        assert_eq!(value_problem("AKID\nsecret"), None);
        for value in ["AKID", "AKID\n", "AKID\nsecret\n", "A-B\nsecret", "AKID\nse cret", "a\nb\nc\nd"] {
            assert!(value_problem(value).is_some(), "{value:?}");
        }
        let key = SecretKind::AccessKey { profile: "default".into() };
        assert_eq!((key.problem(ID_VARIABLE), SecretKind::Text.problem("X")), (None, None));
        assert!(key.problem("X").is_some());
        assert!(SecretKind::AccessKey { profile: "a]".into() }.problem(ID_VARIABLE).is_some());
    }
}
