//! What the guest gets: the records of an answer, or why there are none.

use super::question::{Form, Query, WireName};
use domain::{
    base::{
        Header, MessageBuilder, Question, Record, StaticCompressor, ToName, Ttl, UnknownRecordData,
        iana::{Class, OptRcode, OptionCode, Rcode, Rtype},
        message_builder::PushError,
    },
    dep::octseq::OctetsBuilder,
};

/// Bytes of an OPT record, and of an option with a reason.
const EDNS_LEN: usize = 11;
const OPTION_LEN: usize = 6;
/// Longest reason in bytes.
const MAX_REASON: usize = 160;
/// What a client may send to this resolver over UDP.
const UDP_SIZE: u16 = 1232;
/// `Blocked` (RFC 8914, 4.16).
const BLOCKED: u16 = 15;

/// A record with data in which no name is compressed.
pub type PlainRecord = Record<WireName, UnknownRecordData<Vec<u8>>>;

/// What a reply says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A code alone.
    Code(Rcode),
    /// It is refused, for this reason.
    ///
    /// The code is NXDOMAIN, and the reason is in an option (RFC 8914). With REFUSED, clients would ask again, or another
    /// server: musl ignores such an answer and waits until its timeout, glibc and Go report a temporary failure, after which
    /// programs try again. A refusal has to be final.
    Blocked(String),
    /// The name exists and has no such records, for this reason.
    Withheld(String),
    /// Its records.
    Records(Vec<PlainRecord>),
}

/// A reply to a query.
#[derive(Debug)]
pub struct Reply;

impl Reply {
    /// Returns the reply to `query`. It has the TC bit and no records if it does not fit.
    #[must_use]
    pub fn to(query: &Query, verdict: Verdict) -> Vec<u8> {
        Self::only(query.id, query.recursion, &query.wire_name, query.rtype, Class::IN, query.form, verdict)
    }

    /// Returns a reply of a header and nothing else, to a query whose question cannot be read.
    #[must_use]
    pub fn without_question(query: Header, code: Rcode) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let header = Header::for_message_slice_mut(&mut bytes);
        header.set_id(query.id());
        header.set_opcode(query.opcode());
        header.set_rd(query.rd());
        header.set_qr(true);
        header.set_ra(true);
        header.set_rcode(code);
        bytes
    }

    pub(super) fn only(
        id: u16,
        recursion: bool,
        name: &WireName,
        rtype: Rtype,
        class: Class,
        form: Form,
        verdict: Verdict,
    ) -> Vec<u8> {
        let (code, records, reason) = match verdict {
            Verdict::Code(code) => (code, Vec::new(), None),
            Verdict::Blocked(reason) => (Rcode::NXDOMAIN, Vec::new(), Some(reason)),
            Verdict::Withheld(reason) => (Rcode::NOERROR, Vec::new(), Some(reason)),
            Verdict::Records(records) => (Rcode::NOERROR, records, None),
        };
        let header = ReplyHeader { id, recursion, code };
        let question = Question::new(name, rtype, class);
        compose(&header, &question, &records, reason.as_deref(), form)
            // A question, a header and a reason fit the shortest limit.
            .unwrap_or_else(|_| header.bare())
    }
}

struct ReplyHeader {
    id: u16,
    recursion: bool,
    code: Rcode,
}

impl ReplyHeader {
    fn set(&self, header: &mut Header) {
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.recursion);
        header.set_ra(true);
        header.set_rcode(self.code);
    }

    fn bare(&self) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        self.set(Header::for_message_slice_mut(&mut bytes));
        bytes
    }
}

