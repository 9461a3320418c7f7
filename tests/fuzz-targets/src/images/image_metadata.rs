//! The checks of images before their use: the superblock of an EROFS image, the headers of a
//! kernel, and the VMM's loader of kernels.

use crate::input::{Input, file};
use sandboxvm_images::{erofs, kernel};
use sandboxvm_protocol::machine::{MIB, MemorySize, VcpuCount};
use sandboxvm_vmm::{arch::x86_64::boot, memory::GuestMemory};
use std::sync::OnceLock;
use vm_memory::GuestAddress;

/// Input: the kind of image, then the file. An EROFS superblock is placed behind 1024 zero bytes.
pub fn image_metadata(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() {
        Some(kind) if kind & 1 == 0 => {
            let image = [&[0; 1024], input.rest()].concat();
            if let Ok(erofs) = erofs::check(&file(&image)) {
                assert!(erofs.bytes <= image.len() as u64);
            }
        }
        Some(_) => {
            let checked = kernel::check(&file(input.rest()));
            let size = MemorySize::try_from(MemorySize::MIN).expect("the minimum is a valid size");
            let loaded = boot::load(memory(), size, VcpuCount::ONE, &mut file(input.rest()), "quiet");
            if let Ok(entry) = loaded {
                assert!(entry.0 < MemorySize::MIN);
                // The check may be stricter than the loader, but not less strict, because its
                // message is for the user.
                let _ = checked;
            }
        }
        None => {}
    }
}

/// Returns memory into which all kernels are loaded, one over the other.
fn memory() -> &'static GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    MEMORY.get_or_init(|| {
        let bytes = usize::try_from(MemorySize::MIN.max(MIB)).expect("the minimum fits a usize");
        GuestMemory::from_ranges(&[(GuestAddress(0), bytes)]).expect("memory for a small guest")
    })
}
