//! Pushing: the blobs that the registry lacks, then the manifest.

use super::{
    client::{Call, Client, empty, full},
    connection::Body,
    error::RegistryError,
};
use crate::{
    manifest::Blob,
    progress::{Event, Progress},
    store::Store,
};
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method, StatusCode,
    body::Frame,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use std::sync::Arc;
use tokio_util::io::ReaderStream;

impl Client {
    /// Returns whether the registry accepts the credentials.
    pub(crate) async fn check(&self) -> Result<(), RegistryError> {
        let call = Call { method: Method::GET, headers: Vec::new(), scope: "", what: "its registry" };
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
        let (scope, what) = (format!("repository:{repository}:pull,push"), blob.digest.to_string());
        let call = |method, headers| Call { method, headers, scope: &scope, what: &what };
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
        let sent = progress.clone();
        let stream = ReaderStream::with_capacity(file, 1 << 17).map_ok(move |bytes| {
            sent.notify(Event::Transferred { blob: blob.digest, bytes: bytes.len() as u64 });
            Frame::data(bytes)
        });
        let body: Body = if blob.size == 0 { empty() } else { StreamBody::new(stream).boxed() };
        let answer = self.send(&at, &registry, &put, body).await?;
        if answer.status() != StatusCode::CREATED {
            return Err(self.refusal(&answer, &put));
        }
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
        let call = Call { method: Method::PUT, headers, scope: &scope, what: &what };
        let target = self.target(&format!("{repository}/manifests/{name}"))?;
        let answer = self.send(&target, &target, &call, full(bytes.into())).await?;
        if answer.status() == StatusCode::CREATED { Ok(()) } else { Err(self.refusal(&answer, &call)) }
    }
}
