//! Requests that are signed with AWS Signature Version 4. The guest signs with placeholders for the key. That signature is
//! dropped, and the request is signed again with the true key, over the headers that the guest signed.
//!
//! Written for the two algorithms that it needs, HMAC and SHA-256 of `ring`, which TLS has here already: the crates for it
//! bring an HTTP client's types and a runtime for credentials, none of which may be in this process.

use super::{
    Credentials,
    access_key::AccessKey,
    sensitive,
    verdict::{About, Rejected, Target},
};
use hyper::{
    HeaderMap, StatusCode,
    header::{self, HeaderName},
    http::request,
};
use ring::{digest, hmac};
use std::{borrow::Cow, collections::BTreeSet, fmt::Write as _};
use zeroize::Zeroizing;

/// The only algorithm. Its asymmetric variant has another key.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Maximum number of signed headers.
const MAX_SIGNED: usize = 64;

/// Services whose paths are signed as they are sent. Those of all others are encoded once more.
const PLAIN_PATHS: [&str; 4] = ["s3", "s3-outposts", "s3-object-lambda", "s3express"];

const CONTENT_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// A request that the guest signed with a placeholder, without its signature.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsigned {
    secret: usize,
    date: String,
    region: String,
    service: String,
    /// In lower case, sorted.
    headers: BTreeSet<String>,
}

/// What of a request's body is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The value of `x-amz-content-sha256`: a hash, or one of the constants for a body that is not signed.
    Stated(String),
    /// The hash of the body, which has to be read first.
    Hash,
}

/// Takes the signature off a request if it was made with the placeholder of an access key.
///
/// # Errors
/// When the key is not for this host, or the signature cannot be made again.
pub(super) fn take(
    head: &mut request::Parts,
    target: &Target,
    credentials: &Credentials,
) -> Result<Option<Unsigned>, Rejected> {
    let headers = &mut head.headers;
    let Some(value) = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let Some(parameters) = value.strip_prefix(ALGORITHM).filter(|rest| rest.starts_with([' ', ','])) else {
        return Ok(None);
    };
    let parameter = |name: &str| {
        let mut parameters = parameters.split(',').filter_map(|parameter| parameter.trim().split_once('='));
        parameters.find_map(|(key, value)| (key == name).then_some(value))
    };
    let Some(scope) = parameter("Credential") else { return Ok(None) };
    let Some((id, scope)) = scope.split_once('/') else { return Ok(None) };
    let Some(secret) = credentials.secrets.iter().position(|secret| secret.placeholder == id) else {
        return Ok(None);
    };
    let known = &credentials.secrets[secret];
    if known.access_key().is_none() {
        return Err(Rejected::secret(secret, "the secret is not an access key of AWS"));
    }
    if !known.is_for(&target.name) {
        return Err(Rejected::secret(secret, "the secret is not for this host"));
    }
    let &[date, region, service, "aws4_request"] = &scope.split('/').collect::<Vec<_>>()[..] else {
        return Err(unsignable("the scope of the AWS signature is not DATE/REGION/SERVICE/aws4_request"));
    };
    let is_word = |text: &str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if !(date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()) && is_word(region) && is_word(service)) {
        return Err(unsignable("the scope of the AWS signature is not DATE/REGION/SERVICE/aws4_request"));
    }
    let signed: BTreeSet<String> =
        parameter("SignedHeaders").unwrap_or_default().split(';').map(str::to_ascii_lowercase).collect();
    if signed.len() > MAX_SIGNED || !signed.contains("host") {
        return Err(unsignable("the AWS signature does not sign the header Host, or signs too many headers"));
    }
    if issues_credentials(service, head.uri.query().unwrap_or_default()) {
        return Err(Rejected::secret(secret, "AWS answers the request with credentials, which the guest may not have"));
    }
    let (date, region, service) = (date.to_owned(), region.to_owned(), service.to_owned());
    headers.remove(header::AUTHORIZATION);
    // The guest has no token: what it sends is that of another key, or a placeholder.
    let mut signed = signed;
    headers.remove(&TOKEN);
    signed.remove(TOKEN.as_str());
    Ok(Some(Unsigned { secret, date, region, service, headers: signed }))
}

/// Returns true for requests that every valid key may send, and whose answers are credentials. What the policy of the key
/// has to allow first (as new keys of IAM) is the owner's to leave out.
fn issues_credentials(service: &str, query: &str) -> bool {
    let is_session = |parameter: &str| {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        decoded(name.as_bytes()).eq_ignore_ascii_case(b"session")
    };
    // The second is CreateSession of a directory bucket.
    service.eq_ignore_ascii_case("sts")
        || (service.eq_ignore_ascii_case("s3express") && query.split('&').any(is_session))
}

