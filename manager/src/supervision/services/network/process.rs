//! One process of a network: the egress process or its dialer. It also ends by itself when its socket is
//! closed, as when the supervisor is killed.

use super::packets::{self, Packets};
use crate::{supervision::services::child::Child, vmm::group::Group};
use std::{ffi::CStr, io, path::Path};

/// A process, and the socket that is its standard input.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) packets: Packets,
    pub(super) child: Child,
}

impl Process {
    pub(super) fn spawn(
        name: &'static str,
        program: &Path,
        argument: Option<&CStr>,
        group: Option<&Group>,
    ) -> io::Result<Self> {
        let (ours, theirs) = packets::pair()?;
        let packets = Packets::new(ours)?;
        Ok(Self { packets, child: Child::spawn(name, program, argument, theirs, None, group)? })
    }
}
