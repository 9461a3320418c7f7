//! Pulling: manifests, which fit memory, and blobs, which continue where a connection broke.

use super::{
    client::{Call, Client},
    error::RegistryError,
    pace::Pace,
};
use crate::{
    digest::Digest,
    limits::MAX_MANIFEST,
    manifest::{Blob, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
    progress::{Event, Progress},
    store::{Hold, Partial, Store, StoreError},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, RANGE},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// Number of attempts in a row that may bring less than [`ENOUGH`].
pub(super) const ATTEMPTS: u32 = 5;
/// Number of bytes after which an attempt counts as a success.
const ENOUGH: u64 = 64 << 10;
/// Time before the second attempt. It doubles for each further one.
pub(super) const BACKOFF: Duration = Duration::from_millis(200);

/// A manifest as it was received.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
}

/// The hosts that have an image: mirrors, then the registry.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) clients: Vec<Arc<Client>>,
    pub(crate) repository: String,
}

impl Source {
    /// Fetches a manifest by tag or digest from the first host that has it.
    pub(crate) async fn manifest(&self, wanted: &str) -> Result<Fetched, RegistryError> {
        let mut first = None;
        for client in &self.clients {
            match client.manifest(&self.repository, wanted).await {
                Ok(fetched) => return Ok(fetched),
                // The registry itself is the last one, and its answer is the one that counts.
                Err(error) => first = Some(error),
            }
        }
        Err(first.unwrap_or_else(|| RegistryError::Address(self.repository.clone())))
    }

    /// Downloads a blob into the store, unless it is there.
    pub(crate) async fn blob(
        &self,
        blob: Blob,
        store: &Store,
        hold: &Hold,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let Some(mut partial) = store.partial(blob).await? else {
            progress.notify(Event::Exists { blob: blob.digest, size: blob.size });
            return Ok(());
        };
        let mut last = None;
        for client in &self.clients {
            // A second time, if what an earlier process or another host left may be what is wrong.
            for _ in 0..2 {
                let is_continued = partial.written() > 0;
                match client.download(&self.repository, blob, &mut partial, progress).await {
                    Ok(()) => {}
                    Err(error) if error.is_of_host() => {
                        last = Some(error);
                        break;
                    }
                    Err(error) => return Err(error),
                }
                let (to, hold_of) = (store.clone(), hold.clone());
                let published = tokio::task::spawn_blocking(move || partial.publish(&to, &hold_of)).await;
                match published.map_err(|_| StoreError::Cancelled)? {
                    Ok(()) => {
                        progress.notify(Event::Done { blob: blob.digest });
                        return Ok(());
                    }
                    Err(error @ StoreError::WrongDigest { .. }) => last = Some(error.into()),
                    Err(error) => return Err(error.into()),
                }
                partial = match store.partial(blob).await? {
                    Some(partial) => partial,
                    None => return Ok(()),
                };
                if !is_continued {
                    break;
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Address(self.repository.clone())))
    }
}

impl Client {
    async fn manifest(&self, repository: &str, wanted: &str) -> Result<Fetched, RegistryError> {
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let (scope, what) = (format!("repository:{repository}:pull"), format!("{repository}:{wanted}"));
        let call = Call {
            method: Method::GET,
            headers: vec![(ACCEPT, accept)],
            scope: &scope,
            what: &what,
            content: Bytes::new(),
        };
        let answer = self.call(self.target(&format!("{repository}/manifests/{wanted}"))?, &call).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(&answer, &call));
        }
        let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let body = timeout(self.options.idle, Limited::new(answer.into_body(), limit).collect()).await;
        let fail = |problem: String| RegistryError::Unreachable { host: self.host.clone(), problem };
        let body = body.map_err(|_| fail("it sends too slowly".into()))?;
        let bytes = body.map_err(|error| match error.downcast_ref::<http_body_util::LengthLimitError>() {
            Some(_) => self.answer(format!("the manifest has more than {MAX_MANIFEST} bytes")),
            None => fail(error.to_string()),
        })?;
        let bytes = bytes.to_bytes().to_vec();
        let digest = Digest::of(&bytes);
        match wanted.parse::<Digest>() {
            Ok(expected) if expected != digest => {
                Err(RegistryError::WrongDigest { host: self.host.clone(), expected, actual: digest })
            }
            _ => Ok(Fetched { bytes, digest }),
        }
    }

    /// Downloads what is missing of a blob.
    async fn download(
        &self,
        repository: &str,
        blob: Blob,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        // A host may make a transfer begin again, so only what no attempt had before is progress.
        let (mut failures, mut most) = (0, partial.written());
        while !partial.is_whole() || blob.size == 0 {
            match self.attempt(repository, blob, partial, progress).await {
                Ok(()) if partial.is_whole() => return Ok(()),
                Ok(()) => {}
                Err(error) if !error.is_transient() || failures + 1 >= ATTEMPTS => return Err(error),
                Err(_) => {}
            }
            failures += 1;
            if partial.written() >= most.saturating_add(ENOUGH) {
                (failures, most) = (0, partial.written());
            }
            if failures >= ATTEMPTS {
                let problem = format!("connections end before {} is complete", blob.digest);
                return Err(RegistryError::Unreachable { host: self.host.clone(), problem });
            }
            progress.notify(Event::Retrying { blob: blob.digest, offset: partial.written() });
            sleep(BACKOFF * 2_u32.pow(failures)).await;
        }
        Ok(())
    }

    async fn attempt(
        &self,
        repository: &str,
        blob: Blob,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let (scope, what) = (format!("repository:{repository}:pull"), blob.digest.to_string());
        let from = partial.written();
        let headers = if from > 0 { vec![(RANGE, format!("bytes={from}-"))] } else { Vec::new() };
        let call = Call { method: Method::GET, headers, scope: &scope, what: &what, content: Bytes::new() };
        let answer = self.call(self.target(&format!("{repository}/blobs/{}", blob.digest))?, &call).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
                if range.is_none_or(|range| !range.starts_with(&format!("bytes {from}-"))) {
                    return Err(self.answer("it has another range than requested"));
                }
            }
            // The host does not support ranges.
            StatusCode::OK => partial.restart()?,
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                partial.restart()?;
                return Ok(());
            }
            _ => return Err(self.refusal(&answer, &call)),
        }
        let stated = length(&answer);
        let left = blob.size - partial.written();
        if let Some(actual) = stated.filter(|stated| *stated > left) {
            return Err(StoreError::WrongSize { digest: blob.digest, expected: left, actual }.into());
        }
        let mut body = answer.into_body();
        let fail = |problem: String| RegistryError::Unreachable { host: self.host.clone(), problem };
        let mut pace = Pace::new(self.options.idle);
        loop {
            let frame = pace.wait(body.frame()).await.ok_or_else(|| fail("it sends nothing".into()))?;
            let Some(frame) = frame else { return Ok(()) };
            if let Ok(bytes) = frame.map_err(|error| fail(error.to_string()))?.into_data() {
                partial.append(&bytes)?;
                progress.notify(Event::Transferred { blob: blob.digest, bytes: bytes.len() as u64 });
                if !pace.count(bytes.len()) {
                    return Err(fail("it sends too slowly".into()));
                }
            }
        }
    }
}

fn length(answer: &Response<Incoming>) -> Option<u64> {
    answer.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
