//! Uploads for builds: no API key, since the URL carries the right. Bytes go to the launcher as they come, over a socket that it
//! gave for this one upload.

use super::error::ApiError;
use crate::{
    access::keys::KeyId,
    app::SharedApp,
    builds::uploads::DONE,
    channel::request::{Request as Asked, UploadClaim},
    deadline::{self, Deadlines},
};
use axum::{
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
};
use futures_util::StreamExt;
use serde::Deserialize;
use std::{os::unix::net::UnixStream as StdUnixStream, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

#[derive(Debug, Deserialize)]
pub(super) struct UploadQuery {
    until: u64,
    signature: String,
}

/// `PUT /uploads/{template}/{hash}`.
pub(super) async fn receive(
    State(app): State<SharedApp>,
    Path((template, hash)): Path<(String, String)>,
    query: Result<Query<UploadQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let Query(UploadQuery { until, signature }) = query?;
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let Some(length) = length else {
        return Err(ApiError::new(StatusCode::LENGTH_REQUIRED, "an upload needs Content-Length"));
    };
    let claim = UploadClaim { template, hash, until, signature, length };
    let mut reply = app.launcher.ask_with(Asked::Upload(claim), Vec::new()).await?;
    let failed = |error: &dyn std::fmt::Display| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the upload failed: {error}"))
    };
    let owner: KeyId = serde_json::from_slice(&reply.head).map_err(|error| failed(&error))?;
    let socket = reply.descriptors.pop().ok_or_else(|| failed(&"the launcher gave no socket"))?;
    let place = app.limits.streams.try_enter(&owner, None);
    let _place = place.map_err(|full| ApiError::later(full.to_string(), Duration::from_secs(1)))?;
    let mut socket = UnixStream::from_std(StdUnixStream::from(socket)).map_err(|error| failed(&error))?;
    let pause = Duration::from_secs(app.config.body_timeout);
    let mut body = deadline::body(body, Deadlines { pause, body: None, answer: Duration::MAX }).into_data_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| ApiError::bad(format!("the upload was interrupted: {error}")))?;
        socket.write_all(&piece).await.map_err(|error| failed(&error))?;
    }
    socket.shutdown().await.map_err(|error| failed(&error))?;
    let mut answer = [0];
    match socket.read_exact(&mut answer).await {
        Ok(_) if answer == [DONE] => Ok(StatusCode::OK),
        _ => Err(failed(&"it could not be kept")),
    }
}
