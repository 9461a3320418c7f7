//! Copies a project in: makes the read-only layers that a sandbox mounts, and the index of what they
//! contain. Owns when a layer is written, and what it contains. It only reads the project.
//!
//! ```text
//! project ─ scan ─> plan (against the last index) ─> base.erofs [+ delta.erofs] and index
//! ```

mod cache;
mod error;
mod image;
mod options;
mod plan;
mod rules;
mod scan;

pub use cache::CacheError;
pub use error::CopyInError;
pub(crate) use image::digest;
pub use options::CopyOptions;
pub use rules::RulesError;
pub use scan::ScanError;

use crate::{
    beneath::{Root, open_plain, split},
    index::{Entry, Index, Kind},
};
use cache::{Place, Previous};
use image::LayerWriter;
use plan::Plan;
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::OFlags,
    io::Errno,
    time::{ClockId, clock_gettime},
};
use scan::Scan;
use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};

/// A project that was copied in. Its files stay in the cache while this value exists: link or copy them
/// before it is dropped.
#[derive(Debug)]
pub struct CopiedIn {
    /// EROFS files, the lowest first: one or two.
    pub layers: Vec<PathBuf>,
    /// The index of all of them, for [`Index::read`].
    pub index: PathBuf,
    /// Number of files, directories and symbolic links.
    pub files: u64,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Number of sockets, devices, pipes and mount points that were left out.
    pub left_out: u64,
    /// An apply to the project was interrupted, or is running: some files may be old, and others new.
    pub is_half_applied: bool,
    _lock: OwnedFd,
}

/// Copies the files of a directory into layers, of which the cache keeps those that have not changed.
/// In the guest the files belong to `owner`, a user and a group ID. Nothing is synced to the disk.
///
/// # Errors
/// [`CopyInError`]. The cache is as it was before then.
pub fn copy_in(
    directory: &Path,
    cache: &Path,
    owner: (u32, u32),
    options: &CopyOptions,
) -> Result<CopiedIn, CopyInError> {
    let broken = |step, path: &Path| {
        let path = path.as_os_str().as_encoded_bytes().to_vec();
        move |error: io::Error| CopyInError::File { step, path, error }
    };
    let root = Root::open(directory).map_err(broken("open", directory))?;
    let name = root.path().as_os_str().as_encoded_bytes();
    let key = format!("{}:{}:{}:{}:", owner.0, owner.1, options.gitignore, options.sandboxvmignore);
    let place = Place::lock(cache, &[key.as_bytes(), name].concat())?;
    if cache.canonicalize().map_err(broken("open", cache))?.starts_with(root.path()) {
        return Err(CopyInError::ContainsCache(root.path().to_owned()));
    }
    place.clean()?;
    let boot = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = std::fs::read_to_string(boot).map_err(broken("read", boot))?;
    let previous = place.previous(&boot);
    // Files that change from here on have this time or a later one.
    let now = clock_gettime(ClockId::RealtimeCoarse);
    let taken = (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0));
    let scan = scan::scan(&root, options)?;
    let plan = Plan::new(&root, &scan, previous.as_ref())?;
    let empty = Index {
        root: name.to_vec(),
        owner,
        taken,
        boot,
        layers: Vec::new(),
        bytes: 0,
        left_out: scan.left_out,
        entries: Default::default(),
    };
    let copied = Copy { root: &root, place: &place, scan: &scan, options }.run(plan, previous, empty);
    let cleaned = place.clean();
    let (index, path) = copied?;
    cleaned?;
    let copied = CopiedIn {
        layers: index.layers.iter().map(|layer| place.directory.join(layer)).collect(),
        index: path,
        files: index.entries.len() as u64,
        bytes: index.bytes,
        left_out: index.left_out,
        is_half_applied: scan.has_staging,
        _lock: place.into_lock(),
    };
    cache::evict(cache, options.cache_bytes, options.cache_projects)?;
    Ok(copied)
}

struct Copy<'a> {
    root: &'a Root,
    place: &'a Place,
    scan: &'a Scan,
    options: &'a CopyOptions,
}

