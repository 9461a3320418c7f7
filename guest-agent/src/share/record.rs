//! The record of what the guest's kernel refers to. The process of the host writes it before the memory of the
//! machine is copied, and the process that serves the copy reads it. Nothing in it is looked at here but
//! where its parts begin.

use rustix::io::Errno;

/// Number of requests of the relay itself. Those of the kernel are even, and one more for an interruption.
pub(super) const OWN: u64 = u64::MAX;
/// Codes of these requests.
const SAVE: u32 = 0x5356_0001;
const RESTORE: u32 = 0x5356_0002;
/// Size in bytes of the head of a request, and of a cursor.
const HEAD: usize = 40;
const CURSOR: usize = 16;
/// The kind of the cursor behind the last part.
const END: u32 = 2;
/// Maximum number of parts: a host that sends more is not what it should be.
const MAX_PARTS: usize = 4096;

/// Where a part begins. The first one is all zeros.
pub(super) type Cursor = [u8; CURSOR];

/// The parts of a record.
#[derive(Debug, Default)]
pub(super) struct Record(Vec<Vec<u8>>);

impl Record {
    /// Adds a part from the body of an answer. Returns where the next one begins, or none after the last one, or
    /// an error if this is not such an answer.
    pub(super) fn add(&mut self, body: &[u8]) -> Result<Option<Cursor>, Errno> {
        let (next, part) = body.split_first_chunk::<CURSOR>().ok_or(Errno::PROTO)?;
        if self.0.len() >= MAX_PARTS {
            return Err(Errno::PROTO);
        }
        self.0.push(part.to_vec());
        let kind = next.first_chunk().map_or(END, |bytes| u32::from_le_bytes(*bytes));
        Ok((kind != END).then_some(*next))
    }

    /// Returns the requests that give the record to another process.
    pub(super) fn requests(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.iter().map(|part| request(RESTORE, part))
    }
}

/// Returns the request for a part.
pub(super) fn save(cursor: &Cursor) -> Vec<u8> {
    request(SAVE, cursor)
}

fn request(code: u32, body: &[u8]) -> Vec<u8> {
    let mut request = vec![0; HEAD];
    let length = u32::try_from(HEAD + body.len()).unwrap_or(u32::MAX);
    request[..4].copy_from_slice(&length.to_le_bytes());
    request[4..8].copy_from_slice(&code.to_le_bytes());
    request[8..16].copy_from_slice(&OWN.to_le_bytes());
    request.extend_from_slice(body);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_collected_until_the_last_one_and_sent_as_they_are() {
        let body = |kind: u8, part: &[u8]| [&[kind; 1][..], &[0; 15], part].concat();
        let mut record = Record::default();
        assert_eq!(record.add(&body(1, b"first")), Ok(Some([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
        assert_eq!(record.add(&body(2, b"last")), Ok(None));
        assert_eq!(record.add(&[0; 15]), Err(Errno::PROTO));
        let requests: Vec<_> = record.requests().collect();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].len(), usize::from(requests[0][0]));
        assert_eq!((&requests[0][8..16], &requests[0][40..]), (&[0xff; 8][..], &b"first"[..]));
    }
}