fn compose(
    header: &ReplyHeader,
    question: &Question<&WireName>,
    records: &[PlainRecord],
    reason: Option<&str>,
    form: Form,
) -> Result<Vec<u8>, PushError> {
    let reason = reason.map(|reason| &reason[..reason.floor_char_boundary(MAX_REASON)]);
    let reserved = if form.has_edns { EDNS_LEN + reason.map_or(0, |reason| OPTION_LEN + reason.len()) } else { 0 };
    let target = StaticCompressor::new(Vec::new());
    let mut builder = MessageBuilder::from_target(target).map_err(|_| PushError::ShortBuf)?;
    builder.set_push_limit(form.limit - reserved);
    header.set(builder.header_mut());
    let mut builder = builder.question();
    builder.push(question)?;
    let mut builder = builder.answer();
    for record in records {
        // Compression begins with the question's name if it is the same, in the case that the guest chose.
        let owner = if record.owner() == *question.qname() { *question.qname() } else { record.owner() };
        let pushed = builder.push((owner, record.class(), record.ttl(), record.data()));
        if pushed.is_err() {
            // The client asks again over TCP.
            builder.rewind();
            builder.header_mut().set_tc(true);
            break;
        }
    }
    let mut builder = builder.additional();
    builder.clear_push_limit();
    if form.has_edns {
        builder.opt(|opt| {
            opt.set_udp_payload_size(UDP_SIZE);
            opt.set_rcode(OptRcode::from(header.code));
            let Some(reason) = reason else { return Ok(()) };
            let length = u16::try_from(2 + reason.len()).unwrap_or(2);
            opt.push_raw_option(OptionCode::from_int(15), length, |target| {
                target.append_slice(&BLOCKED.to_be_bytes())?;
                target.append_slice(reason.as_bytes())
            })
        })?;
    }
    Ok(builder.finish().into_target())
}

/// Returns a record of this owner.
#[must_use]
pub fn record(owner: &impl ToName, rtype: Rtype, ttl: u32, data: Vec<u8>) -> Option<PlainRecord> {
    let mut owner = owner.to_name::<Vec<u8>>();
    owner.make_canonical();
    let data = UnknownRecordData::from_octets(rtype, data).ok()?;
    Some(Record::new(owner, Class::IN, Ttl::from_secs(ttl), data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::{Message, opt::UnknownOptData};

    fn name(text: &str) -> WireName {
        text.parse().unwrap()
    }

    fn reply(count: u8, limit: usize, has_edns: bool) -> Vec<u8> {
        let records = (0..count).map(|last| record(&name("a.example"), Rtype::A, 60, vec![1, 1, 1, last]).unwrap());
        let verdict = Verdict::Records(records.collect());
        Reply::only(7, true, &name("A.example"), Rtype::A, Class::IN, Form { limit, has_edns }, verdict)
    }

    #[test]
    fn a_reply_that_does_not_fit_is_truncated() {
        for has_edns in [false, true] {
            let fits = reply(20, 512, has_edns);
            let message = Message::from_octets(fits).unwrap();
            assert_eq!((message.header_counts().ancount(), message.header().tc()), (20, false));
            let long = reply(40, 512, has_edns);
            assert!(long.len() < 64, "{}", long.len());
            let message = Message::from_octets(long).unwrap();
            assert_eq!((message.header_counts().ancount(), message.header().tc()), (0, true));
            assert_eq!(message.opt().is_some(), has_edns);
        }
        assert!(reply(200, 65535, true).len() > 3200);
    }

    #[test]
    fn a_refusal_is_final_and_says_why() {
        let form = Form { limit: 512, has_edns: true };
        let long = "x".repeat(4000);
        for reason in ["no rule allows it", &long] {
            let verdict = Verdict::Blocked(reason.to_owned());
            let bytes = Reply::only(7, true, &name("A.example"), Rtype::A, Class::IN, form, verdict);
            assert!(bytes.len() <= 512);
            let message = Message::from_octets(bytes).unwrap();
            assert_eq!(message.header().rcode(), Rcode::NXDOMAIN);
            let opt = message.opt().unwrap();
            let option = opt.opt().iter::<UnknownOptData<_>>().next().unwrap().unwrap();
            assert_eq!((option.code().to_int(), &option.as_slice()[..2]), (15, &[0, 15][..]));
            assert!(reason.as_bytes().starts_with(&option.as_slice()[2..]));
        }
    }
}
