//! What is asked of single sandboxes: envd's API on its port, the sandbox's own servers on all others.
//!
//! A request says which sandbox and port it means by `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, or by `{port}-{id}.` at the
//! beginning of its host. Which of both: see [`address`].

pub(crate) mod address;
pub(crate) mod envd;
mod guest_tls;
mod refusal;
mod sent;
mod traffic;
pub(crate) mod tunnel;

use crate::{
    app::SharedApp,
    channel::{
        failure::{Failure, Why},
        opening::{self, Opening},
        reached::Reached,
        request::{Knock, Request as Asked, Verdict},
    },
    config::Config,
    deadline::{self, Deadlines},
    held::Held,
    registry::network::ingress::ENVD_PORT,
};
use address::Address;
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use envd::state::{SandboxStates, Target};
use refusal::{Refusal, Unauthorized};
use sandboxvm_manager::SandboxId;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tower::ServiceExt;

/// Returns the routes of the sandbox plane.
pub(crate) fn router(app: SharedApp) -> Router {
    let (envd, states) = (envd::router(), Arc::new(SandboxStates::default()));
    Router::new()
        .fallback(move |State(app): State<SharedApp>, request: Request<Body>| {
            let (envd, states) = (envd.clone(), Arc::clone(&states));
            async move { dispatch(app, envd, &states, request).await }
        })
        .with_state(app)
}

async fn dispatch(app: SharedApp, envd: Router, states: &SandboxStates, mut request: Request<Body>) -> Response {
    let address = match Address::of(&request) {
        Ok(Some(address)) => address,
        Ok(None) if request.uri().path() == "/health" => return StatusCode::NO_CONTENT.into_response(),
        Ok(None) => match signer(&app, envd::SignedRequest::of(&request)).await {
            Ok(id) => Address { id, port: ENVD_PORT },
            Err(Refusal::Unauthorized(problem)) => return envd::failed(&app, &request, problem).into_response(),
            Err(refusal) => return refusal.into_response(),
        },
        Err(error) => return Refusal::Address(error).into_response(),
    };
    let id = address.id.to_string();
    // Before anything happens to it: a client without a token must not wake it.
    let knock = knock(&address, &request);
    let facts = match app.launcher.ask(Asked::Knock(knock.clone())).await {
        Ok(Verdict::Allowed(facts)) => facts,
        Ok(Verdict::NoSandbox) => return Refusal::NotFound(id).into_response(),
        // Clients ask so whether it runs, some without its token.
        Ok(Verdict::Denied(_)) if address.port == ENVD_PORT && request.uri().path() == "/health" => {
            return match app.launcher.ask(Asked::Runs { id: address.id }).await {
                Ok(true) => StatusCode::NO_CONTENT.into_response(),
                Ok(false) => Refusal::NotFound(id).into_response(),
                Err(failure) => Refusal::Launcher(failure).into_response(),
            };
        }
        Ok(Verdict::Denied(denied)) => return envd::refusal(&app, &address, &request, denied).into_response(),
        Err(failure) => return Refusal::Launcher(failure).into_response(),
    };
    let (place, stream) = match (
        app.limits.sandbox.try_enter(&facts.owner, Some(&address.id)),
        app.limits.streams.try_enter(&facts.owner, Some(&address.id)),
    ) {
        (Ok(place), Ok(stream)) => (place, Arc::new(stream)),
        (Err(full), _) | (_, Err(full)) => return Refusal::Busy(full).into_response(),
    };
    let body = match facts.is_sent_by_launcher {
        false => Vec::new(),
        true => match body(&app.config, &mut request).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        },
    };
    let reached = match Reached::open(&app.launcher, knock, facts, body).await {
        Ok(reached) => reached,
        Err(Failure { why: Why::NotFound, .. }) => return Refusal::NotFound(id).into_response(),
        Err(Failure { why: Why::Paused, .. }) => return Refusal::Paused(id).into_response(),
        Err(failure) => return Refusal::Launcher(failure).into_response(),
    };
    let deadlines = deadlines(&app.config, address.port, request.uri().path());
    request.extensions_mut().insert(Arc::clone(&stream));
    let answered = deadline::within(deadlines, request, |mut request| async move {
        if address.port != ENVD_PORT {
            return traffic::forward(&app, reached, address.port, request).await;
        }
        request.extensions_mut().insert(Target::new(reached, states, &app.launcher));
        request.extensions_mut().insert(app);
        match envd.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    });
    let response = answered.await.unwrap_or_else(|late| Refusal::Late(late).into_response());
    drop(place);
    response.map(|body| Held::body(body, stream))
}

