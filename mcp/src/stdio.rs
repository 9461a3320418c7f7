//! One client over standard input and output, for as long as it keeps them open.

use crate::{scope::Scope, server::SandboxTools, settings::Settings};
use rmcp::{ServiceExt, service::ServerInitializeError, transport::stdio};
use std::{future::Future, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Why there was no conversation.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The client did not begin as the protocol has it.
    #[error("the MCP client did not introduce itself: {0}; this command is started by an MCP client, see docs/mcp.md")]
    Introduction(Box<ServerInitializeError>),
    /// The server failed.
    #[error("the MCP conversation failed: {0}")]
    Failed(#[from] tokio::task::JoinError),
}

/// Serves the client until it closes its end or `until` is done, then ends what it made. The value says what could not be
/// removed.
///
/// # Errors
/// Every [`StdioError`]; what was made is ended then, too.
pub async fn serve(settings: Settings, until: impl Future<Output = ()>) -> Result<Vec<String>, StdioError> {
    let scope = Arc::new(Scope::new(settings));
    let served = converse(Arc::clone(&scope), until).await;
    let failures = scope.end().await;
    served.map(|()| failures)
}

async fn converse(scope: Arc<Scope>, until: impl Future<Output = ()>) -> Result<(), StdioError> {
    let end = CancellationToken::new();
    let conversation = async {
        let introduced = SandboxTools::new(scope).serve_with_ct(stdio(), end.clone()).await;
        let running = match introduced {
            Ok(running) => running,
            // It went before it said a word, or we are told to.
            Err(ServerInitializeError::ConnectionClosed(_) | ServerInitializeError::Cancelled) => return Ok(()),
            Err(error) => return Err(StdioError::Introduction(Box::new(error))),
        };
        running.waiting().await?;
        Ok(())
    };
    tokio::pin!(conversation);
    tokio::select! {
        done = &mut conversation => done,
        () = until => {
            end.cancel();
            Ok(())
        }
    }
}
