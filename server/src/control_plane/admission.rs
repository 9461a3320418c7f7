//! Who comes in: a valid key, within its rate, with a request that has arrived as a whole, while the key has a place.

use super::error::ApiError;
use crate::{
    access::{keys::Key, rate::Credential},
    app::{App, SharedApp},
    channel::{
        failure::Failure,
        request::{Operation, Request as Asked},
    },
    concurrency::NoPlace,
    deadline::{self, Deadlines},
    listen::connections::Peer,
};
use axum::{
    body::{Body, Bytes, HttpBody},
    extract::State,
    http::{HeaderValue, Method, Request, StatusCode},
    middleware::Next,
    response::Response,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};

/// Longest a key could be.
const MAX_KEY: usize = 256;
/// A request's body: metadata and environment, at most.
const MAX_BODY: usize = 1 << 20;

/// Who sent a request: the launcher does for it what its key may do.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) key: Key,
    secret: String,
}

impl Caller {
    /// Asks the launcher to do something for the key.
    pub(super) async fn ask<T: DeserializeOwned>(&self, app: &App, operation: Operation) -> Result<T, ApiError> {
        Ok(self.try_ask(app, operation).await?)
    }

    pub(super) async fn try_ask<T: DeserializeOwned>(&self, app: &App, operation: Operation) -> Result<T, Failure> {
        app.launcher.ask(Asked::Operate { secret: self.secret.clone(), operation }).await
    }
}

/// Lets a request in, with its [`Caller`] among its extensions.
pub(super) async fn admit(
    State(app): State<SharedApp>,
    mut request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<Peer>().copied();
    let given = request.headers().get("x-api-key").cloned();
    let caller = caller(&app, given, peer).await?;
    let key = &caller.key;
    let rate = key.limits.requests_per_second.unwrap_or(app.config.requests_per_second);
    app.pace
        .rates
        .take(&key.account, rate, Instant::now())
        .map_err(|wait| ApiError::later(format!("this API key is limited to {rate} requests per second"), wait))?;
    let looks_only = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if key.limits.read_only && !looks_only {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "this API key is read-only"));
    }
    let body = whole(&app, key, std::mem::take(request.body_mut())).await?;
    *request.body_mut() = Body::from(body);
    let _place = app.limits.control.try_enter(&key.account, None).map_err(busy)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Reads the body before the request takes its place among those that are worked on.
async fn whole(app: &App, key: &Key, body: Body) -> Result<Bytes, ApiError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let _place = app.limits.reading.try_enter(&key.account, None).map_err(busy)?;
    let within = Duration::from_secs(app.config.body_timeout);
    let deadlines = Deadlines { pause: within, body: Some(within), answer: Duration::MAX };
    match Limited::new(deadline::body(body, deadlines), MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request is over the cap of {MAX_BODY} bytes"),
        )),
        Err(error) if deadline::is_late(&*error) => {
            let message = format!("the request did not arrive within {} s", within.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
        Err(error) => Err(ApiError::bad(format!("the request was interrupted: {error}"))),
    }
}

fn busy(full: NoPlace) -> ApiError {
    ApiError::later(full.to_string(), Duration::from_secs(1))
}

async fn caller(app: &App, given: Option<HeaderValue>, peer: Option<Peer>) -> Result<Caller, ApiError> {
    let unauthorized = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, message);
    let given = given.ok_or_else(|| unauthorized("send an API key in X-API-KEY"))?;
    // No key has other characters.
    let secret = given.to_str().unwrap_or_default().to_owned();
    let found: Option<Key> = match given.len() {
        0..=MAX_KEY => app.launcher.ask(Asked::Authenticate { secret: secret.clone() }).await?,
        _ => None,
    };
    match found {
        Some(key) => Ok(Caller { key, secret }),
        None => match app.pace.failures.note(Credential::Key, peer.as_ref(), Instant::now()) {
            Ok(()) => Err(unauthorized("the API key is not valid")),
            Err(wait) => Err(ApiError::later("this address sent too many invalid API keys", wait)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{
            Pace,
            keys::{KeyId, KeyLimits},
        },
        app::ConcurrencyLimits,
        channel::client::Launcher,
        config::Config,
    };
    use axum::response::IntoResponse;
    use futures_util::stream;
    use std::convert::Infallible;
    use tokio::{
        net::UnixStream,
        time::{Instant, sleep, timeout},
    };
    use tokio_util::sync::CancellationToken;

    fn app(config: Config) -> App {
        let (socket, _launcher) = UnixStream::pair().unwrap();
        let launcher = Launcher::on(socket, CancellationToken::new(), CancellationToken::new());
        App { limits: ConcurrencyLimits::of(&config), config, pace: Pace::default(), launcher }
    }

    fn key() -> Key {
        let id = KeyId("1".into());
        Key { id: id.clone(), account: id, limits: KeyLimits::default() }
    }

    /// A client that sends a byte every `pause`, without end.
    fn drips(pause: Duration) -> Body {
        Body::from_stream(stream::unfold((), move |()| async move {
            sleep(pause).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_drops_is_given_up_as_a_whole_and_returns_its_place() {
        let config = Config { body_timeout: 40, concurrent_requests: 1, ..Config::default() };
        let (app, key, begun) = (app(config), key(), Instant::now());
        let reading = whole(&app, &key, drips(Duration::from_secs(9)));
        let error = timeout(Duration::from_secs(3600), reading).await.expect("it is read without end").unwrap_err();
        assert_eq!(error.into_response().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(begun.elapsed().as_secs(), 40);
        assert_eq!(whole(&app, &key, Body::from("{}")).await.unwrap(), "{}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_over_the_cap_is_refused_and_one_that_pauses_is_given_up() {
        let app = app(Config { body_timeout: 40, ..Config::default() });
        let long = Body::from(vec![b'x'; MAX_BODY + 1]);
        let error = whole(&app, &key(), long).await.unwrap_err();
        assert_eq!(error.into_response().status(), StatusCode::PAYLOAD_TOO_LARGE);
        let silent = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let error = timeout(Duration::from_secs(3600), whole(&app, &key(), silent)).await.unwrap().unwrap_err();
        assert_eq!(error.into_response().status(), StatusCode::REQUEST_TIMEOUT);
    }

    /// Bodies that are read take no place among the requests that are worked on.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_read_takes_no_place_of_those_that_are_worked_on() {
        let app = app(Config { body_timeout: 40, concurrent_requests: 1, ..Config::default() });
        let key = key();
        let mut reading = std::pin::pin!(whole(&app, &key, drips(Duration::from_secs(9))));
        timeout(Duration::from_secs(1), reading.as_mut()).await.unwrap_err();
        drop(app.limits.control.try_enter(&key.account, None).unwrap());
        // The next body of the key has to wait for its client to try again.
        let error = whole(&app, &key, Body::from("{}")).await.unwrap_err();
        assert_eq!(error.into_response().status(), StatusCode::TOO_MANY_REQUESTS);
    }
}
