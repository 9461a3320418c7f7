//! Argument vectors in the form that execve(2) needs, in two allocations.

use std::ffi::{CStr, c_char};

/// NUL-terminated strings, one after the other.
#[derive(Debug, Default)]
pub(super) struct CStrings {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl CStrings {
    /// Reserves room for `count` strings with `total` bytes.
    pub(super) fn with_capacity(count: usize, total: usize) -> Self {
        Self { bytes: Vec::with_capacity(total + count), starts: Vec::with_capacity(count) }
    }

    /// Appends the concatenation of `parts`, which contain no NUL.
    pub(super) fn push(&mut self, parts: &[&[u8]]) {
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
    }

    /// Returns the string at `index`.
    pub(super) fn get(&self, index: usize) -> Option<&CStr> {
        let start = *self.starts.get(index)?;
        CStr::from_bytes_until_nul(self.bytes.get(start..)?).ok()
    }

    /// Returns the number of strings.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// Returns pointers to all strings and a null pointer. They are valid until `self` is changed
    /// or dropped.
    pub(super) fn pointers(&self) -> Vec<*const c_char> {
        let strings = self.starts.iter().map(|start| self.bytes.as_ptr().wrapping_add(*start).cast());
        let mut pointers = Vec::with_capacity(self.starts.len() + 1);
        pointers.extend(strings);
        pointers.push(std::ptr::null());
        pointers
    }
}

#[cfg(test)]
mod tests {
    use super::CStrings;
    use std::ffi::CStr;

    #[test]
    fn pointers_lead_to_the_strings_and_end_with_null() {
        let mut strings = CStrings::with_capacity(2, 5);
        strings.push(&[b"/bin", b"/", b"sh"]);
        strings.push(&[]);
        let pointers = strings.pointers();
        // SAFETY: the pointers lead into `strings`, which is alive and unchanged, at NUL-terminated strings.
        let first = unsafe { CStr::from_ptr(pointers[0]) };
        assert_eq!(first, c"/bin/sh");
        assert_eq!(strings.get(1), Some(c""));
        assert!(pointers[2].is_null());
    }
}
