//! The wire over stdio: a message of JSON-RPC on each line. Rejects what is not a message, and keeps account of the requests
//! that have no answer yet, so that none is forgotten when the input ends. Does not know what a request asks for.

use rmcp::{
    RoleServer,
    model::{
        ClientJsonRpcMessage, ClientNotification, ErrorCode, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage,
    },
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde_json::Value;
use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Mutex, Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Longest line that is read: room for a file of 3 MiB in base64, several times over.
const MAX_LINE: usize = 16 << 20;
/// Messages that wait for the output. A client that does not read its answers is not read from either.
const QUEUED: usize = 16;

/// Both directions of a conversation. Clones are the same conversation.
pub(crate) struct Lines<R> {
    shared: Arc<Shared<R>>,
}

impl<R> Clone for Lines<R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<R> {
    input: Mutex<Input<R>>,
    output: mpsc::Sender<Vec<u8>>,
    /// IDs of the requests that were handed on and have no answer yet.
    unanswered: SyncMutex<HashSet<RequestId>>,
    answered: Notify,
    /// No further message is read.
    stopped: CancellationToken,
    /// The output takes nothing any more.
    closed: CancellationToken,
}

impl<R: AsyncBufRead + Unpin + Send + 'static> Lines<R> {
    /// A conversation, and the task that writes its output. The task ends when every clone is dropped.
    pub(crate) fn new(input: R, output: impl AsyncWrite + Unpin + Send + 'static) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUED);
        let closed = CancellationToken::new();
        let shared = Shared {
            input: Mutex::new(Input { from: input, line: Vec::new(), is_oversized: false, rejection: None }),
            output: sender,
            unanswered: SyncMutex::default(),
            answered: Notify::new(),
            stopped: CancellationToken::new(),
            closed: closed.clone(),
        };
        (Self { shared: Arc::new(shared) }, tokio::spawn(write(receiver, output, closed)))
    }

    /// Reads nothing more; the requests that were read are still answered.
    pub(crate) fn stop(&self) {
        self.shared.stopped.cancel();
    }

    /// Done when the output failed.
    pub(crate) async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }
}

impl<R> Shared<R> {
    fn unanswered(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        // Whole between any two of its statements.
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, id: &RequestId) {
        self.unanswered().remove(id);
        self.answered.notify_waiters();
    }

    /// Done when every request has its answer, or no answer can be sent.
    async fn settled(&self) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Before the look, so that no answer is missed in between.
            answered.as_mut().enable();
            if self.unanswered().is_empty() {
                return;
            }
            tokio::select! {
                () = answered => {}
                () = self.closed.cancelled() => return,
            }
        }
    }

    /// What a line is: a message for the server, or `None` with the line's rejection left in `rejection`.
    fn accept(&self, line: &[u8], rejection: &mut Option<ServerJsonRpcMessage>) -> Option<ClientJsonRpcMessage> {
        match parse(line) {
            Ok(None) => None,
            Ok(Some(JsonRpcMessage::Request(request))) => {
                if self.unanswered().insert(request.id.clone()) {
                    return Some(JsonRpcMessage::Request(request));
                }
                // An answer under this ID would be taken for that of the first.
                let message = format!("invalid request: request {} has no answer yet", request.id);
                *rejection = Some(ServerJsonRpcMessage::error(ErrorData::invalid_request(message, None), None));
                None
            }
            Ok(Some(message)) => {
                if let JsonRpcMessage::Notification(notification) = &message
                    && let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    // The protocol has no answer for a request that the client cancelled.
                    self.settle(id);
                }
                Some(message)
            }
            Err(rejected) => {
                *rejection = Some(*rejected);
                None
            }
        }
    }
}

