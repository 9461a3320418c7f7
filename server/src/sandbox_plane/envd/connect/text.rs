//! Paths of a guest as JSON has them.

use sandboxvm_manager::FilePath;

/// A path as text, without what names no part of it; what is no UTF-8 is shown as such. `..` stays: what it leads to is for
/// the guest's links to say.
pub(crate) fn text(path: &FilePath) -> String {
    let text = String::from_utf8_lossy(path.as_bytes());
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let root = if text.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}
