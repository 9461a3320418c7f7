//! The keys with which a user at a terminal detaches from a process that keeps running: Ctrl-P Ctrl-Q, as in docker.

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Finds the keys in typed input.
#[derive(Debug, Default)]
pub(crate) struct DetachKeys {
    /// Ctrl-P was typed. It is sent to the process unless Ctrl-Q follows.
    has_first: bool,
}

impl DetachKeys {
    /// Returns the part of `typed` that is for the process, and whether the keys were typed.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            if std::mem::take(&mut self.has_first) {
                if *byte == CTRL_Q {
                    return (passed, true);
                }
                passed.push(CTRL_P);
            }
            if *byte == CTRL_P {
                self.has_first = true;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use crate::process_io::detach_keys::DetachKeys;

    #[test]
    fn keys_are_found_across_chunks() {
        for (typed, passed, left) in [
            (&b"ls\x10\x11rest"[..], &b"ls"[..], true),
            (b"\x10\x10\x11", b"\x10", true),
            (b"\x10x\x11", b"\x10x\x11", false),
            (b"plain", b"plain", false),
            (b"\x11\x10", b"\x11", false),
        ] {
            for cut in 0..=typed.len() {
                let mut keys = DetachKeys::default();
                let (mut all, mut found) = keys.pass(&typed[..cut]);
                if !found {
                    let (more, later) = keys.pass(&typed[cut..]);
                    all.extend(more);
                    found = later;
                }
                assert_eq!((&all[..], found), (passed, left), "{typed:?} cut at {cut}");
            }
        }
    }
}
