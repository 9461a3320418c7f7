//! A resolver's answer, of which only what answers the question is kept: the chain of CNAMEs from the name that was asked
//! for, and the records at its end. All else in it is ignored. Everything in it may be chosen by an attacker who runs a
//! name server.

use super::{
    question::WireName,
    reply::{PlainRecord, record},
};
use domain::{
    base::{
        Message, ParsedName, ParsedRecord, ToName,
        iana::{Class, Rcode, Rtype},
        name::ToLabelIter,
        rdata::ComposeRecordData,
    },
    rdata::AllRecordData,
};

/// Maximum number of CNAMEs that are followed.
const MAX_CHAIN: usize = 16;

/// Maximum number of records that are kept.
pub const MAX_RECORDS: usize = 256;

/// Parameters of service bindings that are left out. Encrypted Client Hello hides the name that a connection is for, and
/// the hints are addresses that no question was asked for.
const LEFT_OUT: [u16; 3] = [4, 5, 6];

/// The parameter that lists those that a client must understand.
const MANDATORY: u16 = 0;

/// A question to a resolver.
#[derive(Debug, Clone)]
pub struct Asked {
    /// ID of the query.
    pub id: u16,
    /// The name, in the case in which it was sent.
    pub name: WireName,
    /// Type.
    pub rtype: Rtype,
}

/// What the name servers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name does not exist.
    pub is_missing: bool,
    /// The chain of CNAMEs, then the records. Names are in lower case.
    pub records: Vec<PlainRecord>,
    /// How long this is valid, in seconds.
    pub ttl: u32,
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// It is to another question. The answer may still come.
    NotOurs,
    /// It is to this question, in another case: a guess of an attacker, or a resolver that does not preserve it.
    OtherCase,
    /// It is incomplete.
    Truncated,
    /// The resolver did not find an answer.
    Failed,
}

/// Reads the answer to a question.
///
/// # Errors
/// Every [`Unusable`].
pub fn read(packet: &[u8], asked: &Asked) -> Result<Found, Unusable> {
    let message = Message::from_slice(packet).map_err(|_| Unusable::NotOurs)?;
    let header = message.header();
    if !header.qr() || header.id() != asked.id {
        return Err(Unusable::NotOurs);
    }
    let question = message.sole_question().map_err(|_| Unusable::NotOurs)?;
    if !question.qname().name_eq(&asked.name) || question.qtype() != asked.rtype || question.qclass() != Class::IN {
        return Err(Unusable::NotOurs);
    }
    if !question
        .qname()
        .iter_labels()
        .zip(asked.name.iter_labels())
        .all(|(one, other)| one.as_slice() == other.as_slice())
    {
        return Err(Unusable::OtherCase);
    }
    if header.tc() {
        return Err(Unusable::Truncated);
    }
    let is_missing = match header.rcode() {
        Rcode::NOERROR => false,
        Rcode::NXDOMAIN => true,
        _ => return Err(Unusable::Failed),
    };
    let (records, ttl) = answers(message, asked).ok_or(Unusable::Failed)?;
    let ttl = if records.is_empty() || is_missing { negative_ttl(message) } else { ttl };
    Ok(Found { is_missing, records, ttl })
}

/// Returns the chain and the records at its end, and the shortest of their lives.
fn answers(message: &Message<[u8]>, asked: &Asked) -> Option<(Vec<PlainRecord>, u32)> {
    let section = message.answer().ok()?.collect::<Result<Vec<_>, _>>().ok()?;
    let section: Vec<_> = section.iter().filter(|record| record.class() == Class::IN).collect();
    let (mut owner, mut kept, mut ttl) = (asked.name.clone(), Vec::new(), u32::MAX);
    for _ in 0..=MAX_CHAIN {
        let of_owner = || section.iter().filter(|record| record.owner().name_eq(&owner));
        let mut is_end = false;
        for found in of_owner().filter(|record| record.rtype() == asked.rtype) {
            is_end = true;
            // One that is malformed is left out; so are those with hidden names.
            let Some(plain) = plain(found) else { continue };
            if kept.len() >= MAX_RECORDS {
                return None;
            }
            ttl = ttl.min(lifetime(found));
            kept.push(plain);
        }
        let alias = of_owner().find(|record| record.rtype() == Rtype::CNAME);
        let (false, Some(alias)) = (is_end, alias) else { return Some((kept, ttl)) };
        let record = alias.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
        let AllRecordData::Cname(target) = record.data() else { return None };
        let target = target.cname().to_name::<Vec<u8>>();
        ttl = ttl.min(lifetime(alias));
        kept.push(plain(alias)?);
        owner = target;
    }
    // Longer than any real chain, or without an end.
    None
}

