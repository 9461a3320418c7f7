//! Whose certificates are accepted of servers whose TLS is ended: the authorities that the host
//! trusts, and those that the operator adds.

use std::{fs::File, path::PathBuf};

/// The lists of the distributions.
const OF_HOST: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Opens the files with certificates. A host without a list trusts no server, so that every host whose
/// TLS is ended is refused with that reason.
pub(crate) fn files(of_operator: &Option<PathBuf>) -> Vec<File> {
    let of_host = OF_HOST.iter().find_map(|path| File::open(path).ok());
    let of_operator = of_operator.as_ref().and_then(|path| File::open(path).ok());
    of_host.into_iter().chain(of_operator).collect()
}
