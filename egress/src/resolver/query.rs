//! A guest's query, as it came. Everything in it is the guest's choice.

use super::{
    question::{Form, Query, normal_form},
    reply::{Reply, Verdict},
};
use domain::base::{
    Message, ParsedName, Question, ToName,
    iana::{Class, Opcode, Rcode, Rtype},
};
use sandboxvm_egress_policy::name::DomainName;
use sandboxvm_protocol::egress::ResolverTransport;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest query that is read.
pub const MAX_QUERY: usize = 4096;

/// What a client without EDNS takes over UDP (RFC 1035, 4.2.1).
const PLAIN_SIZE: u16 = 512;

/// Longest answer over UDP, whatever the client says that it takes.
const MAX_UDP: u16 = 4096;

/// What a packet is.
#[derive(Debug)]
pub enum Parsed {
    /// A question to decide.
    Query(Box<Query>),
    /// A query that is answered without any decision.
    Answered(Vec<u8>),
    /// No query: a response, or too short for a header.
    Nothing,
}

/// Reads a packet of the guest.
#[must_use]
pub fn parse(packet: &[u8], over: ResolverTransport) -> Parsed {
    let Ok(message) = Message::from_slice(packet) else { return Parsed::Nothing };
    let header = message.header();
    if header.qr() {
        return Parsed::Nothing;
    }
    let only_code = |code| Parsed::Answered(Reply::without_question(header, code));
    if header.opcode() != Opcode::QUERY {
        return only_code(Rcode::NOTIMP);
    }
    let (Ok(question), Ok(form)) = (sole_question(message, packet), form(message, over)) else {
        return only_code(Rcode::FORMERR);
    };
    let Some(form) = form else { return only_code(Rcode::NOTIMP) };
    let wire_name = question.qname().to_name::<Vec<u8>>();
    let (id, recursion, rtype) = (header.id(), header.rd(), question.qtype());
    let with = |verdict| Reply::only(id, recursion, &wire_name, rtype, question.qclass(), form, verdict);
    if question.qclass() != Class::IN || is_refused(rtype) {
        return Parsed::Answered(with(Verdict::Code(Rcode::REFUSED)));
    }
    match normal_form(&wire_name) {
        Some(name) => Parsed::Query(Box::new(Query { id, recursion, wire_name, name, rtype, form })),
        // The root is the only one of these that exists.
        None if wire_name.is_root() => Parsed::Answered(with(Verdict::Code(Rcode::REFUSED))),
        None => Parsed::Answered(with(Verdict::Code(Rcode::NXDOMAIN))),
    }
}

/// Types that no client needs, and that lead to long answers or to other protocols than a question.
fn is_refused(rtype: Rtype) -> bool {
    matches!(rtype, Rtype::ANY | Rtype::AXFR | Rtype::IXFR | Rtype::MAILA | Rtype::MAILB | Rtype::OPT)
}

fn sole_question<'m>(message: &'m Message<[u8]>, packet: &[u8]) -> Result<Question<ParsedName<&'m [u8]>>, ()> {
    let counts = message.header_counts();
    if packet.len() > MAX_QUERY || counts.qdcount() != 1 || counts.ancount() != 0 || counts.nscount() != 0 {
        return Err(());
    }
    message.sole_question().map_err(|_| ())
}

/// Returns none for a version of EDNS that this does not speak.
fn form(message: &Message<[u8]>, over: ResolverTransport) -> Result<Option<Form>, ()> {
    let mut edns = None;
    for record in message.additional().map_err(|_| ())? {
        let record = record.map_err(|_| ())?;
        if record.rtype() == Rtype::OPT {
            let root = record.owner().is_root();
            let [_, version, ..] = record.ttl().as_secs().to_be_bytes();
            if !root || edns.replace((record.class().to_int(), version)).is_some() {
                return Err(());
            }
        }
    }
    let udp = edns.map_or(PLAIN_SIZE, |(size, _)| size.clamp(PLAIN_SIZE, MAX_UDP));
    let limit = match over {
        ResolverTransport::Udp => udp,
        ResolverTransport::Tcp => u16::MAX,
    };
    let form = Form { limit: limit.into(), has_edns: edns.is_some() };
    Ok(edns.is_none_or(|(_, version)| version == 0).then_some(form))
}

