//! Serves a connection: some threads, each of which reads one request, answers it, and reads the next.

use crate::{
    protocol::{HEADER, MAX_MESSAGE},
    server::Server,
};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    thread,
};

/// Number of requests that are carried out at the same time.
const THREADS: usize = 4;
/// Size in bytes of the stack of a thread.
const STACK: usize = 256 << 10;

/// Why a connection is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Stream(#[from] io::Error),
    /// A request states a length that none has. What follows has no known beginning.
    #[error("a request states a length of {0} bytes")]
    Length(u32),
    /// There is no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Serves requests until the other side ends the connection.
///
/// # Errors
/// Every [`ServeError`].
pub fn serve(server: &Server, stream: &UnixStream) -> Result<(), ServeError> {
    let (input, output) = (Mutex::new(stream), Mutex::new(stream));
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let work = || {
                let worked = work(server, &input, &output);
                // Wakes the other threads, which may be blocked in a read.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                worked
            };
            let thread = thread::Builder::new().name("share".to_owned()).stack_size(STACK).spawn_scoped(scope, work);
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    return Err(ServeError::Thread(error));
                }
            }
        }
        // All are waited for. A thread that finds the stream shut down by another one has no error.
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).collect();
        ended.into_iter().collect()
    })
}

fn work(server: &Server, input: &Mutex<&UnixStream>, output: &Mutex<&UnixStream>) -> Result<(), ServeError> {
    let mut request = Vec::new();
    loop {
        {
            let stream = input.lock().unwrap_or_else(PoisonError::into_inner);
            if !read_request(*stream, &mut request)? {
                return Ok(());
            }
        }
        if let Some(answer) = server.answer(&request) {
            // Held until the whole answer is written.
            let mut stream = output.lock().unwrap_or_else(PoisonError::into_inner);
            match stream.write_all(&answer) {
                // The machine was reset, or has ended: no kernel waits for the answer.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Ok(());
                }
                written => written?,
            }
        }
    }
}

/// Reads one request. Returns false at the end of the stream.
fn read_request(mut stream: impl Read, request: &mut Vec<u8>) -> Result<bool, ServeError> {
    request.clear();
    request.resize(HEADER, 0);
    match stream.read(request)? {
        0 => return Ok(false),
        count => stream.read_exact(&mut request[count..])?,
    }
    let length = request.first_chunk().map_or(0, |length| u32::from_le_bytes(*length));
    let total = usize::try_from(length).unwrap_or(usize::MAX);
    if !(HEADER..=MAX_MESSAGE).contains(&total) {
        return Err(ServeError::Length(length));
    }
    request.resize(total, 0);
    stream.read_exact(&mut request[HEADER..])?;
    Ok(true)
}
