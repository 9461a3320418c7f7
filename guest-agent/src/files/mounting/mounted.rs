//! Mounts: whether there is one, and which are of file systems whose files other machines can change
//! without notice to this kernel.

use crate::files::failure::{Trouble, failure, refused};
use rustix::fs::{Mode, OFlags, open, statfs};
use rustix::io::Errno;
use sandboxvm_protocol::agent::files::FileErrorKind;

/// The types of network file systems in statfs(2): NFS, CIFS, SMB, SMB 2, FUSE (virtiofs too), 9P,
/// Ceph, AFS. From `linux/magic.h`.
const NETWORK: [u32; 8] =
    [0x6969, 0xff53_4d42, 0x517b, 0xfe53_4d42, 0x6573_5546, 0x0102_1997, 0x00c3_6400, 0x5346_414f];

/// Maximum size of the list of mounts that is searched, in bytes.
const MAX_MOUNTS: u64 = 4 << 20;

/// Returns true if a mount of this process's namespace has this text in its line of the list of mounts.
pub(super) fn is_mounted(text: &str) -> Result<bool, Errno> {
    use std::io::{BufRead, BufReader, Read};
    let mounts = open("/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mounts = BufReader::new(std::fs::File::from(mounts).take(MAX_MOUNTS));
    for line in mounts.split(b'\n') {
        let line = line.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if line.windows(text.len()).any(|part| part == text.as_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_network(kind: u32) -> bool {
    NETWORK.contains(&kind)
}

/// Refuses a path on a network file system.
pub(in crate::files) fn refuse_network(path: &[u8]) -> Result<(), Trouble> {
    let about = statfs(path).map_err(|errno| refused("watch it", path, errno))?;
    // The kernel's types have 32 bits, but the field may be wider.
    #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a bit pattern of 32 bits")]
    match is_network(about.f_type as u32) {
        false => Ok(()),
        true => {
            let message = "cannot watch it: it is on a network file system".to_owned();
            Err(failure(FileErrorKind::NetworkMount, Some(path), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_refused_and_others_are_not() {
        // NFS, FUSE, CIFS; ext4, tmpfs, overlayfs, proc.
        assert!([0x6969, 0x6573_5546, 0xff53_4d42].into_iter().all(is_network));
        assert!(![0xef53, 0x0102_1994, 0x794c_7630, 0x9fa0].into_iter().any(is_network));
        assert!(refuse_network(b"/proc").is_ok());
        assert!(refuse_network(b"/no/such/path").is_err());
    }
}