impl Unsigned {
    /// Returns what of the body is signed.
    ///
    /// # Errors
    /// When each part of the body has a signature, which cannot be made again.
    pub fn payload(&self, headers: &HeaderMap) -> Result<Payload, Rejected> {
        let Some(stated) = headers.get(CONTENT_HASH) else { return Ok(Payload::Hash) };
        let stated = stated.to_str().unwrap_or_default();
        let is_hash = stated.len() == 64 && stated.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hash || matches!(stated, "UNSIGNED-PAYLOAD" | "STREAMING-UNSIGNED-PAYLOAD-TRAILER") {
            return Ok(Payload::Stated(stated.to_owned()));
        }
        Err(unsignable(
            "sandboxvm cannot sign the parts of a streamed AWS payload: use UNSIGNED-PAYLOAD or a hash of the body",
        ))
    }

    /// Signs a request, in the form in which it is forwarded. `payload` is the hash of the body, or what stands for it.
    ///
    /// # Errors
    /// When a header that the guest signed is not forwarded, or the key is no longer there.
    pub fn sign(&self, head: &mut request::Parts, payload: &str, credentials: &Credentials) -> Result<(), Rejected> {
        let key = credentials.secrets.get(self.secret).and_then(|secret| secret.access_key());
        let key = key.ok_or(Rejected::secret(self.secret, "the secret cannot be read"))?;
        let time = head.headers.get(&DATE).and_then(|time| time.to_str().ok()).unwrap_or_default().to_owned();
        let is_time = time.len() == 16 && time.as_bytes()[8] == b'T' && time.ends_with('Z');
        if !(is_time && time.starts_with(&self.date)) {
            return Err(unsignable("the request has no header x-amz-date with the date of its AWS signature"));
        }
        let mut signed = self.headers.clone();
        if let Some(token) = &key.token {
            head.headers.insert(TOKEN, sensitive(token.as_bytes()).ok_or(UNUSABLE)?);
            signed.insert(TOKEN.as_str().to_owned());
        }
        let names = signed.iter().map(String::as_str).collect::<Vec<_>>().join(";");
        let canonical = Zeroizing::new(self.canonical(head, &signed, &names, payload)?);
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", hash(&canonical));
        let signature = hex(mac(&self.signing_key(key), text.as_bytes()).as_ref());
        let id = &key.id;
        let value = format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
        head.headers.insert(header::AUTHORIZATION, sensitive(value.as_bytes()).ok_or(UNUSABLE)?);
        Ok(())
    }

    fn canonical(
        &self,
        head: &request::Parts,
        signed: &BTreeSet<String>,
        names: &str,
        payload: &str,
    ) -> Result<Vec<u8>, Rejected> {
        let path = match head.uri.path() {
            "" => Cow::Borrowed("/"),
            path if PLAIN_PATHS.contains(&self.service.as_str()) => Cow::Borrowed(path),
            path => Cow::Owned(encoded(normal(path).as_bytes(), b"/")),
        };
        let mut text =
            format!("{}\n{path}\n{}\n", head.method, query(head.uri.query().unwrap_or_default())).into_bytes();
        for name in signed {
            text.extend_from_slice(name.as_bytes());
            text.push(b':');
            let mut values: Vec<&[u8]> =
                head.headers.get_all(name.as_str()).iter().map(hyper::header::HeaderValue::as_bytes).collect();
            if let ("host", Some(authority)) = (name.as_str(), head.uri.authority()) {
                values = vec![authority.as_str().as_bytes()];
            }
            if values.is_empty() {
                return Err(unsignable("the AWS signature signs a header that the request does not have"));
            }
            for (at, value) in values.into_iter().enumerate() {
                if at > 0 {
                    text.push(b',');
                }
                trimmed(value, &mut text);
            }
            text.push(b'\n');
        }
        text.extend_from_slice(format!("\n{names}\n{payload}").as_bytes());
        Ok(text)
    }

    fn signing_key(&self, key: &AccessKey) -> hmac::Tag {
        let first = Zeroizing::new(format!("AWS4{}", key.secret.as_str()));
        let first = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, first.as_bytes()), self.date.as_bytes());
        [&self.region, &self.service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part.as_bytes()))
    }
}

