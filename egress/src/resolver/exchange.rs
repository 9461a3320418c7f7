//! A question to the resolvers outside, over sockets of the dialer: one socket for each attempt, so that ID and source port
//! are new each time, and a name whose case is chosen at random.

use super::{
    question::WireName,
    upstream_answer::{Asked, Found, Unusable, read},
};
use crate::dialing::Dialing;
use domain::base::{
    MessageBuilder, Question,
    iana::{Class, Rtype},
};
use sandboxvm_egress_policy::name::DomainName;
use sandboxvm_protocol::egress::{Dial, ResolverTransport};
use std::{
    io::{Error, ErrorKind},
    net::{TcpStream as StdTcpStream, UdpSocket as StdUdpSocket},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

/// How long one resolver has before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a question is asked.
const DEADLINE: Duration = Duration::from_secs(5);

/// Number of attempts, unless there are more resolvers.
const ATTEMPTS: usize = 3;

/// Longest answer over UDP that a resolver is asked for (the advice of DNS Flag Day 2020).
const UDP_SIZE: u16 = 1232;

/// Longest answer over TCP that is read.
const MAX_TCP: usize = 16 * 1024;

/// Maximum number of datagrams that are read for one question. Some are answers to others, which an attacker sends.
const MAX_DATAGRAMS: usize = 64;

/// Asks the first of `resolvers` resolvers, and others if it does not answer. Returns none if none of them answers.
pub async fn ask(dialing: &Dialing, resolvers: u8, name: &DomainName, rtype: Rtype) -> Option<Found> {
    let deadline = Instant::now() + DEADLINE;
    for attempt in 0..ATTEMPTS.max(usize::from(resolvers)) {
        let place = u8::try_from(attempt.checked_rem(usize::from(resolvers))?).ok()?;
        let now = Instant::now();
        if now >= deadline {
            return None;
        }
        let until = (now + PATIENCE).min(deadline);
        // A failure of one resolver is not one of the next.
        if let Ok(Ok(found)) = timeout_at(until, ask_one(dialing, place, name, rtype)).await {
            return Some(found);
        }
    }
    None
}

async fn ask_one(dialing: &Dialing, place: u8, name: &DomainName, rtype: Rtype) -> Result<Found, Error> {
    let asked = asked(name, rtype)?;
    let query = to_packet(&asked).ok_or(ErrorKind::InvalidInput)?;
    match over_udp(dialing, place, &asked, &query).await? {
        Ok(found) => Ok(found),
        // TCP also shows whether an answer in another case is an attacker's.
        Err(Unusable::Truncated | Unusable::OtherCase) => over_tcp(dialing, place, &asked, &query).await,
        Err(Unusable::NotOurs | Unusable::Failed) => Err(ErrorKind::InvalidData.into()),
    }
}

async fn over_udp(dialing: &Dialing, place: u8, asked: &Asked, query: &[u8]) -> Result<Result<Found, Unusable>, Error> {
    let socket = dial(dialing, place, ResolverTransport::Udp).await?;
    let socket = UdpSocket::from_std(StdUdpSocket::from(socket))?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    for _ in 0..MAX_DATAGRAMS {
        let length = socket.recv(&mut buffer).await?;
        match read(&buffer[..length], asked) {
            Err(Unusable::NotOurs) => {}
            answer => return Ok(answer),
        }
    }
    Ok(Err(Unusable::NotOurs))
}

async fn over_tcp(dialing: &Dialing, place: u8, asked: &Asked, query: &[u8]) -> Result<Found, Error> {
    let socket = dial(dialing, place, ResolverTransport::Tcp).await?;
    let mut stream = TcpStream::from_std(StdTcpStream::from(socket))?;
    let length = u16::try_from(query.len()).map_err(|_| ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_TCP {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    match read(&answer, asked) {
        Ok(found) => Ok(found),
        // A connection cannot be guessed, so the resolver does not preserve case.
        Err(Unusable::OtherCase) => {
            let lower = Asked { name: in_case_of(&answer, asked).ok_or(ErrorKind::InvalidData)?, ..asked.clone() };
            read(&answer, &lower).map_err(|_| ErrorKind::InvalidData.into())
        }
        Err(_) => Err(ErrorKind::InvalidData.into()),
    }
}

async fn dial(dialing: &Dialing, place: u8, transport: ResolverTransport) -> Result<std::os::fd::OwnedFd, Error> {
    dialing.dial(Dial::Resolver(place, transport)).await.map_err(Error::other)
}

/// Returns a question with a random ID and a random case.
fn asked(name: &DomainName, rtype: Rtype) -> Result<Asked, Error> {
    let mut random = [0; 34];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
    let (id, bits) = ([random[0], random[1]], &random[2..]);
    let is_upper = |place: usize| bits.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1);
    let mixed = |(place, letter): (usize, char)| if is_upper(place) { letter.to_ascii_uppercase() } else { letter };
    let text: String = name.as_str().chars().enumerate().map(mixed).collect();
    let name = text.parse().map_err(|_| ErrorKind::InvalidInput)?;
    Ok(Asked { id: u16::from_be_bytes(id), name, rtype })
}

fn to_packet(asked: &Asked) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(asked.id);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push(Question::new(&asked.name, asked.rtype, Class::IN)).ok()?;
    let mut builder = builder.additional();
    let set = |opt: &mut domain::base::message_builder::OptBuilder<'_, _>| {
        opt.set_udp_payload_size(UDP_SIZE);
        Ok(())
    };
    builder.opt(set).ok()?;
    Some(builder.finish())
}

/// Returns the name of the question that an answer has.
fn in_case_of(answer: &[u8], asked: &Asked) -> Option<WireName> {
    use domain::base::{Message, ToName};
    let question = Message::from_slice(answer).ok()?.sole_question().ok()?;
    let name = question.qname().to_name::<Vec<u8>>();
    name.name_eq(&asked.name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::{Message, ToName};

    #[test]
    fn questions_differ_in_id_and_case() {
        let name: DomainName = "a-long-name-with-many-letters.example".parse().unwrap();
        let first = asked(&name, Rtype::A).unwrap();
        assert!((0..8).any(|_| {
            let other = asked(&name, Rtype::A).unwrap();
            assert!(other.name.name_eq(&first.name));
            other.name.to_string() != first.name.to_string() && other.id != first.id
        }));
        let packet = to_packet(&first).unwrap();
        let message = Message::from_octets(packet).unwrap();
        assert_eq!(message.sole_question().unwrap().qname().to_string(), first.name.to_string());
        assert_eq!(message.opt().unwrap().udp_payload_size(), UDP_SIZE);
        assert!(message.header().rd() && !message.header().qr());
    }
}
