//! The file system of a new volume: ext4 in a sparse file, made by mke2fs. The host never mounts it.
//!
//! Unlike a sandbox's disk it outlives its machines, which may end at any moment, so it has a journal. Each
//! has a separate UUID, because a guest may mount several.

use crate::template::{DiskSize, FileSystem, TemplateError, make_file_system};
use std::{
    fs::{self, File},
    path::Path,
};

const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super2,large_file,huge_file,\
                        extra_isize,dir_nlink,uninit_bg";

/// Makes the file system in the empty file at `path`, which becomes `size` bytes long. The file is durable
/// afterwards; its name may not be.
///
/// # Errors
/// Every [`TemplateError`].
pub fn make(path: &Path, size: DiskSize) -> Result<(), TemplateError> {
    let io_error = |what| {
        let path = path.to_owned();
        move |source| TemplateError::Io { what, path, source }
    };
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(io_error("draw an ID for"))?;
    let file = File::options().write(true).open(path).map_err(io_error("open"))?;
    file.set_len(size.bytes()).map_err(io_error("size"))?;
    let uuid = uuid.trim();
    let kind = FileSystem {
        features: FEATURES,
        uuid,
        hash_seed: uuid,
        bytes_per_inode: "16384",
        extended: ",lazy_journal_init=1",
    };
    make_file_system(path, size, &kind)?;
    file.sync_all().map_err(io_error("sync"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, os::unix::fs::MetadataExt};

    #[test]
    fn volumes_are_sparse_have_a_journal_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let mut beginnings = Vec::new();
        for name in ["a", "b"] {
            let path = dir.path().join(name);
            File::create_new(&path).unwrap();
            make(&path, DiskSize::try_from(10 << 30).unwrap()).unwrap();
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.len(), 10 << 30);
            assert!(metadata.blocks() * 512 < 2 << 20, "{} blocks", metadata.blocks());
            let mut beginning = vec![0; 2048];
            let mut file = File::open(&path).unwrap();
            file.read_exact(&mut beginning).unwrap();
            // s_feature_compat: EXT4_FEATURE_COMPAT_HAS_JOURNAL.
            assert_eq!(beginning[1024 + 0x5c] & 4, 4);
            beginnings.push(beginning);
        }
        assert_ne!(beginnings[0], beginnings[1], "two volumes have the same UUID");
    }
}
