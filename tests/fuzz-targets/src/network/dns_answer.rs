//! A name server that answers with any bytes.
//!
//! Input: the answer. The question is the one that it says it is about. The target panics unless what is kept begins with
//! the name that was asked for, is bounded, can be written and read again, and has no parameter that hides a name.

use domain::{
    base::{Message, ParsedName, ToName, iana::Rtype},
    rdata::AllRecordData,
};
use sandboxvm_egress::resolver::{
    question::{Form, Query, normal_form},
    reply::{Reply, Verdict},
    upstream_answer::{Asked, MAX_RECORDS, read},
};

/// Reads the answer as the resolver does.
pub fn dns_answer(data: &[u8]) {
    let Ok(message) = Message::from_slice(data) else { return };
    let Some(question) = message.first_question() else { return };
    let name = question.qname().to_name::<Vec<u8>>();
    let asked = Asked { id: message.header().id(), name: name.clone(), rtype: question.qtype() };
    let Ok(found) = read(data, &asked) else { return };
    assert!(found.records.len() <= MAX_RECORDS + 17, "{} records", found.records.len());
    if let Some(first) = found.records.first() {
        assert!(first.owner() == &name, "{} is not {name}", first.owner());
    }
    for record in &found.records {
        assert!(record.rtype() == asked.rtype || record.rtype() == Rtype::CNAME, "{}", record.rtype());
    }
    let Some(normal) = normal_form(&name) else { return };
    let form = Form { limit: usize::from(u16::MAX), has_edns: true };
    let query = Query { id: 1, recursion: true, wire_name: name, name: normal, rtype: asked.rtype, form };
    let answer = Reply::to(&query, Verdict::Records(found.records.clone()));
    let message = Message::from_octets(answer).expect("the answer can be read");
    if message.header().tc() {
        return;
    }
    let mut count = 0;
    for record in message.answer().expect("it can be read") {
        let record = record.expect("it can be read");
        let record = record.to_any_record::<AllRecordData<_, ParsedName<_>>>().expect("its data can be read");
        let params = match record.data() {
            AllRecordData::Svcb(svcb) => svcb.params().as_slice(),
            AllRecordData::Https(https) => https.params().as_slice(),
            _ => &[],
        };
        let mut params = params;
        while let [k0, k1, l0, l1, rest @ ..] = params {
            assert!(![4, 5, 6].contains(&u16::from_be_bytes([*k0, *k1])), "a parameter that is left out");
            params = &rest[usize::from(u16::from_be_bytes([*l0, *l1]))..];
        }
        count += 1;
    }
    assert_eq!(count, found.records.len());
}
