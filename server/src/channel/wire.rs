//! Frames on the socket between front and launcher: a header, a JSON head, and a tail of bytes. A frame from the launcher may
//! bring descriptors. Either side holds at most one frame and one read.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, send, sendmsg,
};
use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};
use tokio::{io::Interest, net::UnixStream};

/// Length of head and tail, ID, kind, number of descriptors.
const HEADER: usize = 4 + 4 + 8 + 1 + 1;
const READ: usize = 64 << 10;
/// Maximum number of descriptors of one frame: the listeners.
pub(crate) const MAX_DESCRIPTORS: usize = 3;

/// Why the exchange ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the other process closed the connection")]
    Closed,
    #[error("the other process broke the protocol: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Maximum lengths of the frames that one side accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    pub(crate) head: usize,
    pub(crate) tail: usize,
    pub(crate) descriptors: bool,
}

impl Caps {
    /// Of the launcher: a request is one body of at most 1 MiB, with other escapes, or one message for an agent.
    pub(crate) const REQUESTS: Self = Self { head: 4 << 20, tail: 3 << 20, descriptors: false };
    /// Of the front: lists have a page of 100 sandboxes, logs 16 MiB.
    pub(crate) const ANSWERS: Self = Self { head: 64 << 20, tail: 64 << 20, descriptors: true };
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request = 0,
    Answer = 1,
    Failure = 2,
    /// The server ends: the front closes its listeners, finishes its requests and ends.
    End = 3,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Frame {
    pub(crate) fn new(id: u64, kind: Kind, head: Vec<u8>) -> Self {
        Self { id, kind, head, tail: Vec::new(), descriptors: Vec::new() }
    }

    fn header(&self) -> io::Result<Vec<u8>> {
        let length = |part: &[u8]| u32::try_from(part.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let mut bytes = Vec::with_capacity(HEADER + self.head.len());
        bytes.extend(length(&self.head)?.to_le_bytes());
        bytes.extend(length(&self.tail)?.to_le_bytes());
        bytes.extend(self.id.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.push(u8::try_from(self.descriptors.len()).unwrap_or(u8::MAX));
        Ok(bytes)
    }
}

/// Sends a frame as a whole. Not cancel safe.
pub(crate) async fn write(socket: &UnixStream, frame: &Frame) -> io::Result<()> {
    let mut bytes = frame.header()?;
    bytes.extend(&frame.head);
    let mut sent = 0;
    if !frame.descriptors.is_empty() {
        let descriptors: Vec<BorrowedFd<'_>> = frame.descriptors.iter().map(AsFd::as_fd).collect();
        sent = socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                    return Err(io::Error::from(io::ErrorKind::InvalidInput));
                }
                // A stream delivers descriptors with the first byte that they were sent with.
                Ok(sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
            })
            .await?;
    }
    for part in [&bytes[sent..], &frame.tail[..]] {
        let mut left = part;
        while !left.is_empty() {
            let count = socket.async_io(Interest::WRITABLE, || Ok(send(socket, left, SendFlags::NOSIGNAL)?)).await?;
            left = &left[count..];
        }
    }
    Ok(())
}

/// Reads frames of the other process, which may send any bytes.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: Arc<UnixStream>,
    caps: Caps,
    bytes: Vec<u8>,
    read: Box<[u8]>,
    descriptors: VecDeque<OwnedFd>,
}

impl Reader {
    pub(crate) fn new(socket: Arc<UnixStream>, caps: Caps) -> Self {
        let read = vec![0; READ].into_boxed_slice();
        Self { socket, caps, bytes: Vec::new(), read, descriptors: VecDeque::new() }
    }