impl Copy<'_> {
    /// Writes what is missing, and publishes the index. Returns it with its path.
    fn run(&self, plan: Plan, previous: Option<Previous>, mut index: Index) -> Result<(Index, PathBuf), CopyInError> {
        /// A layer above the lowest one has at most one part in this many of all bytes, and of all files.
        const SHARE: u64 = 3;
        let Some(previous) = previous else { return self.base(plan, index) };
        if plan.is_same_for_guest(&previous) {
            let is_known = !plan.has_read && plan.entries == previous.index.entries;
            index.layers.clone_from(&previous.index.layers);
            index.bytes = previous.index.bytes;
            index.entries = plan.entries;
            let path = self.place.directory.join("index");
            let path = if is_known { path } else { self.place.publish(&index, false)? };
            return Ok((index, path));
        }
        let (changed, bytes) = plan.changed(&previous);
        let is_large = bytes.saturating_mul(SHARE) > self.scan.bytes && bytes > 0
            || changed.len() as u64 * SHARE > plan.entries.len() as u64;
        let changed: HashSet<Vec<u8>> = changed.into_iter().map(<[u8]>::to_vec).collect();
        if is_large { self.base(plan, index) } else { self.delta(plan, &changed, &previous, index) }
    }

    /// Writes all files to a new lowest layer.
    fn base(&self, mut plan: Plan, mut index: Index) -> Result<(Index, PathBuf), CopyInError> {
        let (mut writer, name) = self.writer("base", 0, &index)?;
        for (path, mut entry) in std::mem::take(&mut plan.entries) {
            if self.write(&mut writer, &path, &mut entry)? {
                index.insert(path, entry);
            }
        }
        writer.finish()?;
        index.layers = vec![name];
        let path = self.place.publish(&index, true)?;
        Ok((index, path))
    }

    /// Writes what changed to a layer above the lowest one.
    fn delta(
        &self,
        mut plan: Plan,
        changed: &HashSet<Vec<u8>>,
        previous: &Previous,
        mut index: Index,
    ) -> Result<(Index, PathBuf), CopyInError> {
        let (mut writer, name) = self.writer("delta", 1, &index)?;
        // Directories of an overlay have the metadata of the highest layer that has them.
        let hidden = plan.hidden(previous);
        let mut above: HashSet<&[u8]> = HashSet::new();
        for path in changed.iter().map(|path| &path[..]).chain(hidden) {
            let mut path = split(path).0;
            while !path.is_empty() && above.insert(path) {
                path = split(path).0;
            }
        }
        let mut is_needed = !above.is_empty();
        for (path, mut entry) in std::mem::take(&mut plan.entries) {
            if changed.contains(&path) || above.contains(&path[..]) {
                is_needed = true;
                if !self.write(&mut writer, &path, &mut entry)? {
                    continue;
                }
            } else if let Some(base) = previous.base.entries.get(&path) {
                // The last copy may have had it in a layer that is not kept.
                entry.kind.clone_from(&base.kind);
            }
            index.insert(path, entry);
        }
        // After the files, some of which may no longer exist.
        plan.entries = std::mem::take(&mut index.entries);
        for path in plan.hidden(previous) {
            is_needed = true;
            writer.hide(path)?;
        }
        index.entries = plan.entries;
        writer.finish()?;
        index.layers = previous.base.layers.clone();
        if is_needed {
            index.layers.push(name);
        }
        let path = self.place.publish(&index, false)?;
        Ok((index, path))
    }

    fn writer(&self, what: &str, number: u8, index: &Index) -> Result<(LayerWriter, String), CopyInError> {
        let broken = |errno: Errno| CopyInError::File {
            step: "create a layer in",
            path: self.place.directory.as_os_str().as_encoded_bytes().to_vec(),
            error: errno.into(),
        };
        // The last copy may have the same time: that of the clock's last tick.
        let (mut number_of_name, (seconds, nanoseconds)) = (0_u32, index.taken);
        let (file, name) = loop {
            let name = format!("{seconds}.{nanoseconds:09}.{number_of_name}-{what}.erofs");
            match open_plain(&self.place.directory.join(&name), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL) {
                Err(Errno::EXIST) => number_of_name += 1,
                file => break (file.map_err(broken)?, name),
            }
        };
        let mut writer = LayerWriter::new(file, number, index.owner, self.options.max_depth)?;
        let about = self.root.directory(b"").and_then(|root| crate::beneath::look_at(root.as_fd(), b""));
        let about = about.map_err(broken)?;
        writer.root(about.mode, about.modified)?;
        Ok((writer, name))
    }

    /// Writes one file with its content. Returns false if there is no longer a file.
    fn write(&self, writer: &mut LayerWriter, path: &[u8], entry: &mut Entry) -> Result<bool, CopyInError> {
        let mut stored = None;
        if let Kind::File(content) = &mut entry.kind {
            let links = self.scan.found.get(path).map_or(1, |found| found.about.links);
            let Some(file) = writer.file(self.root, path, links)? else { return Ok(false) };
            *content = file.content;
            stored = Some(file);
        }
        writer.add(path, entry, stored)?;
        Ok(true)
    }
}

impl Index {
    fn insert(&mut self, path: Vec<u8>, entry: Entry) {
        if let Kind::File(content) = &entry.kind {
            self.bytes = self.bytes.saturating_add(content.size);
        }
        self.entries.insert(path, entry);
    }
}
