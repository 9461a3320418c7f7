//! `/files`: content of files, out and in. Memory is a few pieces of 64 KiB whatever is moved, and a file is replaced as a
//! whole or not at all.

mod download;
mod error;
mod form;
mod metadata;
mod query;
mod signature;
mod upload;

pub(super) use query::Query;
pub(super) use signature::claim;

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode, routing::get};
use tower_http::{
    compression::{CompressionLayer, Predicate},
    decompression::RequestDecompressionLayer,
};

/// Where files are read and written.
pub(super) const ROUTE: &str = "/files";

pub(super) fn router() -> Router {
    let is_wanted =
        |_: StatusCode, _: axum::http::Version, _: &axum::http::HeaderMap, marks: &axum::http::Extensions| {
            marks.get::<download::Compress>().is_some()
        };
    Router::new()
        .route(ROUTE, get(download::read).post(upload::write))
        .layer(DefaultBodyLimit::disable())
        .layer(CompressionLayer::new().compress_when(Wanted(is_wanted)))
        .layer(RequestDecompressionLayer::new())
}

/// What is compressed is said by who answers.
#[derive(Clone)]
struct Wanted<F>(F);

impl<F> Predicate for Wanted<F>
where
    F: Fn(StatusCode, axum::http::Version, &axum::http::HeaderMap, &axum::http::Extensions) -> bool + Clone,
{
    fn should_compress<B: axum::body::HttpBody>(&self, response: &axum::http::Response<B>) -> bool {
        (self.0)(response.status(), response.version(), response.headers(), response.extensions())
    }
}