    /// Returns the next frame. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.decoded()? {
                return Ok(frame);
            }
            let count = if self.caps.descriptors { self.receive().await? } else { self.take().await? };
            match count {
                0 if self.bytes.is_empty() => return Err(WireError::Closed),
                0 => return Err(WireError::Malformed("a frame is cut short")),
                count => self.bytes.extend(&self.read[..count]),
            }
        }
    }

    /// Without room for descriptors: the kernel closes those that the other process sends.
    async fn take(&mut self) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut self.read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let Self { socket, read, descriptors, .. } = self;
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&**socket, &mut [IoSliceMut::new(read)], &mut ancillary, flags)?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    descriptors.extend(received);
                }
            }
            Ok(received.bytes)
        };
        socket.async_io(Interest::READABLE, receive).await
    }

    fn decoded(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h, id @ .., kind, descriptors] = *header;
        let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
        let (head, tail) = (length([a, b, c, d]), length([e, f, g, h]));
        if head > self.caps.head || tail > self.caps.tail {
            return Err(WireError::Malformed("a frame is too long"));
        }
        let descriptors = usize::from(descriptors);
        if descriptors > 0 && !self.caps.descriptors {
            return Err(WireError::Malformed("descriptors are not accepted"));
        }
        let kind = match kind {
            0 => Kind::Request,
            1 => Kind::Answer,
            2 => Kind::Failure,
            3 => Kind::End,
            _ => return Err(WireError::Malformed("unknown kind of frame")),
        };
        if self.bytes.len() < HEADER + head + tail {
            return Ok(None);
        }
        if descriptors > self.descriptors.len() {
            return Err(WireError::Malformed("a frame misses its descriptors"));
        }
        let rest = self.bytes.split_off(HEADER + head + tail);
        let mut frame = std::mem::replace(&mut self.bytes, rest);
        let tail = frame.split_off(HEADER + head);
        frame.drain(..HEADER);
        let descriptors = self.descriptors.drain(..descriptors).collect();
        Ok(Some(Frame { id: u64::from_le_bytes(id), kind, head: frame, tail, descriptors }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Read as _, os::fd::AsRawFd};

    fn pair() -> (Arc<UnixStream>, Arc<UnixStream>) {
        let (a, b) = UnixStream::pair().unwrap();
        (Arc::new(a), Arc::new(b))
    }

    #[tokio::test]
    async fn frames_bring_their_descriptors_in_order() {
        let (ours, theirs) = pair();
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            OwnedFd::from(file)
        };
        let frames: Vec<Frame> = (0..3)
            .map(|id| Frame {
                tail: vec![7; 300_000],
                descriptors: vec![file(&id.to_string())],
                ..Frame::new(id, Kind::Answer, vec![b'x'; 1000])
            })
            .collect();
        let sent = tokio::spawn(async move {
            for frame in &frames {
                write(&ours, frame).await.unwrap();
            }
        });
        let mut reader = Reader::new(theirs, Caps::ANSWERS);
        for id in 0..3 {
            let mut frame = reader.next().await.unwrap();
            assert_eq!((frame.id, frame.head.len(), frame.tail.len()), (id, 1000, 300_000));
            let mut text = String::new();
            File::from(frame.descriptors.pop().unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, id.to_string());
        }
        sent.await.unwrap();
        assert!(matches!(reader.next().await, Err(WireError::Closed)));
    }

    #[tokio::test]
    async fn frames_that_are_too_long_are_rejected_before_memory_is_taken_for_them() {
        for (head, tail) in [(u32::MAX, 0), (0, u32::MAX), (5 << 20, 0), (0, 4 << 20)] {
            let (ours, theirs) = pair();
            let mut bytes = [head.to_le_bytes(), tail.to_le_bytes()].concat();
            bytes.extend([0; 10]);
            ours.writable().await.unwrap();
            ours.try_write(&bytes).unwrap();
            let mut reader = Reader::new(theirs, Caps::REQUESTS);
            assert!(matches!(reader.next().await, Err(WireError::Malformed(_))));
            assert!(reader.bytes.capacity() < READ);
        }
    }

    #[tokio::test]
    async fn descriptors_for_the_launcher_are_closed_by_the_kernel() {
        let (ours, theirs) = pair();
        let (read, write_end) = rustix::pipe::pipe().unwrap();
        let frame = Frame { descriptors: vec![write_end], ..Frame::new(1, Kind::Request, b"{}".to_vec()) };
        write(&ours, &frame).await.unwrap();
        drop(frame);
        let mut reader = Reader::new(theirs, Caps::REQUESTS);
        assert!(matches!(reader.next().await, Err(WireError::Malformed(_))));
        // No copy of the other end is left.
        assert_eq!(rustix::io::read(&read, &mut [0_u8; 1]).unwrap(), 0, "{}", read.as_raw_fd());
    }
}