impl<R: AsyncBufRead + Unpin + Send + 'static> Transport<RoleServer> for Lines<R> {
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move {
            let id = match &item {
                JsonRpcMessage::Response(response) => Some(response.id.clone()),
                JsonRpcMessage::Error(error) => error.id.clone(),
                _ => None,
            };
            let sent = match encode(&item) {
                Ok(line) => shared.output.send(line).await.map_err(|_| io::ErrorKind::BrokenPipe.into()),
                Err(error) => Err(error.into()),
            };
            if let Some(id) = id {
                shared.settle(&id);
            }
            sent
        }
    }

    /// `None` at the end of the input, once every request that was read has its answer. May be dropped at any time.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        let shared = &*self.shared;
        let mut input = shared.input.lock().await;
        loop {
            if input.rejection.is_some() {
                let room = shared.output.reserve().await.ok()?;
                if let Some(line) = input.rejection.take().and_then(|rejection| encode(&rejection).ok()) {
                    room.send(line);
                }
            }
            let read = tokio::select! {
                () = shared.stopped.cancelled() => Read::End,
                () = shared.closed.cancelled() => Read::End,
                read = input.read() => read,
            };
            let Input { line, rejection, .. } = &mut *input;
            match read {
                Read::Line => {
                    let message = shared.accept(line, rejection);
                    line.clear();
                    if message.is_some() {
                        return message;
                    }
                }
                Read::Oversized => {
                    let message = format!("parse error: the line is longer than {MAX_LINE} bytes");
                    *rejection = Some(ServerJsonRpcMessage::error(ErrorData::parse_error(message, None), None));
                }
                Read::End => {
                    shared.settled().await;
                    return None;
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The input, and what was read of it.
struct Input<R> {
    from: R,
    line: Vec<u8>,
    /// The rest of the line is skipped.
    is_oversized: bool,
    /// The answer to a line that is not a message, until there is room for it.
    rejection: Option<ServerJsonRpcMessage>,
}

enum Read {
    /// A whole line is in `line`.
    Line,
    /// A line was longer than is read. It is skipped.
    Oversized,
    /// There is nothing more.
    End,
}

impl<R: AsyncBufRead + Unpin> Input<R> {
    /// Reads a line. The last one need not end in a line feed. Dropped halfway, it resumes where it was.
    async fn read(&mut self) -> Read {
        loop {
            // A failed input has ended.
            let available = self.from.fill_buf().await.unwrap_or_default();
            if available.is_empty() {
                return if self.line.is_empty() { Read::End } else { Read::Line };
            }
            let (taken, is_whole) = match available.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (available.len(), false),
            };
            let is_too_long = self.line.len() + taken > MAX_LINE + 1;
            if !self.is_oversized && !is_too_long {
                self.line.extend_from_slice(&available[..taken]);
            }
            self.from.consume(taken);
            let was_oversized = self.is_oversized;
            self.is_oversized = (was_oversized || is_too_long) && !is_whole;
            if is_too_long && !was_oversized {
                self.line = Vec::new();
                return Read::Oversized;
            }
            if is_whole && !was_oversized {
                return Read::Line;
            }
        }
    }
}

/// A message, `None` for an empty line or a malformed notification, or the answer to a line that is neither.
fn parse(line: &[u8]) -> Result<Option<ClientJsonRpcMessage>, Box<ServerJsonRpcMessage>> {
    let rejection =
        |code, message: String, id| Box::new(ServerJsonRpcMessage::error(ErrorData::new(code, message, None), id));
    let text = str::from_utf8(line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line))
        .map_err(|error| rejection(ErrorCode::PARSE_ERROR, format!("parse error: {error}"), None))?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|error| rejection(ErrorCode::PARSE_ERROR, format!("parse error: {error}"), None))?;
    let id: Option<RequestId> = value.get("id").and_then(|id| serde_json::from_value(id.clone()).ok());
    let (has_id, has_method) = (value.get("id").is_some(), value.get("method").is_some());
    let is_request = id.is_some() && value["jsonrpc"] == "2.0" && value["method"].is_string();
    match serde_json::from_value::<ClientJsonRpcMessage>(value) {
        // With an ID that is none it would pass for a notification, and have no answer.
        Ok(message) if !has_id || !matches!(message, JsonRpcMessage::Notification(_)) => Ok(Some(message)),
        Err(_) if has_method && !has_id => Ok(None),
        Err(_) if is_request => Err(rejection(ErrorCode::INVALID_PARAMS, "invalid parameters".into(), id)),
        _ => Err(rejection(ErrorCode::INVALID_REQUEST, "invalid request: not a message of JSON-RPC 2.0".into(), id)),
    }
}

fn encode(message: &ServerJsonRpcMessage) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

