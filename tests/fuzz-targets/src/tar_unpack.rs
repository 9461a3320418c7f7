//! An archive from anybody, unpacked where nothing may be touched but the directory it is for.
//!
//! Input: one byte choosing how it is taken, then the archive. Half of the mutations get their headers' checksums set
//! right, or hardly any would get past them. What must hold: no panic; what was there beside the directory stays as it
//! was; the caps hold.

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
        fs::create_dir_all(&home).expect("a directory of our own");
        fs::write(home.join("victim"), "untouched").expect("a file of our own");
        home
    })
}

/// Sets the checksum of every block that could be a header.
fn mend(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512).filter(|block| block.starts_with(b"a") || block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// See the module.
pub fn tar_unpack(data: &[u8]) {
    let [how, archive @ ..] = data else { return };
    let mut archive = archive.to_vec();
    if how & 1 == 1 {
        mend(&mut archive);
    }
    let target = home().join("target");
    let _ = fs::remove_dir_all(&target);
    fs::create_dir(&target).expect("it was removed");
    let policy = UnpackPolicy {
        trust: Trust::Nothing,
        max_bytes: MAX_BYTES,
        max_entries: MAX_ENTRIES,
        keep_owner: false,
        adopt_root: how & 2 == 2,
        umask: 0o022,
        progress: None,
    };
    let directory = File::open(&target).expect("it was made").into();
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
        fs::read_dir(home()).expect("it is ours").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["target", "victim"]);
    assert_eq!(fs::read(home().join("victim")).expect("it is there"), b"untouched");
}
