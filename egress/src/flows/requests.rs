//! Carries an HTTP/1 connection whose requests have to be for hosts that are allowed, each of them.

use super::{decision::named, splice::Ends};
use crate::{
    http::{
        requests::{RequestError, Requests, Step},
        responses::FirstResponse,
    },
    rates::Way,
    session::refused,
};
use sandboxvm_egress_policy::{
    inspect::MAX_OPENING,
    policy::{self, Shown},
};
use sandboxvm_protocol::egress::Decided;
use std::{cell::Cell, io};
use tokio::sync::Notify;

/// Maximum number of bytes of a guest that are held: one head. More is not read until they are forwarded.
const MAX_HELD: usize = MAX_OPENING;

/// Maximum number of times that one head is looked at.
const MAX_LOOKS: usize = 256;

/// Why a connection ends before both sides close it.
#[derive(Debug)]
pub enum CarryError {
    /// A request is refused.
    Refused(Decided),
    /// One side failed, or was reset.
    Failed,
}

impl From<io::Error> for CarryError {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

impl From<RequestError> for CarryError {
    fn from(error: RequestError) -> Self {
        Self::Refused(refused(error.to_string()))
    }
}

/// What the first response says about the protocol behind it.
#[derive(Debug, Default)]
struct Switch {
    answer: Cell<Option<bool>>,
    answered: Notify,
}

/// Carries requests and responses. The guest sent `held` already.
///
/// # Errors
/// Every [`CarryError`].
pub async fn carry(ends: Ends<'_>, flow: &policy::Flow, held: Vec<u8>) -> Result<(), CarryError> {
    let switch = Switch::default();
    let mut first = FirstResponse::default();
    let back = ends.back(|bytes| {
        if switch.answer.get().is_none()
            && let Some(answer) = first.observe(bytes)
        {
            switch.answer.set(Some(answer));
            switch.answered.notify_one();
        }
    });
    let back = async { back.await.map_err(CarryError::from) };
    tokio::try_join!(out(ends, flow, held, Some(&switch)), back).map(drop)
}

/// Carries requests alone, none of which may change the protocol.
///
/// # Errors
/// Every [`CarryError`].
pub async fn out_only(ends: Ends<'_>, flow: &policy::Flow, held: Vec<u8>) -> Result<(), CarryError> {
    out(ends, flow, held, None).await
}

async fn out(
    ends: Ends<'_>,
    flow: &policy::Flow,
    mut held: Vec<u8>,
    switch: Option<&Switch>,
) -> Result<(), CarryError> {
    let mut requests = Requests::default();
    // Every byte of it can be read here, and none of it may have a placeholder.
    ends.watch.unlimited();
    let mut looks = 0;
    loop {
        let forwarded = match requests.next(&held)? {
            Step::More => {
                looks += 1;
                if looks > MAX_LOOKS || held.len() >= MAX_HELD {
                    return Err(RequestError::NotARequest.into());
                }
                let taken = ends.guest.take(|bytes| {
                    let count = bytes.len().min(MAX_HELD - held.len());
                    held.extend_from_slice(&bytes[..count]);
                    Ok(count)
                });
                if taken.await? == 0 {
                    // The rest of a head that is not complete is not forwarded.
                    return Ok(ends.finish().await?);
                }
                continue;
            }
            Step::Body(count) => count,
            Step::Head { len, shown, is_upgrade } => {
                check(ends, flow, &shown)?;
                if !matches!(shown, Shown::Name(_)) {
                    // It is allowed without a name, so what follows is too.
                    ends.send(&held).await?;
                    return Ok(ends.out(|_| {}).await?);
                }
                if is_upgrade {
                    let Some(switch) = switch else { return Err(RequestError::LateUpgrade.into()) };
                    ends.send(&held[..len]).await?;
                    held.drain(..len);
                    if switch.wait().await {
                        ends.send(&held).await?;
                        drop(held);
                        return Ok(ends.out(|_| {}).await?);
                    }
                    looks = 0;
                    continue;
                }
                len
            }
        };
        looks = 0;
        ends.send(&held[..forwarded]).await?;
        held.drain(..forwarded);
        ends.account.wait(Way::Out).await;
    }
}

impl Switch {
    async fn wait(&self) -> bool {
        loop {
            if let Some(answer) = self.answer.get() {
                return answer;
            }
            self.answered.notified().await;
        }
    }
}

fn check(ends: Ends<'_>, flow: &policy::Flow, shown: &Shown) -> Result<(), CarryError> {
    let account = ends.account;
    let decision = named(&account.session().borrow(), flow, &account.known.borrow(), shown);
    match decision {
        Ok(decided) => {
            *account.decided.borrow_mut() = decided;
            account.show(shown.clone());
            Ok(())
        }
        Err(decided) => {
            account.show(shown.clone());
            Err(CarryError::Refused(decided))
        }
    }
}
