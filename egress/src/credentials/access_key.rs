//! An access key of AWS, as the value of a secret holds it.

use std::fmt;
use zeroize::Zeroizing;

/// An access key of AWS.
pub(super) struct AccessKey {
    pub(super) id: String,
    pub(super) secret: Zeroizing<String>,
    pub(super) token: Option<Zeroizing<String>>,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").finish_non_exhaustive()
    }
}

impl AccessKey {
    /// Reads the lines ID, secret and, for a temporary key, session token. A secret of another kind has one line.
    pub(super) fn parse(lines: &str) -> Option<Self> {
        let lines: Vec<&str> = lines.split('\n').collect();
        let (id, secret, token) = match lines[..] {
            [id, secret] => (id, secret, None),
            [id, secret, token] => (id, secret, Some(token)),
            _ => return None,
        };
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_id = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        (is_id && is_plain(id) && is_plain(secret) && token.is_none_or(is_plain)).then(|| Self {
            id: id.to_owned(),
            secret: secret.to_owned().into(),
            token: token.map(|token| token.to_owned().into()),
        })
    }
}
