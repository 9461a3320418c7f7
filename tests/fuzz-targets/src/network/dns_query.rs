//! A guest that sends any bytes to its resolver.
//!
//! Input: the first byte says whether over UDP or TCP, the others are the packet. The target panics unless each query has
//! an answer of the same ID that can be read and that fits what the guest takes.

use crate::input::Input;
use domain::base::{
    Message,
    iana::{Rcode, Rtype},
};
use sandboxvm_egress::resolver::{
    query::{Parsed, parse},
    reply::{Reply, Verdict, record},
};
use sandboxvm_protocol::egress::ResolverTransport;

/// Reads the packet as the resolver does, and writes answers of several kinds.
pub fn dns_query(data: &[u8]) {
    let mut input = Input::new(data);
    let over =
        if input.byte().unwrap_or(0).is_multiple_of(2) { ResolverTransport::Udp } else { ResolverTransport::Tcp };
    let packet = input.rest();
    let query = match parse(packet, over) {
        Parsed::Nothing => {
            assert!(packet.len() < 12 || packet[2] & 0x80 != 0, "a query has no answer");
            return;
        }
        Parsed::Answered(answer) => {
            assert_eq!(answer[..2], packet[..2], "the ID");
            let message = Message::from_octets(answer).expect("the answer can be read");
            assert!(message.header().qr() && message.header().rcode() != Rcode::NOERROR);
            return;
        }
        Parsed::Query(query) => query,
    };
    let name = query.wire_name.to_string().to_ascii_lowercase();
    assert_eq!(query.name.as_str(), name, "the normal form is another name");
    let address = |last| record(&query.wire_name, Rtype::A, 60, vec![1, 1, 1, last]).expect("a record");
    let verdicts = [
        Verdict::Code(Rcode::SERVFAIL),
        Verdict::Blocked("a reason".repeat(100)),
        Verdict::Records((0..255).map(address).collect()),
    ];
    for verdict in verdicts {
        let answer = Reply::to(&query, verdict);
        assert!(answer.len() <= query.form.limit, "{} bytes", answer.len());
        let message = Message::from_octets(answer).expect("the answer can be read");
        assert_eq!((message.header().id(), message.header().qr()), (query.id, true));
        assert_eq!(message.opt().is_some(), query.form.has_edns);
        let records = message.answer().expect("it can be read").collect::<Result<Vec<_>, _>>();
        assert_eq!(records.expect("they can be read").len(), usize::from(message.header_counts().ancount()));
    }
}
