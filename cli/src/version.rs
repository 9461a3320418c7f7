//! What `-V` prints: the versions that a report of a bug needs. Reads the guest kernel of the bundle, if there is one.

use crate::environment;
use sandboxvm_images::{kernel, regular};
use sandboxvm_protocol::{agent, frame::Wire, vmm};

/// The commit that was built. `scripts/quickstart` sets the variable; other builds do not, since each commit would then
/// compile this crate again.
const COMMIT: Option<&str> = option_env!("SANDBOXVM_COMMIT");

/// Returns the version of this program, and of what it works with.
pub(crate) fn text() -> String {
    let kernel = regular::open(&environment::bundle(None, None).kernel).ok();
    let kernel = kernel.and_then(|file| kernel::version(&file).ok().flatten());
    format!(
        "sandboxvm {}\ncommit: {}\nguest kernel: {}\nagent protocol: {}\nVMM protocol: {}\n",
        env!("CARGO_PKG_VERSION"),
        COMMIT.unwrap_or("unknown"),
        kernel.as_deref().unwrap_or("unknown"),
        versions(agent::WIRE),
        versions(vmm::WIRE),
    )
}

fn versions(wire: Wire) -> String {
    if wire.oldest == wire.version {
        wire.version.to_string()
    } else {
        format!("{} (compatible with {} and later)", wire.version, wire.oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_starts_with_the_version_and_names_the_protocols() {
        let text = text();
        assert!(text.starts_with(concat!("sandboxvm ", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
        assert!(text.contains("\ncommit: ") && text.contains("\nguest kernel: "), "{text}");
        assert!(text.contains(&format!("\nagent protocol: {}", agent::WIRE.version)), "{text}");
    }

    #[test]
    fn oldest_compatible_version_is_shown_if_it_differs() {
        let wire = |version, oldest| Wire { magic: *b"XX", version, oldest };
        assert_eq!(versions(wire(1, 1)), "1");
        assert_eq!(versions(wire(5, 2)), "5 (compatible with 2 and later)");
    }
}
