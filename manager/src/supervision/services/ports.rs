//! Publishes ports of the guest on the host, and unpublishes them.

use super::listeners::{self, Listening, MAX_CONNECTIONS};
use crate::{
    audit::Event,
    supervision::{
        SuperviseError,
        file::{Port, Supervision},
        publish::{HostEnd, MAX_PORTS, Publish, PublishedPort},
        service::{Answer, Context, Service},
        talk::{Reply, Request},
    },
};
use futures_util::future::BoxFuture;
use sandboxvm_protocol::agent::port::PortNumber;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The service of the published ports.
pub(super) struct Ports {
    /// The listener of each port of the record. `None` if another process has its place.
    listening: Vec<Option<Listening>>,
    room: Arc<Semaphore>,
}

impl Ports {
    pub(super) fn new() -> Self {
        Self { listening: Vec::new(), room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }

    /// Starts to listen on all ports. If the place of a port that the sandbox had before is taken,
    /// the port is shown as lost; for a new port that is an error.
    async fn listen(&mut self, context: &mut Context) -> Result<(), SuperviseError> {
        for port in &mut context.record.ports {
            match listeners::listen(port, &context.sandbox, &self.room).await {
                Ok((listening, end)) => {
                    let is_new = !port.was_ours;
                    (port.shown.host, port.shown.error, port.was_ours) = (end, None, true);
                    self.listening.push(Some(listening));
                    if is_new {
                        context.sandbox.trail().note(published(&port.shown));
                    }
                }
                Err(source) if port.was_ours => {
                    context.log.note(format_args!("cannot listen on {} any more: {source}", port.shown.host));
                    port.shown.error = Some(source.to_string());
                    self.listening.push(None);
                }
                Err(source) => {
                    let (port, end) = (port.shown.guest_port, port.shown.host.clone());
                    return Err(SuperviseError::Listen { port, end, source });
                }
            }
        }
        if !context.record.ports.is_empty() {
            context.write_record()?;
        }
        Ok(())
    }

    async fn publish(&mut self, context: &mut Context, Publish { guest, host }: Publish) -> Answer {
        if context.record.ports.len() >= MAX_PORTS {
            return Err(SuperviseError::TooMany);
        }
        if context.record.ports.iter().any(|port| port.shown.host == host) {
            return Err(SuperviseError::Taken(host));
        }
        let shown = PublishedPort { guest_port: guest, host, error: None };
        let mut port = Port { shown, was_ours: false };
        let (listening, end) = match listeners::listen(&port, &context.sandbox, &self.room).await {
            Ok(listening) => listening,
            Err(source) => return Err(SuperviseError::Listen { port: guest, end: port.shown.host, source }),
        };
        (port.shown.host, port.was_ours) = (end, true);
        let shown = port.shown.clone();
        context.record.ports.push(port);
        if let Err(error) = context.write_record() {
            context.record.ports.pop();
            return Err(error);
        }
        self.listening.push(Some(listening));
        context.sandbox.trail().note(published(&shown));
        Ok(Reply::Done(vec![shown]))
    }

    async fn unpublish(&mut self, context: &mut Context, guest: PortNumber, host: Option<&HostEnd>) -> Answer {
        let is_meant = |port: &Port| port.shown.guest_port == guest && host.is_none_or(|host| *host == port.shown.host);
        let mut kept = context.record.clone();
        kept.ports.retain(|port| !is_meant(port));
        if kept.ports.len() == context.record.ports.len() {
            return Err(SuperviseError::Unknown(guest));
        }
        kept.write(&context.directory)?;
        let before = std::mem::replace(&mut context.record, kept).ports;
        let listening = std::mem::take(&mut self.listening);
        let mut taken_back = Vec::new();
        for (port, listening) in before.into_iter().zip(listening) {
            if is_meant(&port) {
                if let Some(listening) = listening {
                    listening.close().await;
                }
                let (guest_port, host) = (port.shown.guest_port.get(), port.shown.host.to_string());
                context.sandbox.trail().note(Event::PortTakenBack { guest_port, host });
                taken_back.push(port.shown);
            } else {
                self.listening.push(listening);
            }
        }
        Ok(Reply::Done(taken_back))
    }
}

impl Service for Ports {
    fn is_needed(&self, record: &Supervision) -> bool {
        !record.ports.is_empty()
    }

    fn start<'a>(&'a mut self, context: &'a mut Context) -> BoxFuture<'a, Result<(), SuperviseError>> {
        Box::pin(self.listen(context))
    }

    fn on_request<'a>(&'a mut self, context: &'a mut Context, request: &'a Request) -> BoxFuture<'a, Option<Answer>> {
        Box::pin(async move {
            match request {
                Request::Publish(publish) => Some(self.publish(context, publish.clone()).await),
                Request::Unpublish { guest, host } => Some(self.unpublish(context, *guest, host.as_ref()).await),
                Request::Network(_) => None,
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for listening in std::mem::take(&mut self.listening).into_iter().flatten() {
                listening.close().await;
            }
        })
    }
}

fn published(port: &PublishedPort) -> Event {
    Event::PortPublished { guest_port: port.guest_port.get(), host: port.host.to_string() }
}
