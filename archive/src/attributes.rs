//! The extended attributes (xattr(7)) of files that are packed: which of them an archive has. It
//! reads open files only, and never changes them.

use rustix::{
    fd::BorrowedFd,
    fs::{fgetxattr, flistxattr},
    io::Errno,
};

/// Prefix of the attributes by which the kernel's overlay keeps its records.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Why the attributes of a file are not packed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(crate) enum AttributesError {
    /// They cannot be read.
    #[error("cannot read the attributes: {0}")]
    Kernel(Errno),
    /// The overlay states something that a layer cannot.
    #[error("{0}")]
    NotInLayers(&'static str),
}

/// Returns the attributes that any user may set. Returns none if the file system has none, or if
/// they change meanwhile.
pub(crate) fn of_copy(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = [0; 4096];
    // More names than fit are rare, so such a file is packed without them.
    let Ok(len) = flistxattr(file, &mut list[..]) else { return Vec::new() };
    let names = list[..len.min(list.len())].split(|byte| *byte == 0);
    let mut attributes = Vec::new();
    for name in names.filter(|name| name.starts_with(b"user.")) {
        let mut value = vec![0; 16 * 1024];
        if let Ok(len) = fgetxattr(file, name, &mut value[..]) {
            value.truncate(len);
            attributes.push((name.to_vec(), value));
        }
    }
    attributes
}

/// The extended attributes of a file in the upper directory.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// Those that a layer has too, sorted by name.
    pub(crate) kept: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the directory hides what is below it.
    pub(crate) is_opaque: bool,
}

/// Reads the attributes of an open file for a layer.
pub(crate) fn of_layer(file: BorrowedFd<'_>) -> Result<Attributes, AttributesError> {
    let refuse = |problem| Err(AttributesError::NotInLayers(problem));
    let names = match read(|buffer| flistxattr(file, buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Attributes::default()),
        Err(errno) => return Err(AttributesError::Kernel(errno)),
    };
    let mut found = Attributes::default();
    for name in names.split(|byte| *byte == 0) {
        let of_overlay = name.strip_prefix(OVERLAY);
        match of_overlay {
            Some(b"redirect") => return refuse("the overlay took its content from another path (redirect)"),
            Some(b"metacopy") => return refuse("the overlay has only its attributes (metacopy)"),
            Some(b"whiteout") => return refuse("the overlay marks a removal by an attribute (whiteout)"),
            Some(b"opaque") => {}
            None if is_kept(name) => {}
            _ => continue,
        }
        let value = match read(|buffer| fgetxattr(file, name, buffer)) {
            Ok(value) => value,
            // It was removed meanwhile.
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(AttributesError::Kernel(errno)),
        };
        match (of_overlay, &value[..]) {
            (None, _) => found.kept.push((name.to_vec(), value)),
            (Some(_), b"y") => found.is_opaque = true,
            (Some(_), _) => return refuse("the overlay marks removals by attributes (opaque is not y)"),
        }
    }
    found.kept.sort_unstable();
    Ok(found)
}

fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// Reads a value of at most 64 KiB, the largest that Linux has.
fn read(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    // Mostly enough, and larger ones cost page faults.
    let mut small = [0; 1024];
    match call(&mut small) {
        Ok(len) => Ok(small[..len.min(small.len())].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; 64 * 1024];
            let len = call(&mut large)?;
            large.truncate(len);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}