/// What a request presents. The launcher says what it opens.
fn knock(address: &Address, request: &Request<Body>) -> Knock {
    let header = |name| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let is_file = address.port == ENVD_PORT && envd::is_about_a_file(request);
    Knock {
        id: address.id.clone(),
        port: address.port,
        token: header(envd::ACCESS_TOKEN),
        traffic_token: header("e2b-traffic-access-token"),
        is_file,
        claim: is_file.then(|| envd::claim(request).ok()).flatten(),
        opening: Opening::of(request.method().as_str(), request.uri().path()),
    }
}

/// The body of a request that the launcher sends itself.
async fn body(config: &Config, request: &mut Request<Body>) -> Result<Vec<u8>, Response> {
    let body = to_bytes(std::mem::take(request.body_mut()), opening::MAX_BODY);
    match timeout(Duration::from_secs(config.body_timeout), body).await {
        Ok(Ok(body)) => Ok(body.into()),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE.into_response()),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT.into_response()),
    }
}

/// A message is to arrive as a whole, an upload piece by piece; input of a process, and what goes to the sandbox's own
/// servers, may rest as long as an answer may.
fn deadlines(config: &Config, port: u16, path: &str) -> Deadlines {
    let [body, answer] = [config.body_timeout, config.answer_timeout].map(Duration::from_secs);
    match (port, path) {
        (ENVD_PORT, "/process.Process/StreamInput") => Deadlines { pause: answer, body: None, answer },
        (ENVD_PORT, "/files") => Deadlines { pause: body, body: None, answer },
        (ENVD_PORT, _) => Deadlines { pause: body, body: Some(body), answer },
        _ => Deadlines { pause: answer, body: None, answer },
    }
}

/// The sandbox that a request without an address is for.
async fn signer(app: &SharedApp, signed: Option<Result<envd::SignedRequest, Refusal>>) -> Result<SandboxId, Refusal> {
    signed.ok_or(Refusal::NoAddress)??.signer(app).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Bytes;
    use futures_util::stream;
    use std::convert::Infallible;
    use tokio::time::{Instant, sleep};

    #[test]
    fn messages_have_a_deadline_as_a_whole_and_streams_between_their_pieces() {
        let config = Config { body_timeout: 40, answer_timeout: 300, ..Config::default() };
        let of = |port, path| {
            let Deadlines { pause, body, answer } = deadlines(&config, port, path);
            (pause.as_secs(), body.map(|body| body.as_secs()), answer.as_secs())
        };
        for message in ["/process.Process/Start", "/process.Process/List", "/filesystem.Filesystem/Move", "/init", "/"]
        {
            assert_eq!(of(ENVD_PORT, message), (40, Some(40), 300), "{message}");
        }
        assert_eq!(of(ENVD_PORT, "/files"), (40, None, 300));
        assert_eq!(of(ENVD_PORT, "/process.Process/StreamInput"), (300, None, 300));
        assert_eq!(of(8000, "/process.Process/Start"), (300, None, 300));
    }

    /// A client that sends a byte every `pause`, without end.
    fn drips(pause: Duration) -> Request<Body> {
        Request::new(Body::from_stream(stream::unfold((), move |()| async move {
            sleep(pause).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b"x")), ()))
        })))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_for_the_launcher_is_short_and_arrives_as_a_whole_in_time() {
        let config = Config { body_timeout: 40, ..Config::default() };
        let begun = Instant::now();
        let late = timeout(Duration::from_secs(3600), body(&config, &mut drips(Duration::from_secs(9)))).await;
        let late = late.expect("it is read without end").unwrap_err();
        assert_eq!((late.status(), begun.elapsed().as_secs()), (StatusCode::REQUEST_TIMEOUT, 40));
        let long = Request::new(Body::from(vec![b'x'; opening::MAX_BODY + 1]));
        assert_eq!(body(&config, &mut { long }).await.unwrap_err().status(), StatusCode::PAYLOAD_TOO_LARGE);
        let whole = Request::new(Body::from(vec![b'x'; opening::MAX_BODY]));
        assert_eq!(body(&config, &mut { whole }).await.unwrap().len(), opening::MAX_BODY);
    }
}