/// Returns the hash of a body as it is signed.
pub fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn mac(key: &hmac::Tag, text: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const UNUSABLE: Rejected = unsignable("the access key of AWS is not valid in a header");

/// The request cannot be signed, and nothing of it is forwarded.
pub const fn unsignable(reason: &'static str) -> Rejected {
    Rejected { status: StatusCode::NOT_IMPLEMENTED, reason, about: About::Nothing }
}

/// The body that would be signed did not arrive in time.
pub const fn late() -> Rejected {
    Rejected {
        status: StatusCode::REQUEST_TIMEOUT,
        reason: "the body of a request that is signed with its hash took too long",
        about: About::Nothing,
    }
}

/// Appends a header value without spaces at its ends, and with one in place of several.
fn trimmed(value: &[u8], text: &mut Vec<u8>) {
    let words = value.split(|byte| *byte == b' ' || *byte == b'\t').filter(|word| !word.is_empty());
    for (at, word) in words.enumerate() {
        if at > 0 {
            text.push(b' ');
        }
        text.extend_from_slice(word);
    }
}

/// Returns the path without `.`, `..` and empty segments (RFC 3986, 5.2.4).
fn normal(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let end = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

/// Returns the parameters sorted, each encoded in the one way.
fn query(query: &str) -> String {
    let once = |text: &str| encoded(&decoded(text.as_bytes()), b"");
    let mut parameters: Vec<(String, String)> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
        .map(|(name, value)| (once(name), once(value)))
        .collect();
    parameters.sort();
    parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn encoded(bytes: &[u8], kept: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || kept.contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

fn decoded(bytes: &[u8]) -> Vec<u8> {
    let (mut made, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits are a byte.
                made.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                at += 3;
            }
            _ => {
                made.push(*byte);
                at += 1;
            }
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{
        head::prepare,
        tests::{OTHER, PLACEHOLDER, VALUE, settings},
    };
    use hyper::{Request, Version};
    use sandboxvm_protocol::egress::SecretValue;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn credentials(host: &str, token: Option<&str>) -> Credentials {
        let value = ["AKIDEXAMPLE", SECRET].into_iter().chain(token).collect::<Vec<_>>().join("\n");
        let mut settings = settings();
        settings.secrets[0] = SecretValue {
            name: "AWS_ACCESS_KEY_ID".into(),
            placeholder: PLACEHOLDER.into(),
            hosts: vec![host.into()],
            value: Ok(value),
        };
        Credentials::new(&settings).unwrap()
    }

    fn target(host: &str) -> Target {
        Target { name: host.parse().unwrap(), address: [192, 0, 2, 1].into(), port: 443 }
    }

    fn request(method: &str, url: &str, headers: &[(&str, &str)], authorization: &str) -> request::Parts {
        let mut request = Request::builder().method(method).uri(url).version(Version::HTTP_2);
        for (name, value) in [("x-amz-date", "20150830T123600Z")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        request.header("authorization", authorization).body(()).unwrap().into_parts().0
    }

    fn authorization(id: &str, service: &str, signed: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/20150830/us-east-1/{service}/aws4_request, SignedHeaders={signed}, Signature=00"
        )
    }

    /// Returns the signature of a request, and its signed headers.
    fn signed(
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        by: (&str, &str),
        body: &[u8],
        token: Option<&str>,
    ) -> String {
        let host = url.parse::<hyper::Uri>().unwrap().host().unwrap().to_owned();
        let credentials = credentials(&host, token);
        let mut head = request(method, url, headers, &authorization(PLACEHOLDER, by.0, by.1));
        let unsigned = prepare(&mut head, &target(&host), &credentials).unwrap().unsigned.unwrap();
        let payload = match unsigned.payload(&head.headers).unwrap() {
            Payload::Hash => hash(body),
            Payload::Stated(stated) => stated,
        };
        unsigned.sign(&mut head, &payload, &credentials).unwrap();
        let value = head.headers[header::AUTHORIZATION].to_str().unwrap().to_owned();
        assert!(!value.contains(SECRET) && value.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/"));
        assert_eq!(head.headers.get(&TOKEN).map(|value| value.to_str().unwrap()), token);
        value.split_once("SignedHeaders=").unwrap().1.to_owned()
    }

    #[test]
    fn signatures_are_those_of_other_implementations() {
        // `get-vanilla` of AWS's test suite. The others are botocore's.
        assert_eq!(
            signed("GET", "https://example.amazonaws.com/", &[], ("service", "host;x-amz-date"), b"", None),
            "host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        let url = "https://example.amazonaws.com/a%20b/../c%2Fd/?Param2=value2&Param1=va%20l&x";
        assert_eq!(
            signed("GET", url, &[], ("service", "x-amz-date;host"), b"", None),
            "host;x-amz-date, Signature=211ea95803bc3a90b827b1454c3b79273b93f1f860720302647049db4ae31b8b"
        );
        let headers = [("x-amz-target", "T.Op  x"), ("content-type", "application/x-amz-json-1.0")];
        let names = "content-type;host;x-amz-date;x-amz-target";
        assert_eq!(
            signed("POST", "https://ddb.example/", &headers, ("dynamodb", names), b"{\"a\":1}", Some("TOKEN/1+2==")),
            "content-type;host;x-amz-date;x-amz-security-token;x-amz-target, \
             Signature=510024b2c54b01a6a0d683aae561036e9e833a93b600a4c388caf83c06e955d1"
        );
        let headers = [
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"),
            ("x-amz-security-token", "of the guest"),
        ];
        let names = "host;range;x-amz-content-sha256;x-amz-date;x-amz-security-token";
        let url = "https://b.s3.example/a%20b//c.txt?partNumber=1&uploadId=x%2Fy";
        assert_eq!(
            signed("PUT", url, &headers, ("s3", names), b"", None),
            "host;range;x-amz-content-sha256;x-amz-date, \
             Signature=cd288939163ee996818392d3ac0cd32471b7918a2ba02876f45dbac5b42fdcb4"
        );
    }

    #[test]
    fn requests_that_cannot_be_signed_are_rejected_with_the_reason() {
        let reason = |url: &str, headers: &[(&str, &str)], authorization: &str| {
            let credentials = credentials("*.s3.example", None);
            let mut head = request("PUT", url, headers, authorization);
            let host = url.parse::<hyper::Uri>().unwrap().host().unwrap().to_owned();
            let rejected = match prepare(&mut head, &target(&host), &credentials) {
                Err(rejected) => rejected,
                Ok(prepared) => {
                    let unsigned = prepared.unsigned.unwrap();
                    let stated = unsigned.payload(&head.headers).map(|_| "UNSIGNED-PAYLOAD");
                    stated.and_then(|payload| unsigned.sign(&mut head, payload, &credentials)).unwrap_err()
                }
            };
            assert!(!head.headers.values().any(|value| value.to_str().unwrap().contains(SECRET)));
            (rejected.about, rejected.reason)
        };
        let url = "https://b.s3.example/k";
        let good = authorization(PLACEHOLDER, "s3", "host;x-amz-date");
        let streaming = [("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")];
        assert!(reason(url, &streaming, &good).1.contains("parts of a streamed AWS payload"));
        let (about, text) = reason("https://evil.example/k", &[], &good);
        assert_eq!((about, text), (About::Secret(0), "the secret is not for this host"));
        let (about, text) = reason(url, &[("x-api-key", PLACEHOLDER)], &good);
        assert_eq!(about, About::Secret(0));
        assert!(text.starts_with("an access key of AWS is only for"), "{text}");
        for authorization in
            [format!("Bearer {PLACEHOLDER}"), good.replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")]
        {
            assert!(reason(url, &[], &authorization).1.starts_with("an access key of AWS is only for"));
        }
        assert!(reason(url, &[], &good.replace("host;", "")).1.contains("does not sign the header Host"));
        assert!(reason(url, &[], &good.replace("host;", "host;x-gone;")).1.contains("does not have"));
        assert!(reason(url, &[], &good.replace("/20150830/", "/20150831/")).1.contains("x-amz-date"));
        assert!(reason(url, &[], &good.replace("us-east-1/s3", "us-east-1/s3/x")).1.contains("scope"));
        for (query, service) in [("", "sts"), ("", "STS"), ("?session", "s3express"), ("?a=b&%73ession=", "s3express")]
        {
            let authorization = authorization(PLACEHOLDER, service, "host;x-amz-date");
            let (about, text) = reason(&format!("https://b.s3.example/{query}"), &[], &authorization);
            assert!(about == About::Secret(0) && text.contains("credentials, which the guest may not have"), "{text}");
        }
        // A secret that is not an access key does not sign, and one that no process can read does not either.
        let other = good.replace(PLACEHOLDER, OTHER);
        assert_eq!(reason(url, &[], &other), (About::Secret(1), "the secret is not an access key of AWS"));
    }

    #[test]
    fn lines_that_are_not_an_access_key_are_rejected() {
        for lines in ["a\nb\nc\nd", "a b\nc", "a\n", "\nb", "a\nb\n", "a\nb\r", "a\nb c"] {
            let mut settings = settings();
            settings.secrets[0].value = Ok(lines.to_owned());
            let error = Credentials::new(&settings).unwrap_err();
            assert!(error.to_string().starts_with("invalid secret \"API_TOKEN\""), "{error}");
        }
        let shown =
            format!("{:?} {:?}", AccessKey::parse(&format!("A\n{VALUE}")).unwrap(), credentials("a.example", None));
        assert!(!shown.contains(VALUE) && !shown.contains(SECRET), "{shown}");
    }
}
