//! Questions to the resolver, over UDP and TCP, whatever the address that they are for: the guest gets the answer from
//! there.

use super::{
    Gateway,
    account::{Account, Ended},
    key::Key,
};
use crate::stack::{guest_stream::GuestStream, packet::Packet, replies};
use sandboxvm_protocol::egress::{FlowEnd, ResolverTransport};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Maximum number of questions over UDP without an answer.
const MAX_OUTSTANDING: usize = 128;

/// Longest question in bytes: the resolver takes no longer one either.
const MAX_QUESTION: usize = 4096;

/// How long a connection may wait for its next question.
const IDLE: Duration = Duration::from_secs(30);

/// Answers a question over UDP.
pub fn over_udp(gateway: &Rc<Gateway>, packet: &Packet<'_>) {
    let question = packet.data();
    if question.len() > MAX_QUESTION {
        return;
    }
    let key = Key::of(packet);
    if !may_ask(gateway) {
        return answer(gateway, &key, &refusal(question));
    }
    let Some(slot) = gateway.slot(MAX_OUTSTANDING) else { return answer(gateway, &key, &refusal(question)) };
    let (gateway, question) = (Rc::clone(gateway), Box::<[u8]>::from(question));
    tokio::task::spawn_local(async move {
        let _slot = slot;
        if let Some(bytes) = gateway.resolver().answer(&question, ResolverTransport::Udp).await {
            answer(&gateway, &key, &bytes);
        }
    });
}

fn answer(gateway: &Gateway, key: &Key, bytes: &[u8]) {
    let mut outlet = gateway.link().outlet.borrow_mut();
    replies::datagram(&mut outlet, (key.address, key.port), key.from, |room| {
        room.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(bytes.len())
    });
}

/// Answers questions over a TCP connection, one after another.
pub async fn over_tcp(gateway: &Gateway, mut guest: GuestStream, account: &Account) -> Ended {
    let carried = async {
        loop {
            let mut len = [0; 2];
            if guest.read(&mut len[..1]).await? == 0 {
                guest.close().await;
                return Ok::<_, std::io::Error>(FlowEnd::Closed);
            }
            guest.read_exact(&mut len[1..]).await?;
            let len = usize::from(u16::from_be_bytes(len));
            if len > MAX_QUESTION {
                return Ok(FlowEnd::Reset);
            }
            let mut question = vec![0; len];
            guest.read_exact(&mut question).await?;
            account.passed(crate::rates::Way::Out, len);
            let bytes = if may_ask(gateway) {
                gateway.resolver().answer(&question, ResolverTransport::Tcp).await
            } else {
                Some(refusal(&question))
            };
            let Some(bytes) = bytes else { return Ok(FlowEnd::Reset) };
            let Ok(len) = u16::try_from(bytes.len()) else { return Ok(FlowEnd::Reset) };
            guest.write_all(&[&len.to_be_bytes()[..], &bytes].concat()).await?;
            account.passed(crate::rates::Way::In, bytes.len());
        }
    };
    let end = tokio::select! {
        end = carried => end.unwrap_or(FlowEnd::Reset),
        () = account.idle(|| IDLE) => FlowEnd::Idle,
    };
    if end == FlowEnd::Closed {
        let _ = tokio::time::timeout(IDLE, guest.closed()).await;
    }
    end.into()
}

fn may_ask(gateway: &Gateway) -> bool {
    gateway.session().borrow_mut().rates.queries.take(Instant::now())
}

/// The question as its own refusal (RFC 1035, 4.1.1): a response with the code REFUSED.
fn refusal(question: &[u8]) -> Vec<u8> {
    let mut bytes = question.to_vec();
    if let [_, _, flags, code, ..] = &mut bytes[..] {
        *flags |= 0x80;
        *code = 5;
    }
    bytes
}
