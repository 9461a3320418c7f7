//! Receiving what the manager sends over the launch channel (fd 0): one frame with a [`LaunchConfig`] and all its open
//! files. The bytes come from the manager, which is trusted; the checks catch mistakes before KVM does.
//!
//! A server that has run since before an upgrade sends a frame of version 1 to the VMM of a newer bundle. It is read
//! here and is not seen anywhere else.

use super::descriptors::{self, ReceivedFds};
use rustix::io::Errno;
use sandboxvm_protocol::{
    frame::{FrameDecoder, FrameError},
    vmm::{LaunchConfig, MAX_MESSAGE, SINCE_DEVICES, WIRE, v1},
};
use std::os::unix::net::UnixStream;

/// Why the launch frame could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// recvmsg failed.
    #[error(
        "cannot read the launch channel on standard input: {0}; sandboxvm-vmm is started by sandboxvm, not by hand"
    )]
    Receive(#[from] Errno),
    /// The channel closed first.
    #[error("the launch channel closed before a whole launch frame arrived")]
    Closed,
    /// Not a launch frame.
    #[error("launch frame: {0}")]
    Frame(#[from] FrameError),
}

/// What the manager sent.
#[derive(Debug)]
pub struct Launch {
    /// The machine.
    pub config: LaunchConfig,
    /// Its open files.
    pub fds: ReceivedFds,
    /// The version of the wire that the manager speaks.
    pub version: u8,
}

/// Blocks until the launch frame is whole.
///
/// # Errors
/// See [`LaunchError`].
pub fn receive(channel: &UnixStream) -> Result<Launch, LaunchError> {
    let mut fds = ReceivedFds::default();
    let mut decoder = FrameDecoder::new(WIRE, MAX_MESSAGE);
    loop {
        if let Some(frame) = decoder.next_frame()? {
            let config = match frame.version {
                version if version < SINCE_DEVICES => WIRE.decode_message::<v1::LaunchConfig>(frame.body)?.into(),
                _ => WIRE.decode_message(frame.body)?,
            };
            return Ok(Launch { config, fds, version: frame.version });
        }
        let mut bytes = [0; 4096];
        match descriptors::receive(channel, &mut bytes, &mut fds)? {
            0 => return Err(LaunchError::Closed),
            n => decoder.push(&bytes[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_protocol::{
        frame::Message,
        ids::{GuestCid, SandboxId},
        machine::{MIB, MemorySize, VcpuCount},
        vmm::{ConsoleConfig, DeviceConfig, DiskConfig, FdIndex, MachineSource, VsockConfig},
    };
    use std::io::Write;

    fn config() -> v1::LaunchConfig {
        v1::LaunchConfig {
            sandbox: SandboxId::from_entropy([7; 10]),
            vcpus: VcpuCount::ONE,
            memory: MemorySize::try_from(64 * MIB).unwrap(),
            source: MachineSource::Boot { kernel: FdIndex(0), cmdline_extra: String::new() },
            disks: vec![DiskConfig::ReadOnly { image: FdIndex(1) }, DiskConfig::ReadOnly { image: FdIndex(2) }],
            vsock: VsockConfig { listener: FdIndex(3), cid: GuestCid::DEFAULT },
            console: ConsoleConfig { log: FdIndex(4), limit: 0 },
            control: FdIndex(5),
            status: FdIndex(6),
            lock: FdIndex(7),
            start: true,
            tie_to_launcher: true,
        }
    }

    fn frame(message: &impl Message) -> Vec<u8> {
        let mut frame = Vec::new();
        WIRE.append_message(&mut frame, message, MAX_MESSAGE).unwrap();
        frame
    }

    fn received(bytes: &[u8]) -> Result<Launch, LaunchError> {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        receive(&ours)
    }

    /// A server that has run since before an upgrade.
    #[test]
    fn frame_of_version_1_is_a_machine_with_the_devices_of_its_time() {
        let launch = received(&frame(&config())).unwrap();
        assert_eq!(launch.version, 1);
        let v1::LaunchConfig { disks, vsock, .. } = config();
        let disks = disks.into_iter().map(DeviceConfig::Block);
        let others = [DeviceConfig::Rng, DeviceConfig::Vsock(vsock), DeviceConfig::Balloon];
        assert_eq!(launch.config.devices, disks.chain(others).collect::<Vec<_>>());
        assert_eq!((launch.config.lock, launch.config.start), (FdIndex(7), true));
    }

    #[test]
    fn frame_of_version_2_is_what_it_says() {
        let expected = LaunchConfig { devices: vec![DeviceConfig::Rng], ..config().into() };
        let launch = received(&frame(&expected)).unwrap();
        assert_eq!((launch.version, launch.config), (2, expected));
    }

    #[test]
    fn frames_that_are_not_a_machine_are_refused() {
        let good = frame(&LaunchConfig { devices: vec![DeviceConfig::Balloon], ..config().into() });
        for version in [0, WIRE.version + 1, u8::MAX] {
            let mut forged = good.clone();
            forged[2] = version;
            let refused = received(&forged).unwrap_err();
            assert!(matches!(refused, LaunchError::Frame(FrameError::Version { .. })), "{refused}");
        }
        // The body of one version in a frame of the other.
        for (mut forged, version) in [(good.clone(), 1), (frame(&config()), 2)] {
            forged[2] = version;
            assert!(matches!(received(&forged).unwrap_err(), LaunchError::Frame(_)), "{version}");
        }
        for end in 0..good.len() {
            assert!(matches!(received(&good[..end]).unwrap_err(), LaunchError::Closed), "{end} bytes");
        }
        // Any byte changed is another machine, or refused.
        for at in 0..good.len() {
            let mut forged = good.clone();
            forged[at] ^= 0xff;
            let _ = received(&forged);
        }
    }
}