/// Returns the address that a name for reverse lookup is about.
#[must_use]
pub fn reversed(name: &DomainName) -> Option<IpAddr> {
    if let Some(labels) = name.as_str().strip_suffix(".in-addr.arpa") {
        let octets = labels.rsplit('.').map(|label| label.parse().ok()).collect::<Option<Vec<u8>>>()?;
        return <[u8; 4]>::try_from(octets).ok().map(|octets| Ipv4Addr::from(octets).into());
    }
    let labels = name.as_str().strip_suffix(".ip6.arpa")?;
    let nibble = |label: &str| u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1);
    let nibbles = labels.rsplit('.').map(nibble).collect::<Option<Vec<_>>>()?;
    let number = nibbles.iter().fold(0, |number, nibble| number << 4 | nibble);
    (nibbles.len() == 32).then(|| Ipv6Addr::from(number).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(change: impl FnOnce(&mut Vec<u8>)) -> Parsed {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'A', 7];
        packet.extend(b"eXample\0\0\x01\0\x01");
        change(&mut packet);
        parse(&packet, ResolverTransport::Udp)
    }

    fn code(parsed: Parsed) -> u8 {
        match parsed {
            Parsed::Answered(answer) => answer[3] & 15,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_is_read_with_its_case_and_its_normal_form() {
        let Parsed::Query(query) = query(|_| ()) else { panic!() };
        assert_eq!((query.id, query.name.as_str(), query.rtype), (0x1234, "a.example", Rtype::A));
        assert_eq!(query.wire_name.to_string(), "A.eXample");
        assert_eq!(query.form, Form { limit: 512, has_edns: false });
    }

    #[test]
    fn what_is_not_one_plain_question_is_not_decided() {
        assert!(matches!(query(|packet| packet.truncate(11)), Parsed::Nothing));
        assert!(matches!(query(|packet| packet[2] |= 0x80), Parsed::Nothing));
        // Opcodes, counts, a name that ends early, and one that points to itself.
        assert_eq!(code(query(|packet| packet[2] |= 5 << 3)), 4);
        for count in [5, 7, 9] {
            assert_eq!(code(query(|packet| packet[count] += 1)), 1, "{count}");
        }
        assert_eq!(code(query(|packet| packet.truncate(20))), 1);
        assert_eq!(code(query(|packet| packet.splice(12.., [0xc0, 12, 0, 1, 0, 1]).for_each(drop))), 1);
        assert_eq!(code(query(|packet| packet.splice(12.., [0xc0, 14, 0xc0, 12, 0, 1, 0, 1]).for_each(drop))), 1);
        assert_eq!(code(query(|packet| packet.resize(MAX_QUERY + 1, 0))), 1);
        // A label with a dot, one with NUL, and the root.
        assert_eq!(code(query(|packet| packet[16] = b'.')), 3);
        assert_eq!(code(query(|packet| packet[16] = 0)), 3);
        assert_eq!(code(query(|packet| packet.splice(12.., [0, 0, 1, 0, 1]).for_each(drop))), 5);
        // Class CHAOS, and ANY.
        assert_eq!(code(query(|packet| *packet.last_mut().unwrap() = 3)), 5);
        assert_eq!(code(query(|packet| packet[24] = 255)), 5);
    }

    #[test]
    fn the_size_of_edns_is_kept_within_bounds() {
        let with_opt = |size: u16, version: u8| {
            query(|packet| {
                packet[11] = 1;
                packet.extend([0, 0, 41]);
                packet.extend(size.to_be_bytes());
                packet.extend([0, version, 0, 0, 0, 0]);
            })
        };
        for (size, limit) in [(0, 512), (1232, 1232), (65535, 4096)] {
            let Parsed::Query(query) = with_opt(size, 0) else { panic!() };
            assert_eq!(query.form, Form { limit, has_edns: true });
        }
        assert_eq!(code(with_opt(1232, 1)), 4);
    }

    #[test]
    fn names_for_reverse_lookup_are_addresses() {
        let name = |text: &str| text.parse().unwrap();
        assert_eq!(reversed(&name("1.0.0.127.in-addr.arpa")), Some([127, 0, 0, 1].into()));
        let v6 = format!("1.{}2.ip6.arpa", "0.".repeat(30));
        assert_eq!(reversed(&name(&v6)), Some("2000::1".parse().unwrap()));
        for other in ["0.127.in-addr.arpa", "256.0.0.1.in-addr.arpa", "1.ip6.arpa", "a.example", "in-addr.arpa"] {
            assert_eq!(reversed(&name(other)), None, "{other}");
        }
    }
}
