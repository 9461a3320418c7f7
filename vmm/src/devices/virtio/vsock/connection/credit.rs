//! Flow control of one connection in both directions (virtio 1.2, 5.10.6.3). All counters are modulo 2^32.

use crate::devices::virtio::vsock::packet::CreditFields;

/// The peer broke the rules of flow control; its connection is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CreditError {
    #[error("the guest says that it consumed bytes it was never sent")]
    ConsumedTooMuch,
    #[error("the guest sent more than the buffer that was announced to it can hold")]
    Overrun,
}

/// How much may be sent to the guest: its receive buffer as it last described it.
#[derive(Debug, Default)]
pub(super) struct SendCredit {
    /// `tx_cnt`: bytes sent.
    sent: u32,
    /// `peer_fwd_cnt`: bytes the guest's program has taken.
    consumed: u32,
    /// `peer_buf_alloc`.
    buffer_size: u32,
}

impl SendCredit {
    /// Takes in what a packet from the guest says.
    ///
    /// A guest kernel with several CPUs may queue two packets in the other order than it filled them in, so a count
    /// that steps back is old news and ignored; one beyond what was ever sent is a lie.
    pub(super) fn update(&mut self, fields: CreditFields) -> Result<(), CreditError> {
        self.buffer_size = fields.buffer_size;
        let progress = fields.forwarded.wrapping_sub(self.consumed);
        if progress <= self.in_flight() {
            self.consumed = fields.forwarded;
        } else if progress <= i32::MAX.unsigned_abs() {
            return Err(CreditError::ConsumedTooMuch);
        }
        Ok(())
    }

    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.consumed)
    }

    /// Bytes that may be sent now; zero also when the guest shrank its buffer below what is in flight.
    pub(super) fn available(&self) -> u32 {
        self.buffer_size.saturating_sub(self.in_flight())
    }

    /// Accounts for `bytes`, at most [`SendCredit::available`], sent.
    pub(super) fn spend(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// A mark that changes whenever the guest takes bytes.
    pub(super) fn progress(&self) -> u32 {
        self.consumed
    }
}

/// The buffer the guest may fill: what it sent and the client has not taken yet.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// `buf_alloc` as every packet states it.
    size: u32,
    received: u32,
    /// `fwd_cnt`.
    forwarded: u32,
    /// `fwd_cnt` in the last packet that went to the guest.
    announced: u32,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> Self {
        Self { size, received: 0, forwarded: 0, announced: 0 }
    }

    /// Accounts for `bytes` that came from the guest.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), CreditError> {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > self.size - held {
            return Err(CreditError::Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Accounts for `bytes`, received before, that left the buffer.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should receive its credit although nothing else is to be sent.
    ///
    /// Each packet costs the guest thousands of kernel instructions, so only when it believes that at most a quarter
    /// is left and would learn of at least another quarter. While nothing waits in the buffer all that was received has
    /// been forwarded, so the second condition follows from the first and a guest out of credit always hears.
    pub(super) fn update_due(&self) -> bool {
        let believed_used = self.received.wrapping_sub(self.announced);
        let news = self.forwarded.wrapping_sub(self.announced);
        self.size.saturating_sub(believed_used) <= self.size / 4 && news >= self.size / 4
    }

    /// The fields for a packet that goes out now.
    pub(super) fn announce(&mut self) -> CreditFields {
        self.announced = self.forwarded;
        CreditFields { buffer_size: self.size, forwarded: self.forwarded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(buffer_size: u32, forwarded: u32) -> CreditFields {
        CreditFields { buffer_size, forwarded }
    }

    #[test]
    fn credit_is_buffer_less_in_flight() {
        let mut credit = SendCredit::default();
        assert_eq!(credit.available(), 0, "nothing may be sent before the guest has said anything");
        credit.update(told(100, 0)).unwrap();
        credit.spend(60);
        assert_eq!(credit.available(), 40);
        credit.update(told(100, 50)).unwrap();
        assert_eq!(credit.available(), 90);
        credit.update(told(5, 50)).unwrap();
        assert_eq!(credit.available(), 0, "a buffer shrunk below what is in flight gives none");
    }

    #[test]
    fn consuming_what_was_never_sent_is_an_error_and_old_news_is_not() {
        let mut credit = SendCredit::default();
        credit.update(told(100, 0)).unwrap();
        credit.spend(10);
        assert_eq!(credit.update(told(100, 11)), Err(CreditError::ConsumedTooMuch));
        credit.update(told(100, 10)).unwrap();
        credit.update(told(100, 4)).unwrap();
        assert_eq!(credit.available(), 100, "an older count takes no credit back");
    }

    #[test]
    fn send_credit_survives_the_counters_wrapping() {
        let mut credit = SendCredit { sent: u32::MAX - 4, consumed: u32::MAX - 4, buffer_size: 0 };
        credit.update(told(20, u32::MAX - 4)).unwrap();
        credit.spend(20);
        assert_eq!(credit.available(), 0);
        credit.update(told(20, 15)).unwrap();
        assert_eq!(credit.available(), 20);
    }

    #[test]
    fn overrun_is_refused_to_the_byte() {
        let mut window = ReceiveWindow::new(100);
        window.receive(100).unwrap();
        assert_eq!(window.receive(1), Err(CreditError::Overrun));
        window.forward(1);
        window.receive(1).unwrap();
        assert_eq!(window.receive(1), Err(CreditError::Overrun));
    }

    proptest! {
        /// However client and guest interleave, a guest that has used up the credit it knows of hears of more once the
        /// client has taken everything.
        #[test]
        fn a_guest_out_of_credit_is_always_told(size in 4u32..4096, steps in proptest::collection::vec((0u32..512, 0u32..512), 1..200)) {
            let mut window = ReceiveWindow::new(size);
            let mut guest_knows = 0;
            for (send, take) in steps {
                let credit = size - window.received.wrapping_sub(guest_knows);
                window.receive(send.min(credit)).unwrap();
                window.forward(take.min(window.received - window.forwarded));
                if window.update_due() {
                    guest_knows = window.announce().forwarded;
                }
            }
            window.forward(window.received - window.forwarded);
            let credit = size - window.received.wrapping_sub(guest_knows);
            prop_assert!(credit > 0 || window.update_due());
        }
    }
}