/// A TTL with the highest bit set is 0 (RFC 2181, 8).
fn lifetime(record: &ParsedRecord<'_, [u8]>) -> u32 {
    let seconds = record.ttl().as_secs();
    if seconds > i32::MAX.unsigned_abs() { 0 } else { seconds }
}

/// Returns a record whose data has been read and written again.
fn plain(parsed: &ParsedRecord<'_, [u8]>) -> Option<PlainRecord> {
    let read = parsed.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
    let mut data = Vec::new();
    match read.data() {
        AllRecordData::Svcb(svcb) => service(&mut data, svcb.priority(), svcb.target(), svcb.params().as_slice())?,
        AllRecordData::Https(https) => {
            service(&mut data, https.priority(), https.target(), https.params().as_slice())?;
        }
        // Types that are not known here may have names that are compressed.
        AllRecordData::Unknown(_) => return None,
        // Names in lower case: compressed ones have the case that was chosen for the question.
        other => other.compose_canonical_rdata(&mut data).ok()?,
    }
    record(read.owner(), read.rtype(), lifetime(parsed), data)
}

/// Writes a service binding (RFC 9460, 2.2) without the parameters that are left out. Returns none if it needs one of them.
fn service(data: &mut Vec<u8>, priority: u16, target: &impl ToName, mut params: &[u8]) -> Option<()> {
    data.extend(priority.to_be_bytes());
    data.extend(target.to_name::<Vec<u8>>().as_slice());
    while let [k0, k1, l0, l1, rest @ ..] = params {
        let (key, length) = (u16::from_be_bytes([*k0, *k1]), usize::from(u16::from_be_bytes([*l0, *l1])));
        let (value, rest) = rest.split_at_checked(length)?;
        let is_listed = |key: &[u8]| LEFT_OUT.iter().any(|left_out| left_out.to_be_bytes() == *key);
        if key == MANDATORY && value.chunks(2).any(is_listed) {
            return None;
        }
        if !LEFT_OUT.contains(&key) {
            data.extend([*k0, *k1, *l0, *l1]);
            data.extend(value);
        }
        params = rest;
    }
    params.is_empty().then_some(())
}

