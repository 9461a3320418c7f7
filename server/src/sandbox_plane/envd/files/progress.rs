//! A bound on what a form may take before something comes of it: its reader keeps everything until it has found the next
//! boundary or the end of a part's headers.

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes of a request in which nothing of a file was found.
const MOST: usize = 1 << 20;

/// Told by whoever makes something of the bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress(Arc<AtomicUsize>);

impl Progress {
    pub(super) fn made(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The same body, which fails when too much of it was taken without progress.
    pub(super) fn bound(&self, body: Body) -> Body {
        let taken = Arc::clone(&self.0);
        let bytes =
            stream::unfold((body.into_data_stream(), taken, false), |(mut body, taken, has_failed)| async move {
                if has_failed {
                    return None;
                }
                let bytes: io::Result<Bytes> = match body.next().await? {
                    Ok(bytes) if taken.fetch_add(bytes.len(), Ordering::Relaxed) > MOST => {
                        Err(io::Error::other("too long headers of a part"))
                    }
                    Ok(bytes) => Ok(bytes),
                    Err(error) => Err(io::Error::other(error)),
                };
                let has_failed = bytes.is_err();
                // The reader takes all that is ready at once: never more than a piece is.
                tokio::task::yield_now().await;
                Some((bytes, (body, taken, has_failed)))
            });
        Body::from_stream(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{
        extract::{FromRequest, Multipart},
        http::Request,
    };

    fn form(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> (Progress, Request<Body>) {
        let progress = Progress::default();
        let body = Body::from_stream(stream::iter(pieces.map(Ok::<_, io::Error>)));
        let request = Request::builder().header("content-type", "multipart/form-data; boundary=B");
        (progress.clone(), request.body(progress.bound(body)).unwrap())
    }

    const HEAD: &[u8] = b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";

    #[tokio::test]
    async fn a_large_file_passes_and_endless_headers_do_not() {
        let pieces = std::iter::once(HEAD.to_vec())
            .chain(std::iter::repeat_n(vec![b'x'; 64 << 10], 24))
            .chain([b"\r\n--B--\r\n".to_vec()]);
        let (progress, request) = form(pieces);
        let mut form_read = Multipart::from_request(request.map(axum::body::Body::new), &()).await.unwrap();
        let mut field = form_read.next_field().await.unwrap().unwrap();
        let mut size = 0;
        while let Some(chunk) = field.chunk().await.unwrap() {
            progress.made();
            size += chunk.len();
        }
        assert_eq!(size, 24 * (64 << 10));
        let endless = std::iter::once(b"--B\r\nX: ".to_vec()).chain(std::iter::repeat_n(vec![b'x'; 64 << 10], 64));
        let (_, request) = form(endless);
        let mut form_read = Multipart::from_request(request, &()).await.unwrap();
        assert!(form_read.next_field().await.is_err());
    }
}
