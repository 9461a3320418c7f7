//! Deadlines of a request: how long its body may pause, how long all of it may take, and how long its answer may take to
//! begin after the last of the body came. An answer's own body has none: a stream lasts as long as its client wants.

use axum::{
    body::{Body, Bytes, HttpBody},
    http::Request,
};
use hyper::body::{Frame, SizeHint};
use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// Between two pieces of the body.
    pub(crate) pause: Duration,
    /// All of the body, where it is a message and not a stream.
    pub(crate) body: Option<Duration>,
    /// From the last piece of the body to the answer's headers.
    pub(crate) answer: Duration,
}

/// The answer did not begin in time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Late;

/// Runs `work` on the request, whose body fails when it is late, and gives it up when its answer is late.
pub(crate) async fn within<B, F>(
    deadlines: Deadlines,
    request: Request<Body>,
    work: impl FnOnce(Request<Body>) -> F,
) -> Result<B, Late>
where
    F: Future<Output = B>,
{
    let last = Arc::new(Mutex::new(Instant::now()));
    let request = request.map(|body| timed(body, deadlines, Arc::clone(&last)));
    let mut work = pin!(work(request));
    loop {
        let due = *last.lock().unwrap_or_else(PoisonError::into_inner) + deadlines.answer;
        tokio::select! {
            biased;
            answer = work.as_mut() => return Ok(answer),
            () = sleep_until(due) => {}
        }
        if *last.lock().unwrap_or_else(PoisonError::into_inner) + deadlines.answer <= Instant::now() {
            return Err(Late);
        }
    }
}

/// A body that fails when it is late.
pub(crate) fn body(body: Body, deadlines: Deadlines) -> Body {
    timed(body, deadlines, Arc::new(Mutex::new(Instant::now())))
}

fn timed(body: Body, deadlines: Deadlines, last: Arc<Mutex<Instant>>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let until = deadlines.body.map(|within| Instant::now() + within);
    let timer = Box::pin(sleep(deadlines.pause));
    Body::new(Timed { body, pause: deadlines.pause, until, waits: false, timer, last })
}

/// True when a body failed because it was late.
pub(crate) fn is_late(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| cause.is::<BodyLate>())
}

/// Why a body failed.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not arrive in time")]
struct BodyLate;

struct Timed {
    body: Body,
    pause: Duration,
    until: Option<Instant>,
    /// Its reader waits for the client, and not the client for its reader.
    waits: bool,
    timer: Pin<Box<Sleep>>,
    last: Arc<Mutex<Instant>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waits = false;
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            return Poll::Ready(frame);
        }
        if !self.waits {
            self.waits = true;
            let pause = Instant::now() + self.pause;
            let due = self.until.map_or(pause, |until| until.min(pause));
            self.timer.as_mut().reset(due);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(axum::Error::new(BodyLate))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use http_body_util::BodyExt;
    use std::convert::Infallible;
    use tokio::{sync::mpsc, time::timeout};
    use tokio_stream::wrappers::ReceiverStream;

    const DEADLINES: Deadlines =
        Deadlines { pause: Duration::from_secs(10), body: None, answer: Duration::from_secs(60) };

    fn streamed() -> (mpsc::Sender<Result<Bytes, Infallible>>, Request<Body>) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, Request::new(Body::from_stream(ReceiverStream::new(receiver))))
    }

    async fn whole(request: Request<Body>) -> Result<usize, String> {
        let read = request.into_body().collect().await;
        read.map(|body| body.to_bytes().len()).map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_fails_and_one_that_comes_slowly_does_not() {
        let (sender, request) = streamed();
        let sends = async {
            for _ in 0..20 {
                sleep(Duration::from_secs(9)).await;
                sender.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
            }
            drop(sender);
        };
        let (read, ()) = tokio::join!(within(DEADLINES, request, whole), sends);
        assert_eq!(read, Ok(Ok(20)));

        let (sender, request) = streamed();
        let begun = Instant::now();
        let read = within(DEADLINES, request, whole).await.unwrap().unwrap_err();
        assert!(read.contains("did not arrive in time"), "{read}");
        assert_eq!(begun.elapsed().as_secs(), 10);
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_comes_in_drops_fails_when_all_of_it_is_late() {
        let (sender, request) = streamed();
        tokio::spawn(async move {
            while sender.send(Ok(Bytes::from_static(b"x"))).await.is_ok() {
                sleep(Duration::from_secs(9)).await;
            }
        });
        let deadlines = Deadlines { body: Some(Duration::from_secs(30)), ..DEADLINES };
        let begun = Instant::now();
        let read = timeout(Duration::from_secs(3600), within(deadlines, request, whole)).await;
        assert!(read.expect("it is read without end").unwrap().is_err());
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_begin_is_given_up() {
        let begun = Instant::now();
        let request = Request::new(Body::from("all of it"));
        let answer = within(DEADLINES, request, async |request| {
            whole(request).await.unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(timeout(Duration::from_secs(3600), answer).await.unwrap(), Err(Late));
        assert_eq!(begun.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_costs_its_client_nothing() {
        let (sender, request) = streamed();
        tokio::spawn(async move {
            for _ in 0..3 {
                let _ = sender.send(Ok(Bytes::from_static(b"x"))).await;
            }
        });
        let read = within(DEADLINES, request, async |request: Request<Body>| {
            let mut body = request.into_body().into_data_stream();
            let mut count = 0;
            while let Some(piece) = body.next().await {
                count += piece.unwrap().len();
                sleep(Duration::from_secs(30)).await;
            }
            count
        });
        assert_eq!(read.await, Ok(3));
    }
}
