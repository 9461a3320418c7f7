//! Carries bytes between the guest and an upstream, both ways, without a look at them. Bytes are read from and written to
//! smoltcp's buffers directly.

use super::account::Account;
use crate::{rates::Way, stack::guest_stream::GuestStream};
use sandboxvm_egress_policy::inspect::{Progress, look};
use std::{io, time::Duration};
use tokio::net::TcpStream;

/// How long a connection that both sides have closed may take until the guest has confirmed it.
const CLOSING: Duration = Duration::from_secs(30);

/// The two ends of a connection, and its account.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'e> {
    /// The guest's.
    pub guest: &'e GuestStream,
    /// The other one.
    pub upstream: &'e TcpStream,
    /// What passes is counted here.
    pub account: &'e Account,
}

impl Ends<'_> {
    /// Carries bytes until both sides have closed.
    ///
    /// # Errors
    /// When one of them fails or is reset.
    pub async fn splice(self) -> io::Result<()> {
        let mut is_first = true;
        let out = self.out(|bytes| {
            // For the record: what opens in several segments stays without a name.
            if std::mem::take(&mut is_first)
                && let Progress::Done(opening) = look(bytes)
            {
                self.account.show(opening.shown);
            }
        });
        tokio::try_join!(out, self.back(|_| {})).map(drop)
    }

    /// Carries the guest's bytes until it closes its side, and closes that of the upstream. `observe` sees each of them.
    ///
    /// # Errors
    /// When one of them fails or is reset.
    pub async fn out(self, mut observe: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            self.guest.readable().await;
            self.account.wait(Way::Out).await;
            let taken = self.guest.take(|bytes| {
                let count = self.upstream.try_write(bytes)?;
                observe(&bytes[..count]);
                Ok(count)
            });
            match taken.await {
                Ok(0) => return self.finish().await,
                Ok(count) => self.account.passed(Way::Out, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.upstream.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Carries the upstream's bytes until it closes its side, and closes that of the guest. `observe` sees each of them.
    ///
    /// # Errors
    /// When one of them fails or is reset.
    pub async fn back(self, mut observe: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            // The upstream first: while it is silent, nothing is waited for at the guest's end.
            self.upstream.readable().await?;
            self.account.wait(Way::In).await;
            self.guest.writable().await;
            let given = self.guest.give(|room| {
                let count = self.upstream.try_read(room)?;
                observe(&room[..count]);
                Ok(count)
            });
            match given.await {
                Ok(0) => {
                    self.guest.close().await;
                    return Ok(());
                }
                Ok(count) => self.account.passed(Way::In, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends bytes that were the guest's to the upstream.
    ///
    /// # Errors
    /// When the upstream fails.
    pub async fn send(self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.account.wait(Way::Out).await;
            match self.upstream.try_write(bytes) {
                Ok(count) => {
                    self.account.passed(Way::Out, count);
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.upstream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Closes the guest's side of the upstream.
    ///
    /// # Errors
    /// When the upstream fails.
    pub async fn finish(self) -> io::Result<()> {
        rustix::net::shutdown(self.upstream, rustix::net::Shutdown::Write)?;
        Ok(())
    }

    /// Waits until the guest has confirmed the end of a connection that both sides have closed.
    pub async fn closed(self) {
        let _ = tokio::time::timeout(CLOSING, self.guest.closed()).await;
    }
}

/// Makes the upstream see a reset instead of an end of the data.
pub fn reset(upstream: &TcpStream) {
    // Without it the upstream sees a regular end, which is all that happens if this fails.
    let _ = rustix::net::sockopt::set_socket_linger(upstream, Some(Duration::ZERO));
}
