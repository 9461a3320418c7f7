//! A sandbox that a request may use: the launcher holds it open under a handle, for as long as anything here is alive.

use super::{
    client::Launcher,
    failure::Failure,
    request::{Facts, Knock, Request},
};
use sandboxvm_manager::{Carried, Courier, RemoteSandbox, SandboxId};
use std::{future::Future, pin::Pin, sync::Arc};

#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) id: SandboxId,
    pub(crate) facts: Facts,
    pub(crate) sandbox: RemoteSandbox,
    lease: Arc<Lease>,
}

#[derive(Debug)]
struct Lease {
    launcher: Launcher,
    handle: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.launcher.tell(Request::Release { handle: self.handle }, Vec::new());
    }
}

impl Courier for Lease {
    fn carry(&self, call: Vec<u8>) -> Pin<Box<dyn Future<Output = Result<Carried, String>> + Send + '_>> {
        Box::pin(async move {
            let reply = self.launcher.ask_with(Request::Call { handle: self.handle }, call).await;
            let mut reply = reply.map_err(|failure| failure.message)?;
            Ok(Carried { answer: reply.tail, stream: reply.descriptors.pop() })
        })
    }

    fn tell(&self, call: Vec<u8>) {
        self.launcher.tell(Request::Tell { handle: self.handle }, call);
    }
}

impl Reached {
    /// Opens a sandbox for a request that may reach it. A paused one is resumed first where its client asked for that.
    /// `body` is that of a request which the launcher sends itself.
    pub(crate) async fn open(launcher: &Launcher, knock: Knock, facts: Facts, body: Vec<u8>) -> Result<Self, Failure> {
        let id = knock.id.clone();
        let reply = launcher.ask_with(Request::Reach(knock), body).await?;
        let lease = Arc::new(Lease { launcher: launcher.clone(), handle: reply.id });
        let sandbox = RemoteSandbox::new(Arc::clone(&lease) as Arc<dyn Courier>);
        Ok(Self { id, facts, sandbox, lease })
    }

    /// What the request asked for has begun: a pause need not wait for it any longer.
    pub(crate) fn has_begun(&self) {
        self.lease.launcher.tell(Request::Begun { handle: self.lease.handle }, Vec::new());
    }

    pub(crate) fn handle(&self) -> u64 {
        self.lease.handle
    }
}
