//! The end of a process's output, stdout and stderr in their order, within a fixed number of bytes.
//!
//! Positions count all bytes of the process's output, so a reader that fell behind knows how many
//! it missed. A process that changes between its streams with every byte costs no more than others,
//! because the memory for a change counts too.

use sandboxvm_protocol::agent::WIRE;
use sandboxvm_protocol::frame::{FrameKind, HEADER_LEN, MAX_STREAM_BODY};
use std::collections::VecDeque;

/// Maximum number of bytes that are kept of one process.
pub(crate) const SCROLLBACK: usize = 256 * 1024;

/// Consecutive output of one stream.
#[derive(Debug)]
struct Stretch {
    begins: u64,
    kind: FrameKind,
}

/// The kept output of one process.
#[derive(Debug)]
pub(crate) struct Scrollback {
    bytes: VecDeque<u8>,
    stretches: VecDeque<Stretch>,
    /// Position of the first byte that is kept, which is also the number of bytes before it.
    start: u64,
    limit: usize,
}

impl Scrollback {
    pub(crate) fn new() -> Self {
        Self { bytes: VecDeque::new(), stretches: VecDeque::new(), start: 0, limit: SCROLLBACK }
    }

    /// Returns the position of the first byte that is kept.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Returns the position behind the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Returns how many bytes are kept.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns approximately how much memory is used.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.len() + self.stretches.len() * size_of::<Stretch>()
    }

    /// Appends output, and drops the oldest output to make room for it.
    pub(crate) fn push(&mut self, kind: FrameKind, output: &[u8]) {
        if output.is_empty() {
            return;
        }
        let (before, kept) = output.split_at(output.len().saturating_sub(self.limit));
        if !before.is_empty() {
            self.drop_oldest(self.bytes.len());
            self.start += before.len() as u64;
        }
        // Drops bytes before the buffer grows, so that its memory never exceeds the limit.
        self.make_room(kept.len() + size_of::<Stretch>());
        let needed = self.bytes.len() + kept.len();
        if needed > self.bytes.capacity() {
            let capacity = needed.next_power_of_two().min(self.limit).max(needed);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        if self.stretches.back().is_none_or(|last| last.kind != kind) {
            self.stretches.push_back(Stretch { begins: self.end(), kind });
        }
        self.bytes.extend(kept);
        self.make_room(0);
    }

    /// Changes how much is kept, and releases memory.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.make_room(0);
        self.bytes.shrink_to(limit);
    }

    /// Releases unused memory, as no more output follows.
    pub(crate) fn finish(&mut self) {
        self.bytes.shrink_to_fit();
        self.stretches.shrink_to_fit();
    }

    fn make_room(&mut self, wanted: usize) {
        while !self.bytes.is_empty() && self.cost() + wanted > self.limit {
            self.drop_oldest(self.cost() + wanted - self.limit);
        }
    }

    fn drop_oldest(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count);
        self.start += count as u64;
        if self.bytes.is_empty() {
            self.stretches.clear();
        }
        while self.stretches.get(1).is_some_and(|next| next.begins <= self.start) {
            self.stretches.pop_front();
        }
    }

    /// Writes the output from position `at` to `until` into `buffer`, as frames, as much as fits,
    /// and moves `at` behind it. Returns the length of the frames. `at` must not be before the
    /// start.
    pub(crate) fn read(&self, at: &mut u64, until: u64, buffer: &mut [u8]) -> usize {
        let until = until.min(self.end());
        let mut filled = 0;
        let mut index = self.stretches.partition_point(|stretch| stretch.begins <= *at).saturating_sub(1);
        while *at < until
            && let Some(stretch) = self.stretches.get(index)
            && let Some((header, body)) =
                buffer.get_mut(filled..).and_then(|rest| rest.split_first_chunk_mut::<HEADER_LEN>())
            && !body.is_empty()
        {
            let end = self.stretches.get(index + 1).map_or(until, |next| next.begins.min(until));
            let left = usize::try_from(end - *at).unwrap_or(usize::MAX);
            let len = left.min(body.len()).min(MAX_STREAM_BODY);
            // This cannot fail, because the length is below the maximum of a stream frame.
            let Ok(bytes) = WIRE.header(stretch.kind, len) else { break };
            *header = bytes;
            self.copy(*at, &mut body[..len]);
            filled += HEADER_LEN + len;
            *at += len as u64;
            if *at == end {
                index += 1;
            }
        }
        filled
    }

    fn copy(&self, at: u64, into: &mut [u8]) {
        let at = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let (first, second) = self.bytes.as_slices();
        let from_first = first.get(at..).unwrap_or_default();
        let count = from_first.len().min(into.len());
        let (left, right) = into.split_at_mut(count);
        left.copy_from_slice(&from_first[..count]);
        let from_second = second.get(at.saturating_sub(first.len())..).unwrap_or_default();
        let count = right.len().min(from_second.len());
        right[..count].copy_from_slice(&from_second[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameKind, SCROLLBACK, Scrollback, WIRE};
    use sandboxvm_protocol::frame::FrameDecoder;

    /// Returns everything from `at` on, read in pieces of `piece` bytes.
    fn read(scrollback: &Scrollback, mut at: u64, piece: usize) -> Vec<(FrameKind, Vec<u8>)> {
        let mut decoder = FrameDecoder::new(WIRE, 0);
        let mut buffer = vec![0; piece];
        let mut read: Vec<(FrameKind, Vec<u8>)> = Vec::new();
        loop {
            let filled = scrollback.read(&mut at, u64::MAX, &mut buffer);
            if filled == 0 {
                assert_eq!(at, scrollback.end());
                return read;
            }
            decoder.push(&buffer[..filled]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                match read.last_mut() {
                    Some((kind, bytes)) if *kind == frame.kind => bytes.extend(frame.body),
                    _ => read.push((frame.kind, frame.body.to_vec())),
                }
            }
        }
    }

    #[test]
    fn streams_are_read_in_their_order_in_pieces_of_any_length() {
        let mut scrollback = Scrollback::new();
        let mut expected = Vec::new();
        for (index, text) in ["one", "two", "three"].into_iter().enumerate() {
            let kind = if index % 2 == 0 { FrameKind::Stdout } else { FrameKind::Stderr };
            scrollback.push(kind, text.as_bytes());
            expected.push((kind, text.as_bytes().to_vec()));
        }
        for piece in [9, 10, 12, 30, 1000] {
            assert_eq!(read(&scrollback, 0, piece), expected, "{piece}");
        }
        assert_eq!(read(&scrollback, 4, 50)[0], (FrameKind::Stderr, b"wo".to_vec()));
        assert!(read(&scrollback, 11, 50).is_empty());
        let mut at = 0;
        scrollback.read(&mut at, 2, &mut [0; 100]);
        assert_eq!(at, 2, "the read passed the requested end");
    }

    #[test]
    fn the_oldest_output_is_dropped_and_the_rest_is_exact() {
        let mut scrollback = Scrollback::new();
        let all: Vec<u8> = (0..3 * SCROLLBACK).map(|index| (index / 7) as u8).collect();
        for chunk in all.chunks(50_001) {
            scrollback.push(FrameKind::Stdout, chunk);
            assert!(scrollback.cost() <= SCROLLBACK && scrollback.bytes.capacity() <= SCROLLBACK);
        }
        assert_eq!(scrollback.end(), all.len() as u64);
        assert!(scrollback.len() > SCROLLBACK - 1000, "{}", scrollback.len());
        let kept = read(&scrollback, scrollback.start(), 65_536);
        assert_eq!(kept.len(), 1);
        assert!(kept[0].1 == all[all.len() - scrollback.len()..]);
        // More bytes in one call than are kept in total.
        scrollback.set_limit(1000);
        assert!(scrollback.cost() <= 1000 && scrollback.bytes.capacity() <= 2000);
        scrollback.push(FrameKind::Stderr, &all[..5000]);
        assert_eq!(scrollback.end(), all.len() as u64 + 5000);
        let kept = read(&scrollback, scrollback.start(), 100);
        assert!(kept[0].1 == all[5000 - scrollback.len()..5000] && scrollback.len() > 900);
    }

    #[test]
    fn changing_streams_with_every_byte_costs_no_more() {
        let mut scrollback = Scrollback::new();
        for index in 0..100_000u32 {
            let kind = if index % 2 == 0 { FrameKind::Stdout } else { FrameKind::Stderr };
            scrollback.push(kind, &[index as u8]);
            assert!(scrollback.cost() <= SCROLLBACK);
        }
        assert_eq!(scrollback.end(), 100_000);
        let kept = read(&scrollback, scrollback.start(), 4096);
        assert_eq!(kept.len(), scrollback.len());
        assert_eq!(kept.last().unwrap(), &(FrameKind::Stderr, vec![99_999u32 as u8]));
    }
}