/// How long it is valid that there is nothing (RFC 2308, 5), or 0 if the answer does not say.
fn negative_ttl(message: &Message<[u8]>) -> u32 {
    let Ok(section) = message.authority() else { return 0 };
    let soa = section.flatten().find(|record| record.rtype() == Rtype::SOA);
    let of_soa = |record: ParsedRecord<'_, [u8]>| {
        let read = record.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
        let AllRecordData::Soa(soa) = read.data() else { return None };
        Some(lifetime(&record).min(soa.minimum().as_secs()))
    };
    soa.and_then(of_soa).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{
        base::{MessageBuilder, Name, Question, Record, Ttl, UnknownRecordData},
        rdata::{A, Cname, Soa},
    };

    fn name(text: &str) -> WireName {
        text.parse().unwrap()
    }

    fn asked(rtype: Rtype) -> Asked {
        Asked { id: 9, name: name("wWw.example"), rtype }
    }

    fn message(rtype: Rtype, records: &[PlainRecord]) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(9);
        builder.header_mut().set_qr(true);
        let mut builder = builder.question();
        builder.push(Question::new_in(name("wWw.example"), rtype)).unwrap();
        let mut builder = builder.answer();
        for record in records {
            builder.push(record.clone()).unwrap();
        }
        builder.finish()
    }

    fn plain_record(owner: &str, ttl: u32, data: &impl ComposeRecordData) -> PlainRecord {
        let mut bytes = Vec::new();
        data.compose_rdata(&mut bytes).unwrap();
        record(&name(owner), data.rtype(), ttl, bytes).unwrap()
    }

    fn a(owner: &str, last: u8) -> PlainRecord {
        plain_record(owner, 60, &A::from_octets(1, 1, 1, last))
    }

    fn cname(owner: &str, target: &str) -> PlainRecord {
        plain_record(owner, 30, &Cname::new(name(target)))
    }

    #[test]
    fn only_the_chain_and_its_end_are_kept() {
        let records = [
            a("other.example", 9),
            cname("www.example", "b.example"),
            a("c.example", 1),
            cname("b.example", "C.example"),
            a("c.example", 2),
            plain_record("c.example", 1, &UnknownRecordData::from_octets(Rtype::TXT, vec![1, b'x']).unwrap()),
        ];
        let found = read(&message(Rtype::A, &records), &asked(Rtype::A)).unwrap();
        let kept: Vec<_> = found.records.iter().map(|record| (record.owner().to_string(), record.rtype())).collect();
        let expected = [
            ("www.example", Rtype::CNAME),
            ("b.example", Rtype::CNAME),
            ("c.example", Rtype::A),
            ("c.example", Rtype::A),
        ];
        assert_eq!(kept, expected.map(|(owner, rtype)| (owner.to_owned(), rtype)));
        assert_eq!((found.ttl, found.is_missing), (30, false));
    }

    #[test]
    fn answers_to_other_questions_are_not_ours() {
        let good = message(Rtype::A, &[a("www.example", 1)]);
        assert!(read(&good, &asked(Rtype::A)).is_ok());
        let changed = |at: usize, xor: u8| {
            let mut message = good.clone();
            message[at] ^= xor;
            read(&message, &asked(Rtype::A))
        };
        // The ID, the QR bit, a letter, type, class.
        for (at, xor) in [(0, 1), (1, 1), (2, 0x80), (14, 1), (26, 1), (28, 2)] {
            assert_eq!(changed(at, xor), Err(Unusable::NotOurs), "{at}");
        }
        assert_eq!(changed(14, 0x20), Err(Unusable::OtherCase));
        assert_eq!(changed(2, 2), Err(Unusable::Truncated));
        for code in [1, 2, 4, 5] {
            assert_eq!(changed(3, code), Err(Unusable::Failed), "{code}");
        }
        assert!(changed(3, 3).unwrap().is_missing);
        for length in 0..good.len() {
            assert!(read(&good[..length], &asked(Rtype::A)).is_err(), "{length}");
        }
    }

    #[test]
    fn chains_without_an_end_and_names_that_point_to_themselves_fail() {
        let ring = [cname("www.example", "b.example"), cname("b.example", "www.example")];
        assert_eq!(read(&message(Rtype::A, &ring), &asked(Rtype::A)), Err(Unusable::Failed));
        let mut looped = message(Rtype::A, &[]);
        let at = u8::try_from(looped.len()).unwrap();
        looped[7] = 1;
        // A name that is a pointer to itself.
        looped.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 1, 1, 1]);
        assert_eq!(read(&looped, &asked(Rtype::A)), Err(Unusable::Failed));
        let many: Vec<_> = (0..=MAX_RECORDS).map(|_| a("www.example", 1)).collect();
        assert_eq!(read(&message(Rtype::A, &many), &asked(Rtype::A)), Err(Unusable::Failed));
    }

    #[test]
    fn service_bindings_lose_what_hides_names_and_what_was_not_asked_for() {
        let data = |params: &[(u16, &[u8])]| {
            let mut data = vec![0, 1, 0];
            for (key, value) in params {
                data.extend(key.to_be_bytes());
                data.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
                data.extend(*value);
            }
            data
        };
        let read_back = |given: Vec<u8>| {
            let given = record(&name("www.example"), Rtype::HTTPS, 60, given).unwrap();
            let found = read(&message(Rtype::HTTPS, &[given]), &asked(Rtype::HTTPS)).unwrap();
            found.records.first().map(|record| record.data().data().clone())
        };
        let alpn = (1, &b"\x02h2"[..]);
        let ech = (5, &b"\0\x04\xfe\x0d\0\0"[..]);
        let hints = [(4, &[10, 0, 0, 1][..]), (6, &[0; 16][..])];
        assert_eq!(read_back(data(&[alpn, hints[0], ech, hints[1]])), Some(data(&[alpn])));
        assert_eq!(read_back(data(&[(0, &[0, 1]), alpn, ech])), Some(data(&[(0, &[0, 1]), alpn])));
        assert_eq!(read_back(data(&[(0, &[0, 5]), alpn, ech])), None);
        let mut short = data(&[alpn]);
        short.pop();
        assert_eq!(read_back(short), None);
    }

    #[test]
    fn that_there_is_nothing_is_valid_as_long_as_the_zone_says() {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(9);
        builder.header_mut().set_qr(true);
        let mut builder = builder.question();
        builder.push(Question::new_in(name("wWw.example"), Rtype::A)).unwrap();
        let mut builder = builder.authority();
        let ttl = Ttl::from_secs(40);
        let root = || Name::<Vec<u8>>::root_vec();
        let soa = Soa::new(root(), root(), 1.into(), ttl, ttl, ttl, ttl);
        builder.push(Record::new(name("example"), Class::IN, Ttl::from_secs(900), soa)).unwrap();
        let found = read(&builder.finish(), &asked(Rtype::A)).unwrap();
        assert_eq!((found.records.len(), found.ttl), (0, 40));
    }
}
