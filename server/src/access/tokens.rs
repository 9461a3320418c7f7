//! Tokens of single sandboxes, derived from one secret of the server: nothing of them is stored but how often they were
//! revoked (their generation, in the sandbox's record), and those of one sandbox say nothing of another's.

use hmac::{Hmac, Mac};
use sandboxvm_manager::{SandboxId, SharedVolumeId};
use sha2::Sha256;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use subtle::ConstantTimeEq;

const SECRET_BYTES: usize = 32;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The secret cannot be read or made.
    #[error("cannot read or create the secret of the server {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// It is no secret.
    #[error("{} is damaged: expected a secret of {SECRET_BYTES} bytes", .0.display())]
    Damaged(PathBuf),
}

/// What a token opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Commands and files (`X-Access-Token`).
    Envd,
    /// The sandbox's own ports (`E2b-Traffic-Access-Token`).
    Traffic,
}

pub(crate) struct Tokens {
    secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// With the secret at `path`, made there first where it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io { path: path.to_owned(), source };
        match fs::read(path) {
            Ok(bytes) => {
                let secret = bytes.try_into().map_err(|_| TokenError::Damaged(path.to_owned()))?;
                Ok(Self { secret })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = random().map_err(failed)?;
                let mut file =
                    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
                file.write_all(&secret).and_then(|()| file.sync_all()).map_err(failed)?;
                Ok(Self { secret })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The token of a sandbox: hexadecimal text, and behind it its generation where others were revoked before.
    pub(crate) fn of(&self, scope: Scope, id: &SandboxId, generation: u32) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(match scope {
            Scope::Envd => b"envd:",
            Scope::Traffic => b"traffic:",
        });
        mac.update(id.as_str().as_bytes());
        if generation > 0 {
            mac.update(format!(":{generation}").as_bytes());
        }
        let token = hex::encode(&mac.finalize().into_bytes()[..24]);
        if generation > 0 { format!("{token}-{generation}") } else { token }
    }

    /// The token of a volume.
    pub(crate) fn of_volume(&self, id: &SharedVolumeId) -> String {
        self.sign(&format!("volume:{id}"))
    }

    /// True when `token` is that of the volume. Takes the same time for any token of the same length.
    pub(crate) fn opens_volume(&self, id: &SharedVolumeId, token: &[u8]) -> bool {
        self.of_volume(id).as_bytes().ct_eq(token).into()
    }

    /// Signs a text that says for what it is, such as the path of an upload.
    pub(crate) fn sign(&self, text: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(b"signed:");
        mac.update(text.as_bytes());
        hex::encode(&mac.finalize().into_bytes()[..24])
    }

    /// True when a signature is that of the text.
    pub(crate) fn has_signed(&self, text: &str, signature: &str) -> bool {
        self.sign(text).as_bytes().ct_eq(signature.as_bytes()).into()
    }

    /// True when `token` is that sandbox's, of this generation; of any where the sandbox is not there any more. Takes the same
    /// time for any token of the same length.
    pub(crate) fn opens(&self, scope: Scope, id: &SandboxId, generation: Option<u32>, token: &[u8]) -> bool {
        let stated = || std::str::from_utf8(token).ok()?.split_once('-')?.1.parse().ok();
        let generation = generation.or_else(stated).unwrap_or(0);
        self.of(scope, id, generation).as_bytes().ct_eq(token).into()
    }
}

/// Bytes of the kernel's.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_its_sandbox_and_scope_alone_and_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let id = |text: &str| SandboxId::try_from(text.to_owned()).unwrap();
        let token = Tokens::open(&path).unwrap().of(Scope::Envd, &id("abcdefgh"), 0);
        let tokens = Tokens::open(&path).unwrap();
        assert!(tokens.opens(Scope::Envd, &id("abcdefgh"), Some(0), token.as_bytes()));
        assert!(!tokens.opens(Scope::Traffic, &id("abcdefgh"), Some(0), token.as_bytes()));
        assert!(!tokens.opens(Scope::Envd, &id("abcdefgi"), None, token.as_bytes()));
        assert!(!tokens.opens(Scope::Envd, &id("abcdefgh"), None, b""));
        // Once revoked it opens nothing that is there.
        let next = tokens.of(Scope::Envd, &id("abcdefgh"), 1);
        assert!(tokens.opens(Scope::Envd, &id("abcdefgh"), Some(1), next.as_bytes()));
        for (generation, token, opens) in [
            (Some(1), token.as_str(), false),
            (Some(0), &next, false),
            (Some(2), &next, false),
            (None, &token, true),
            (None, &next, true),
            (None, &next.replace("-1", "-2"), false),
            (None, &format!("{token}-1"), false),
        ] {
            assert_eq!(tokens.opens(Scope::Envd, &id("abcdefgh"), generation, token.as_bytes()), opens, "{token}");
        }
        fs::write(&path, b"short").unwrap();
        assert!(matches!(Tokens::open(&path), Err(TokenError::Damaged(_))));
    }
}
