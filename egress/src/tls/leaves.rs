//! The certificates that a guest is shown where its TLS is ended, signed by the sandbox's authority.

use sandboxvm_authority::{Authority, AuthorityError};
use sandboxvm_egress_policy::name::DomainName;
use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_rustls::rustls::{
    self,
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

/// Maximum number of certificates that are kept. Below a wildcard there can be any number of hosts.
const MAX_KEPT: usize = 128;

/// How long a certificate is used. It is valid for longer.
const USED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Signs certificates for hosts, and keeps them.
pub struct Leaves {
    key: Zeroizing<String>,
    /// Read when the first certificate is needed.
    authority: OnceCell<Authority>,
    made: RefCell<HashMap<DomainName, (Instant, Arc<CertifiedKey>)>>,
}

/// Why there is no certificate for a host.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The authority does not make one.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The key cannot be used for TLS.
    #[error(transparent)]
    Key(#[from] rustls::Error),
}

impl Leaves {
    /// Returns certificates of the authority with this private key.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self { key: Zeroizing::new(key.to_owned()), authority: OnceCell::new(), made: RefCell::default() }
    }

    /// Returns a certificate for the host `name`.
    ///
    /// # Errors
    /// When the authority cannot be used.
    pub fn leaf(&self, name: &DomainName) -> Result<Arc<CertifiedKey>, LeafError> {
        let mut made = self.made.borrow_mut();
        if let Some((since, leaf)) = made.get(name)
            && since.elapsed() < USED_FOR
        {
            return Ok(Arc::clone(leaf));
        }
        let authority = match self.authority.get() {
            Some(authority) => authority,
            None => {
                let read = Authority::from_key(&self.key)?;
                self.authority.get_or_init(|| read)
            }
        };
        let leaf = authority.leaf(name.as_str())?;
        let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key)))?;
        let leaf = Arc::new(CertifiedKey::new(vec![CertificateDer::from(leaf.certificate)], key));
        if made.len() >= MAX_KEPT {
            made.clear();
        }
        made.insert(name.clone(), (Instant::now(), Arc::clone(&leaf)));
        Ok(leaf)
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_and_bounded() {
        let leaves = Leaves::new(&Authority::generate().unwrap().key());
        let name = |number: usize| format!("n{number}.example").parse().unwrap();
        let first = leaves.leaf(&name(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &leaves.leaf(&name(0)).unwrap()));
        for number in 1..=MAX_KEPT {
            leaves.leaf(&name(number)).unwrap();
        }
        assert!(leaves.made.borrow().len() <= MAX_KEPT);
        assert!(!Arc::ptr_eq(&first, &leaves.leaf(&name(0)).unwrap()));
        Leaves::new("no key").leaf(&name(0)).unwrap_err();
    }
}
