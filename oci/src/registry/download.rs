//! Downloading a file from a URL that a user states, such as in `ADD`: through the same connections, with the same
//! rules, as those of registries. No credentials are sent. The content is not trusted: the caller verifies it.

use super::{
    RegistryOptions,
    client::{ANSWER, MAX_REDIRECTS, empty, is_redirect, silent},
    connection,
    error::RegistryError,
    pace::Pace,
    target::Target,
};
use crate::digest::{Digest, Hasher};
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, HOST, HeaderName, LAST_MODIFIED, LOCATION},
};
use std::{io::Write, time::SystemTime};
use tokio::time::timeout;

/// A file that was downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downloaded {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the content.
    pub digest: Digest,
    /// When the file was changed last, if the server says so.
    pub modified: Option<SystemTime>,
}

/// Downloads the file at a URL. `may_be_plain` says that its host may be spoken to without TLS, if the URL says so; after a
/// redirect, that holds for this host and those in `plain_http`.
///
/// # Errors
/// Fails if the URL is invalid, if the server cannot or may not be reached or does not have the file, if the file has
/// more than `maximum` bytes, or if it is not complete. `output` can have a part of the file then.
pub async fn download(
    url: &str,
    may_be_plain: bool,
    options: &RegistryOptions,
    maximum: u64,
    output: &mut (dyn Write + Send),
) -> Result<Downloaded, RegistryError> {
    let target = Target::of(url, may_be_plain)?;
    let transfer = transfer(target, options, maximum, output);
    timeout(options.total, transfer).await.map_err(|_| RegistryError::Deadline(options.total))?
}

async fn transfer(
    target: Target,
    options: &RegistryOptions,
    maximum: u64,
    output: &mut (dyn Write + Send),
) -> Result<Downloaded, RegistryError> {
    let (answer, at) = answer(target, options).await?;
    let host = at.authority();
    let problem = |problem: String| RegistryError::Answer { host: host.clone(), problem };
    if !answer.status().is_success() || answer.status().as_u16() == 206 {
        let what = at.path.split('?').next().unwrap_or_default().to_owned();
        return Err(match answer.status().as_u16() {
            401 | 403 => RegistryError::Denied { host, what, with_credentials: false },
            404 | 410 => RegistryError::NotFound { host, what },
            status => RegistryError::Status { host, status, what },
        });
    }
    let too_large = || problem(format!("the file has more than {maximum} bytes"));
    let text = |name: HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let stated = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let modified = text(LAST_MODIFIED).and_then(|date| httpdate::parse_http_date(date).ok());
    if stated.is_some_and(|stated| stated > maximum) {
        return Err(too_large());
    }
    let fail = |problem: String| RegistryError::Unreachable { host: host.clone(), problem };
    let (mut body, mut pace) = (answer.into_body(), Pace::new(options.idle));
    let (mut size, mut hasher) = (0_u64, Hasher::default());
    loop {
        let frame = pace.wait(body.frame()).await.ok_or_else(|| fail("it sends nothing".into()))?;
        let Some(frame) = frame else { return Ok(Downloaded { size, digest: hasher.finish(), modified }) };
        // A connection that ends before the stated length is an error of the frame.
        if let Ok(bytes) = frame.map_err(|error| fail(error.to_string()))?.into_data() {
            size = size.saturating_add(bytes.len() as u64);
            if size > maximum {
                return Err(too_large());
            }
            hasher.update(&bytes);
            output.write_all(&bytes).map_err(RegistryError::Output)?;
            if !pace.count(bytes.len()) {
                return Err(fail("it sends too slowly".into()));
            }
        }
    }
}

/// Sends the request and follows redirects. Returns the answer, and where it is from.
async fn answer(target: Target, options: &RegistryOptions) -> Result<(Response<Incoming>, Target), RegistryError> {
    let tls = connection::tls(options)?;
    let mut plain_http = options.plain_http.clone();
    if !target.tls {
        plain_http.push(format!("{}:{}", target.host, target.port));
    }
    let mut at = target.clone();
    for _ in 0..=MAX_REDIRECTS {
        let request = Request::builder().method(Method::GET).uri(&at.path).header(HOST, at.authority());
        // The file is stored as it is, and so is its digest.
        let request = request.header(ACCEPT_ENCODING, "identity").body(empty());
        let request = request.map_err(|error| RegistryError::Address(error.to_string()))?;
        let sent = timeout(ANSWER, connection::send(&at, request, options, &tls)).await;
        let answer = sent.map_err(|_| silent(&at))??;
        if !is_redirect(answer.status()) {
            return Ok((answer, at));
        }
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let problem = || RegistryError::Answer { host: at.authority(), problem: "it has no location".into() };
        at = at.follow(location.ok_or_else(problem)?, &plain_http)?;
    }
    Err(RegistryError::Redirects(target.authority()))
}
