//! The opening of a connection whose name decides: the first bytes of the guest are held back until they have shown it.
//! Nothing of the guest goes to the upstream before.

use super::{
    account::{Account, Ended},
    decision::named,
    requests,
    splice::Ends,
    terminated,
};
use sandboxvm_egress_policy::{
    inspect::{Kind, MAX_OPENING, Opening, Progress, look},
    policy::{self, Shown},
};
use sandboxvm_protocol::egress::FlowEnd;
use std::{io, pin::pin, time::Duration};

/// How long a silent client has before its server may speak first.
const SILENCE: Duration = Duration::from_secs(3);

/// The same where the server may not, so that only a name can allow the connection: a busy guest can take long from its
/// connection to its first bytes.
const LONG_SILENCE: Duration = Duration::from_secs(60);

/// How long an opening may take from its first byte on.
const WHOLE_OPENING: Duration = Duration::from_secs(20);

/// Maximum number of times that an opening is looked at: once for each segment. Clients need a few.
const MAX_LOOKS: usize = 256;

/// Carries a connection that has to show its name.
pub async fn inspected(ends: Ends<'_>, flow: &policy::Flow) -> Ended {
    ends.account.is_inspected.set(true);
    let mut held = Vec::new();
    // The upstream may speak first where a connection without a name is allowed.
    let may_be_nameless =
        named(&ends.account.session().borrow(), flow, &ends.account.known.borrow(), &Shown::Nameless).is_ok();
    let silence = if may_be_nameless { SILENCE } else { LONG_SILENCE };
    let first = wait_for_client(ends, &mut held, silence).await;
    let server_first = match first {
        Ok(First::Client) => false,
        Ok(First::Server) => true,
        Err(_) => return FlowEnd::Reset.into(),
    };
    if server_first && let Err(ended) = decide(ends.account, flow, Shown::Nameless) {
        return ended;
    }
    let mut back = pin!(ends.back(|_| {}));
    let mut is_back_done = false;
    let opening = {
        let mut read = pin!(read_opening(ends, &mut held));
        loop {
            tokio::select! {
                opening = &mut read => break opening,
                result = &mut back, if server_first && !is_back_done => match result {
                    Ok(()) => is_back_done = true,
                    Err(_) => return FlowEnd::Reset.into(),
                },
            }
        }
    };
    let opening = match opening {
        Ok(opening) => opening,
        Err(_) => return FlowEnd::Reset.into(),
    };
    if let Err(ended) = decide(ends.account, flow, opening.shown.clone()) {
        return ended;
    }
    ends.account.is_inspected.set(false);
    let result = match (opening.kind, &opening.shown) {
        (Kind::Tls, Shown::Name(name)) if ends.account.session().borrow().credentials.ends_tls(name) => {
            return terminated::carry(ends, flow, name, held, server_first).await;
        }
        (Kind::Http, Shown::Name(_)) if !server_first => requests::carry(ends, flow, held).await,
        (Kind::Http, Shown::Name(_)) => {
            // Its responses are on the way already, so a change of the protocol would not be seen.
            let back = async { if is_back_done { Ok(()) } else { back.await.map_err(Into::into) } };
            tokio::try_join!(requests::out_only(ends, flow, held), back).map(drop)
        }
        _ => {
            let out = async {
                ends.send(&held).await?;
                drop(held);
                ends.out(|_| {}).await
            };
            let back = async { if is_back_done { Ok(()) } else { back.await } };
            tokio::try_join!(out, back).map(drop).map_err(Into::into)
        }
    };
    match result {
        Ok(()) => FlowEnd::Closed.into(),
        Err(requests::CarryError::Refused(decided)) => Ended { end: FlowEnd::Reset, refused: Some(decided) },
        Err(requests::CarryError::Failed) => FlowEnd::Reset.into(),
    }
}

/// Which side speaks first.
enum First {
    Client,
    Server,
}

async fn wait_for_client(ends: Ends<'_>, held: &mut Vec<u8>, silence: Duration) -> io::Result<First> {
    let server = async {
        let mut byte = [0];
        // An end of the data says nothing: the client may still send.
        match ends.upstream.peek(&mut byte).await {
            Ok(0) => std::future::pending().await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        biased;
        taken = ends.guest.take(|bytes| hold(held, bytes)) => taken.map(|_| First::Client),
        spoke = server => spoke.map(|()| First::Server),
        () = tokio::time::sleep(silence) => Ok(First::Server),
    }
}

fn hold(held: &mut Vec<u8>, bytes: &[u8]) -> io::Result<usize> {
    let count = bytes.len().min(MAX_OPENING - held.len());
    held.extend_from_slice(&bytes[..count]);
    Ok(count)
}

async fn read_opening(ends: Ends<'_>, held: &mut Vec<u8>) -> io::Result<Opening> {
    let hidden = |kind| Opening { kind, shown: Shown::Hidden };
    let mut until = None;
    for _ in 0..MAX_LOOKS {
        if !held.is_empty() {
            if let Progress::Done(opening) = look(held) {
                return Ok(opening);
            }
            until.get_or_insert_with(|| tokio::time::Instant::now() + WHOLE_OPENING);
        }
        let late = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let taken = tokio::select! {
            taken = ends.guest.take(|bytes| hold(held, bytes)) => taken?,
            () = late => return Ok(hidden(Kind::Other)),
        };
        if taken == 0 {
            // The client said all that it has to say: nothing, or the beginning of a name.
            return Ok(if held.is_empty() {
                Opening { kind: Kind::Other, shown: Shown::Nameless }
            } else {
                hidden(Kind::Other)
            });
        }
    }
    Ok(hidden(Kind::Other))
}

fn decide(account: &Account, flow: &policy::Flow, shown: Shown) -> Result<(), Ended> {
    let decision = named(&account.session().borrow(), flow, &account.known.borrow(), &shown);
    match decision {
        Ok(decided) => {
            *account.decided.borrow_mut() = decided;
            account.show(shown);
            Ok(())
        }
        Err(decided) => {
            // The record of a refusal has the name that was shown.
            account.show(shown);
            Err(Ended { end: FlowEnd::NotEstablished, refused: Some(decided) })
        }
    }
}
