//! Which of the images in an index runs here: Linux on x86-64. May choose no image that needs
//! instructions beyond x86-64-v2, because a machine might not have them.

use oci_spec::image::{Arch, Descriptor, Os, Platform};

/// Maximum number of platforms that an error names.
const MAX_NAMED: usize = 20;

/// Returns how well a descriptor fits, lower is better, or `None` if it does not.
fn rank(descriptor: &Descriptor) -> Option<u8> {
    let platform = descriptor.platform().as_ref()?;
    if *platform.os() != Os::Linux || *platform.architecture() != Arch::Amd64 {
        return None;
    }
    match platform.variant().as_deref() {
        None | Some("") => Some(0),
        Some("v1") => Some(1),
        Some("v2") => Some(2),
        Some(_) => None,
    }
}

/// Returns the best of `manifests`. One that states no platform is chosen only if it is the only
/// one, as in a layout of one image.
pub(crate) fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    match manifests {
        [only] if only.platform().is_none() => Some(only),
        _ => {
            manifests.iter().filter_map(|one| Some((rank(one)?, one))).min_by_key(|(rank, _)| *rank).map(|(_, one)| one)
        }
    }
}

/// Returns the platforms of `manifests` for a message.
pub(crate) fn names(manifests: &[Descriptor]) -> String {
    let name = |platform: &Platform| {
        let mut name = format!("{}/{}", platform.os(), platform.architecture());
        if let Some(variant) = platform.variant() {
            name = format!("{name}/{variant}");
        }
        name.chars().filter(|c| c.is_ascii_graphic()).take(60).collect::<String>()
    };
    let mut names: Vec<_> = manifests.iter().filter_map(|one| one.platform().as_ref()).map(name).collect();
    // Attestations of builds are listed under this platform.
    names.retain(|name| name != "unknown/unknown");
    names.dedup();
    let more = names.len() > MAX_NAMED;
    names.truncate(MAX_NAMED);
    match (names.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, false) => names.join(", "),
        (false, true) => format!("{}, ...", names.join(", ")),
    }
}
