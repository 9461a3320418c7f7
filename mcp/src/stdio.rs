//! One client over standard input and output, for as long as it reads its answers.

use crate::{lines::Lines, scope::Scope, server::SandboxTools, settings::Settings};
use rmcp::{ServiceExt, service::ServerInitializeError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{future::Future, io, sync::Arc, time::Duration};
use tokio::{
    io::{BufReader, Stdin, stdin, stdout},
    task::JoinError,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Interval at which the output is checked: its reader may close it while commands run and nothing is written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long cancelled calls have to report that, and a client to read it.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// Why the connection failed.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The server failed.
    #[error("the MCP connection failed: {0}")]
    Failed(#[from] JoinError),
}

/// Serves the client until its input has ended and each of its requests is answered, until nothing reads the answers, or until
/// `until` is done. Then removes what it created. Returns what could not be removed.
///
/// # Errors
/// Every [`StdioError`]. What was created is removed then, too.
pub async fn serve(settings: Settings, until: impl Future<Output = ()>) -> Result<Vec<String>, StdioError> {
    let scope = Arc::new(Scope::new(settings));
    let served = converse(&scope, until).await;
    let failures = scope.end().await;
    served.map(|()| failures)
}

async fn converse(scope: &Arc<Scope>, until: impl Future<Output = ()>) -> Result<(), StdioError> {
    let (lines, written) = Lines::new(BufReader::new(stdin()), stdout());
    let mut served = Box::pin(serve_lines(scope, lines.clone()));
    let done = tokio::select! {
        done = &mut served => Some(done),
        () = until => None,
        () = lines.closed() => None,
        () = reader_left() => None,
    };
    let done = match done {
        Some(done) => done,
        None => {
            lines.stop();
            scope.close();
            timeout(ENDED_WITHIN, &mut served).await.unwrap_or(Ok(()))
        }
    };
    drop((served, lines));
    // Does not wait for a client that does not read its answers.
    let _ = timeout(ENDED_WITHIN, written).await;
    done
}

/// Serves until the input ends. A client whose handshake failed has received an error and may start again.
async fn serve_lines(scope: &Arc<Scope>, lines: Lines<BufReader<Stdin>>) -> Result<(), StdioError> {
    loop {
        let tools = SandboxTools::new(Arc::clone(scope));
        match tools.serve_with_ct(lines.clone(), CancellationToken::new()).await {
            Ok(running) => return running.waiting().await.map(|_| ()).map_err(StdioError::from),
            Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => return Ok(()),
            Err(_) => {}
        }
    }
}

/// Resolves when no process has the other end of the output open.
async fn reader_left() {
    let output = io::stdout();
    let now = Timespec::default();
    loop {
        let mut look = [PollFd::new(&output, PollFlags::empty())];
        let left = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if poll(&mut look, Some(&now)).is_ok() && look[0].revents().intersects(left) {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
