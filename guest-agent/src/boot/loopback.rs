//! Brings `lo` up. The kernel then gives it 127.0.0.1 and ::1.

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::os::fd::OwnedFd;

const SIOCSIFFLAGS: Opcode = 0x8914;

/// `struct ifreq` with the member that SIOCSIFFLAGS reads (netdevice(7)).
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    rest_of_union: [u8; 22],
}

/// Sets IFF_UP on `lo`. Returns the socket that it used, which other interfaces can be asked about with.
pub(super) fn up() -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    let request = InterfaceFlags { name, flags, rest_of_union: [0; 22] };
    // SAFETY: SIOCSIFFLAGS reads one `struct ifreq` (40 bytes), which is what `InterfaceFlags` lays out.
    let request = unsafe { Setter::<SIOCSIFFLAGS, InterfaceFlags>::new(request) };
    // SAFETY: the socket is an IPv4 socket, for which the opcode is defined; it writes nothing back.
    unsafe { ioctl(&socket, request) }?;
    Ok(socket)
}

const _: () = assert!(size_of::<InterfaceFlags>() == 40);
