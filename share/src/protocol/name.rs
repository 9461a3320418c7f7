//! The name of an entry of a directory: one component, which leads nowhere else.

use super::refusal::Refusal;

/// Maximum length of a name in bytes.
const MAX_NAME: usize = 255;

/// One component of a path. It has no slash and no NUL, and is neither `.` nor `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks a name.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Refusal> {
        match bytes {
            b"" | b"." | b".." => Err(Refusal::Malformed),
            _ if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Refusal::Malformed),
            _ if bytes.len() > MAX_NAME => Err(Refusal::NameTooLong),
            _ => Ok(Self(bytes)),
        }
    }

    /// Returns its bytes.
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"/etc", b"../x", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(Refusal::Malformed), "{bad:?}");
        }
        assert_eq!(Name::new(&[b'a'; 256]), Err(Refusal::NameTooLong));
        for good in [&b"a"[..], b"...", b".git", b"a b\n\xff", &[b'a'; 255]] {
            assert_eq!(Name::new(good).unwrap().bytes(), good);
        }
    }
}
