//! Pushing: the blobs that the registry lacks, then the manifest. A connection that breaks or
//! stalls is tried again, with the whole blob.

use super::{
    client::{ANSWER, Call, Client, empty, silent},
    connection::Body,
    error::RegistryError,
    pace::MINIMUM_RATE,
    pull::{ATTEMPTS, BACKOFF},
};
use crate::{
    digest::Digest,
    manifest::Blob,
    progress::{Event, Progress},
    store::Store,
};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::sleep;
use tokio_util::io::ReaderStream;

/// Bytes of a blob that are read at a time. Their number is how far an upload has come, so they are
/// few enough for a slow connection.
const CHUNK: usize = 32 << 10;

impl Client {
    /// Returns whether the registry accepts the credentials.
    pub(crate) async fn check(&self) -> Result<(), RegistryError> {
        let what = "its registry";
        let call = Call { method: Method::GET, headers: Vec::new(), scope: "", what, content: Bytes::new() };
        let answer = self.call(self.target("")?, &call).await?;
        if answer.status() == StatusCode::OK { Ok(()) } else { Err(self.refusal(&answer, &call)) }
    }

    /// Uploads a blob of the store, unless the registry has it.
    pub(crate) async fn upload(
        &self,
        repository: &str,
        blob: Blob,
        store: &Store,
        progress: Arc<dyn Progress>,
    ) -> Result<(), RegistryError> {
        let mut failures = 0;
        loop {
            match self.attempt_upload(repository, blob, store, progress.clone()).await {
                Err(error) if error.is_transient() && failures + 1 < ATTEMPTS => {}
                done => return done,
            }
            failures += 1;
            progress.notify(Event::Retrying { blob: blob.digest, offset: 0 });
            sleep(BACKOFF * 2_u32.pow(failures)).await;
        }
    }

    async fn attempt_upload(
        &self,
        repository: &str,
        blob: Blob,
        store: &Store,
        progress: Arc<dyn Progress>,
    ) -> Result<(), RegistryError> {
        let (scope, what) = (format!("repository:{repository}:pull,push"), blob.digest.to_string());
        let call = |method, headers| Call { method, headers, scope: &scope, what: &what, content: Bytes::new() };
        let head = call(Method::HEAD, Vec::new());
        let answer = self.call(self.target(&format!("{repository}/blobs/{}", blob.digest))?, &head).await?;
        match answer.status() {
            StatusCode::OK => {
                progress.notify(Event::Exists { blob: blob.digest, size: blob.size });
                return Ok(());
            }
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refusal(&answer, &head)),
        }
        let registry = self.target(&format!("{repository}/blobs/uploads/"))?;
        let post = call(Method::POST, vec![(CONTENT_LENGTH, "0".to_owned())]);
        let answer = self.call(registry.clone(), &post).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.refusal(&answer, &post));
        }
        let at = self.follow(&registry, &answer)?.with_query("digest", &what);
        let headers =
            vec![(CONTENT_LENGTH, blob.size.to_string()), (CONTENT_TYPE, "application/octet-stream".to_owned())];
        let put = call(Method::PUT, headers);
        let file = tokio::fs::File::from_std(store.open_blob(blob.digest)?);
        let sent = Arc::new(AtomicU64::new(0));
        let (counter, notified) = (sent.clone(), progress.clone());
        let stream = ReaderStream::with_capacity(file, CHUNK).map_ok(move |bytes| {
            counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            notified.notify(Event::Transferred { blob: blob.digest, bytes: bytes.len() as u64 });
            Frame::data(bytes)
        });
        let body: Body = if blob.size == 0 { empty() } else { StreamBody::new(stream).boxed() };
        let answer = tokio::select! {
            answer = self.send(&at, &registry, &put, body) => answer?,
            problem = stalled(&sent, blob.size, self.options.idle) => {
                let host = at.authority();
                return Err(problem.map_or_else(
                    || silent(&at),
                    |problem| RegistryError::Unreachable { host, problem: problem.to_owned() },
                ));
            }
        };
        if answer.status() != StatusCode::CREATED {
            return Err(self.refusal(&answer, &put));
        }
        self.check_digest(&answer, blob.digest)?;
        progress.notify(Event::Done { blob: blob.digest });
        Ok(())
    }

    /// Uploads a manifest under a tag or digest.
    pub(crate) async fn put_manifest(
        &self,
        repository: &str,
        name: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let (scope, what) = (format!("repository:{repository}:pull,push"), format!("{repository}:{name}"));
        let headers = vec![(CONTENT_TYPE, media_type.to_owned()), (CONTENT_LENGTH, bytes.len().to_string())];
        let digest = Digest::of(&bytes);
        let call = Call { method: Method::PUT, headers, scope: &scope, what: &what, content: bytes.into() };
        let target = self.target(&format!("{repository}/manifests/{name}"))?;
        let mut failures = 0;
        let answer = loop {
            match self.call(target.clone(), &call).await {
                Err(error) if error.is_transient() && failures + 1 < ATTEMPTS => {}
                Ok(answer) if answer.status().is_server_error() && failures + 1 < ATTEMPTS => {}
                done => break done?,
            }
            failures += 1;
            sleep(BACKOFF * 2_u32.pow(failures)).await;
        };
        if answer.status() != StatusCode::CREATED {
            return Err(self.refusal(&answer, &call));
        }
        self.check_digest(&answer, digest)
    }

    /// Compares the digest that a registry states for what it received, if it states one.
    fn check_digest(&self, answer: &Response<Incoming>, expected: Digest) -> Result<(), RegistryError> {
        let stated = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match stated.and_then(|stated| stated.parse().ok()) {
            Some(actual) if actual != expected => {
                Err(RegistryError::WrongDigest { host: self.host.clone(), expected, actual })
            }
            _ => Ok(()),
        }
    }
}

/// Returns when an upload makes no progress: `None` if the registry has all of it and does not
/// answer.
async fn stalled(sent: &AtomicU64, size: u64, idle: Duration) -> Option<&'static str> {
    let mut before = 0;
    loop {
        sleep(idle).await;
        let now = sent.load(Ordering::Relaxed);
        if now >= size {
            sleep(ANSWER).await;
            return None;
        }
        if u128::from(now - before) * 1000 < u128::from(MINIMUM_RATE) * idle.as_millis() {
            return Some("it accepts nothing, or too slowly");
        }
        before = now;
    }
}