async fn write(mut messages: mpsc::Receiver<Vec<u8>>, mut output: impl AsyncWrite + Unpin, closed: CancellationToken) {
    while let Some(line) = messages.recv().await {
        if output.write_all(&line).await.is_err() || output.flush().await.is_err() {
            break;
        }
    }
    closed.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tokio::io::{AsyncReadExt, BufReader};

    fn code(rejected: &ServerJsonRpcMessage) -> i64 {
        serde_json::to_value(rejected).unwrap()["error"]["code"].as_i64().unwrap()
    }

    #[test]
    fn lines_that_are_no_message_are_rejected_with_the_code_for_it() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for (line, wanted) in [
            (&b"nonsense"[..], -32700),
            (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"", -32700),
            (b"\xff", -32700),
            (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", -32700),
            (b"\"\\ud800\"", -32700),
            (deep.as_bytes(), -32700),
            (b"1", -32600),
            (b"[]", -32600),
            (b"{}", -32600),
            (b"{\"id\":1,\"method\":\"ping\"}", -32600),
            (b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"ping\"}", -32600),
            (b"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"ping\"}", -32600),
            (b"{\"jsonrpc\":\"2.0\",\"id\":[1],\"method\":\"ping\"}", -32600),
            (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}", -32600),
            (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":[]}", -32602),
        ] {
            let rejected = parse(line).expect_err(&String::from_utf8_lossy(line));
            assert_eq!(code(&rejected), wanted, "{}", String::from_utf8_lossy(line));
        }
        let rejected = serde_json::to_value(parse(b"{\"id\":\"a\",\"method\":\"ping\"}").unwrap_err()).unwrap();
        assert_eq!(rejected["id"], "a");
    }

    #[test]
    fn lines_without_an_answer_have_none() {
        for line in [&b""[..], b" \r", b"\xef\xbb\xbf", b"{\"method\":7}"] {
            assert!(matches!(parse(line), Ok(None)), "{}", String::from_utf8_lossy(line));
        }
        assert!(matches!(
            parse(b"\xef\xbb\xbf{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r"),
            Ok(Some(JsonRpcMessage::Request(_)))
        ));
    }

    async fn read_all(bytes: Vec<u8>) -> Vec<Result<usize, ()>> {
        let from = BufReader::new(Cursor::new(bytes));
        let mut input = Input { from, line: Vec::new(), is_oversized: false, rejection: None };
        let mut read = Vec::new();
        loop {
            match input.read().await {
                Read::Line => read.push(Ok(std::mem::take(&mut input.line).len())),
                Read::Oversized => read.push(Err(())),
                Read::End => return read,
            }
        }
    }

    #[tokio::test]
    async fn an_oversized_line_is_reported_once_and_the_next_is_read() {
        let mut bytes = vec![b'x'; MAX_LINE];
        bytes.push(b'\n');
        assert_eq!(read_all(bytes.clone()).await, [Ok(MAX_LINE + 1)]);
        bytes.insert(0, b'x');
        bytes.extend_from_slice(b"next\nlast");
        assert_eq!(read_all(bytes).await, [Err(()), Ok(5), Ok(4)]);
        assert_eq!(read_all(vec![b'x'; 3 * MAX_LINE]).await, [Err(())]);
        assert_eq!(read_all(Vec::new()).await, []);
    }

    #[tokio::test]
    async fn the_input_ends_after_the_last_answer() {
        let line = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}";
        let twice = format!("{line}\n{line}");
        let (output, mut answers) = tokio::io::duplex(1 << 16);
        let (mut lines, writer) = Lines::new(Cursor::new(twice.into_bytes()), output);
        assert!(matches!(lines.receive().await, Some(JsonRpcMessage::Request(_))));
        let mut ending = lines.clone();
        let mut end = tokio::spawn(async move { ending.receive().await });
        // The second request of that ID is rejected; the first one still holds the end up.
        let mut rejection = vec![0; 4096];
        let length = answers.read(&mut rejection).await.unwrap();
        assert!(String::from_utf8_lossy(&rejection[..length]).contains("has no answer yet"));
        assert!(futures_are_pending(&mut end).await);
        let answer = ServerJsonRpcMessage::error(ErrorData::internal_error("", None), Some(RequestId::Number(1)));
        lines.send(answer).await.unwrap();
        assert!(end.await.unwrap().is_none());
        drop(lines);
        writer.await.unwrap();
    }

    async fn futures_are_pending<T>(task: &mut JoinHandle<T>) -> bool {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
        !task.is_finished()
    }
}
