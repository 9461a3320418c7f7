//! An untrusted archive is unpacked. Nothing outside of the destination may change.
//!
//! Input: one byte that selects the options, then the archive. For half of the inputs the checksums
//! of headers are corrected, because otherwise hardly any header would be accepted. The target
//! panics unless files beside the destination are unchanged and the limits hold.

use sandboxvm_archive::{Reader, Trust, UnpackPolicy, unpack, unpack_single};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::OnceLock,
};

const MAX_BYTES: u64 = 1 << 20;
const MAX_ENTRIES: u64 = 64;

fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let home = std::env::temp_dir().join(format!("sandboxvm-fuzz-{}", std::process::id()));
        fs::create_dir_all(&home).expect("the temporary directory can be written");
        fs::write(home.join("victim"), "untouched").expect("the temporary directory can be written");
        home
    })
}

/// Corrects the checksum of every block that may be a header.
pub(crate) fn mend(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512).filter(|block| block.starts_with(b"a") || block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Unpacks an archive. The module describes the input.
pub fn tar_unpack(data: &[u8]) {
    let [how, archive @ ..] = data else { return };
    let mut archive = archive.to_vec();
    if how & 1 == 1 {
        mend(&mut archive);
    }
    let target = home().join("target");
    let _ = fs::remove_dir_all(&target);
    fs::create_dir(&target).expect("the directory was removed");
    let policy = UnpackPolicy {
        trust: Trust::Nothing,
        max_bytes: MAX_BYTES,
        max_entries: MAX_ENTRIES,
        keep_owner: false,
        adopt_root: how & 2 == 2,
        umask: 0o022,
        progress: None,
    };
    let directory = File::open(&target).expect("the directory exists").into();
    let mut reader = Reader::new(&archive[..]);
    let unpacked = if how & 4 == 4 {
        unpack_single(&mut reader, directory, b"name", &policy)
    } else {
        unpack(&mut reader, directory, &policy)
    };
    if let Ok(totals) = unpacked {
        assert!(totals.bytes <= MAX_BYTES && totals.entries <= MAX_ENTRIES);
    }
    let mut names: Vec<_> =
        fs::read_dir(home()).expect("the directory can be read").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["target", "victim"]);
    assert_eq!(fs::read(home().join("victim")).expect("the file exists"), b"untouched");
}
