//! Keeps the network of a sandbox: starts its two processes, connects them to the machine, logs what
//! passes, and starts others when they end. May never let anything pass that the record does not
//! allow: while the processes are being replaced, the card has no link.
//!
//! ```text
//! process   one of the two processes, and the socket that is its standard input
//! packets   that socket: one message in one packet
//! pair      both processes, and the machine's link to them
//! keeping   the task that owns the pair
//! ```
//! The record is replaced before its content is put in force. If the supervisor is killed in between,
//! the processes end with it, so that never more is allowed than recorded.

mod keeping;
mod packets;
mod pair;
mod process;

pub use pair::NetworkFailure;

use crate::{
    home::directory::SandboxDirectory,
    supervision::{
        SuperviseError,
        file::Supervision,
        log::Log,
        service::{Answer, Context, Service},
        settings,
        talk::{NetworkRequest, Reply, Request},
    },
};
use futures_util::future::BoxFuture;
use keeping::{Ask, Keeping};
use std::sync::Arc;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// The service of the network.
#[derive(Default)]
pub(super) struct Network {
    keeping: Option<(mpsc::Sender<Ask>, JoinHandle<()>)>,
}

impl Network {
    async fn begin(&mut self, context: &mut Context) -> Result<(), SuperviseError> {
        let Some(network) = &mut context.record.network else { return Ok(()) };
        let program = context.sandbox.home.network().program.clone().ok_or(NetworkFailure::NoProgram)?;
        let directory = SandboxDirectory::open(context.directory.path().to_owned())?;
        let log = Log::open(&context.directory)?;
        let (keeping, began) = Keeping::start(Arc::clone(&context.sandbox), directory, program, log).await;
        match began {
            Err(error) if !network.was_attached => return Err(error.into()),
            // The task tries again.
            Err(_) => {}
            Ok(()) if network.was_attached => {}
            Ok(()) => {
                network.was_attached = true;
                context.write_record()?;
            }
        }
        let (asks, asked) = mpsc::channel(1);
        self.keeping = Some((asks, tokio::spawn(keeping.run(asked))));
        Ok(())
    }

    async fn answer(&self, context: &mut Context, request: &NetworkRequest) -> Answer {
        match request {
            NetworkRequest::Report => self.ask(Ask::Report).await.map(Reply::Network),
            NetworkRequest::Set(record) => {
                if let Some(error) = settings::replace(record, &context.sandbox.trail(), &context.directory)? {
                    context.log.note(format_args!("the network is restricted, and there is no line about it: {error}"));
                }
                let in_force = self.ask(Ask::Reload).await;
                // Not before: a value that cannot be dropped must not keep a restriction from being in force.
                record.drop_values(&context.directory)?;
                in_force?.map_err(|error| SuperviseError::NetworkDown(error.to_string()))?;
                Ok(Reply::Done(Vec::new()))
            }
            NetworkRequest::Pins { is_replaced } => {
                let is_replaced = *is_replaced;
                self.ask(|reply| Ask::Pins { is_replaced, reply }).await.map(Reply::Pins)
            }
            NetworkRequest::Reattach => {
                self.ask(Ask::Reattach).await??;
                Ok(Reply::Done(Vec::new()))
            }
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, SuperviseError> {
        let ended = || SuperviseError::NetworkDown("the sandbox has no network, or it is ending".to_owned());
        let (reply, answer) = oneshot::channel();
        let (asks, _) = self.keeping.as_ref().ok_or_else(ended)?;
        asks.send(ask(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

impl Service for Network {
    fn is_needed(&self, record: &Supervision) -> bool {
        record.network.is_some()
    }

    fn start<'a>(&'a mut self, context: &'a mut Context) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(self.begin(context))
    }

    fn on_request<'a>(&'a mut self, context: &'a mut Context, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async move {
            match request {
                Request::Network(request) => Some(self.answer(context, request).await),
                Request::Publish(_) | Request::Unpublish { .. } => None,
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let Some((asks, task)) = self.keeping.take() else { return };
            let (reply, ended) = oneshot::channel();
            if asks.send(Ask::End(reply)).await.is_ok() {
                // An error means that the task has ended too.
                let _ = ended.await;
            }
            task.abort();
        })
    }
}
