//! What a descriptor in the epoll set belongs to, packed into the 64 bits that epoll carries for it.

use rustix::event::epoll::EventData;
use std::os::fd::BorrowedFd;

/// What a descriptor in the epoll set belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    News,
    Listener,
    Connection(u32),
    Queue { device: u16, queue: u16 },
    Device(u16),
    Writer,
}

impl Source {
    pub(super) fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::News => 0,
            Self::Listener => 1 << 32,
            Self::Connection(id) => 2 << 32 | u64::from(id),
            Self::Queue { device, queue } => 3 << 32 | u64::from(device) << 16 | u64::from(queue),
            Self::Device(device) => 4 << 32 | u64::from(device),
            Self::Writer => 5 << 32,
        })
    }

    pub(super) fn from_data(data: EventData) -> Option<Self> {
        let [b0, b1, b2, b3, kind, ..] = data.u64().to_le_bytes();
        let low = u16::from_le_bytes([b0, b1]);
        let high = u16::from_le_bytes([b2, b3]);
        Some(match kind {
            0 => Self::News,
            1 => Self::Listener,
            2 => Self::Connection(u32::from(high) << 16 | u32::from(low)),
            3 => Self::Queue { device: high, queue: low },
            4 => Self::Device(low),
            5 => Self::Writer,
            _ => return None,
        })
    }
}

/// vmm-sys-util's EventFd does not implement AsFd.
pub(super) trait AsFdOfEventFd {
    fn as_fd_of_eventfd(&self) -> BorrowedFd<'_>;
}

impl AsFdOfEventFd for vmm_sys_util::eventfd::EventFd {
    fn as_fd_of_eventfd(&self) -> BorrowedFd<'_> {
        // SAFETY: the EventFd owns an open descriptor for at least as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self)) }
    }
}
