//! The certificate authority of one sandbox: the authority whose certificate its guest trusts, so that TLS to a host with a
//! secret can be ended outside the guest.
//!
//! The manager makes one for a sandbox, and gives the certificate to the guest. The key stays in the home and in the
//! sandbox's egress process, which signs a certificate for each host whose TLS it ends. No other machine trusts the
//! authority, and it ends with the sandbox.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use std::fmt;
use time::{Duration, OffsetDateTime};

/// Life of an authority. A sandbox can be paused for years, and what limits the use of its key is that the sandbox's guest
/// alone trusts it; so the life is only there to have an end.
const LIFE: Duration = Duration::days(3650);

/// Life of the certificate of a host. Shorter than the longest that clients accept.
const LEAF_LIFE: Duration = Duration::days(90);

/// How far a guest's clock may be behind that of the host.
const SKEW: Duration = Duration::days(1);

/// Why there is no authority, or no certificate of it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The key is not one of an authority.
    #[error("invalid key of a certificate authority")]
    Key(#[source] rcgen::Error),
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[source] rcgen::Error),
}

/// An authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Key of every certificate that it signs. It is made again with each process.
    leaf: KeyPair,
}

/// A certificate for a host, and its key.
pub struct Leaf {
    /// The certificate as DER.
    pub certificate: Vec<u8>,
    /// The private key as PKCS #8 DER.
    pub key: Vec<u8>,
}

impl Authority {
    /// Makes an authority with a new key (ECDSA P-256).
    ///
    /// # Errors
    /// [`AuthorityError::Key`].
    pub fn generate() -> Result<Self, AuthorityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Key).and_then(Self::new)
    }

    /// Returns the authority with the key that [`Self::key`] returned. The key of its leaves is a new one.
    ///
    /// # Errors
    /// [`AuthorityError::Key`].
    pub fn from_key(pem: &str) -> Result<Self, AuthorityError> {
        KeyPair::from_pem(pem).map_err(AuthorityError::Key).and_then(Self::new)
    }

    fn new(key: KeyPair) -> Result<Self, AuthorityError> {
        let leaf = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Key)?;
        Ok(Self { issuer: Issuer::new(own_parameters(&key), key), leaf })
    }

    /// Returns the private key as PKCS #8 PEM. A process that has it can sign as this authority, so it is kept where only the owner of
    /// the sandbox can read.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes the certificate that a guest has to trust, as PEM. It is another one each time, for the same key and name: it is
    /// valid from a day ago, by the clock of the host, for 3650 days, and cannot sign other authorities.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`].
    pub fn certificate(&self) -> Result<String, AuthorityError> {
        let now = OffsetDateTime::now_utc();
        let mut parameters = own_parameters(self.issuer.key());
        parameters.not_before = now - SKEW;
        parameters.not_after = now + LIFE;
        parameters.self_signed(self.issuer.key()).map(|made| made.pem()).map_err(AuthorityError::Certificate)
    }

    /// Makes a certificate for the host `name`, a domain name in ASCII, `*.domain` or an IP address. It is valid from a day ago,
    /// by the clock of the host, for 90 days. All leaves of one value have one key (ECDSA P-256).
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] if the name is not ASCII or the certificate cannot be signed.
    pub fn leaf(&self, name: &str) -> Result<Leaf, AuthorityError> {
        let now = OffsetDateTime::now_utc();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).map_err(AuthorityError::Certificate)?;
        // The name is in the list of alternative names. A common name can have 64 bytes only.
        parameters.distinguished_name = named("sandboxvm host");
        parameters.not_before = now - SKEW;
        parameters.not_after = now + LEAF_LIFE;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        parameters.use_authority_key_identifier_extension = true;
        let made = parameters.signed_by(&self.leaf, &self.issuer).map_err(AuthorityError::Certificate)?;
        Ok(Leaf { certificate: made.der().to_vec(), key: self.leaf.serialize_der() })
    }
}

/// What an authority's certificate says, apart from its dates. It follows from the key, so the key is all that has to be
/// kept to sign as the same authority.
fn own_parameters(key: &KeyPair) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let identifier = parameters.key_identifier(key);
    let hex: String = identifier.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    parameters.distinguished_name = named(&format!("sandboxvm sandbox {hex}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.serial_number = Some(SerialNumber::from_slice(&identifier));
    parameters
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_the_same_one_after_its_key_was_read_again() {
        let first = Authority::generate().unwrap();
        let second = Authority::from_key(&first.key()).unwrap();
        assert_eq!(own_parameters(first.issuer.key()), own_parameters(second.issuer.key()));
        assert!(first.certificate().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
        assert_ne!(first.key(), Authority::generate().unwrap().key());
        Authority::from_key("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap_err();
    }

    #[test]
    fn keys_are_not_shown_for_debugging() {
        let authority = Authority::generate().unwrap();
        let leaf = authority.leaf("a.example").unwrap();
        assert_eq!(format!("{authority:?} {leaf:?}"), "Authority { .. } Leaf { .. }");
    }
}
