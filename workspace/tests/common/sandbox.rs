//! A sandbox without a guest: the layers of a project below an overlay of the kernel, and the layer of
//! what was changed there, as the agent packs it.

use super::{Overlay, describe};
use sandboxvm_archive::{Writer, pack_layer};
use sandboxvm_workspace::{CopyOptions, LayerLimits, Review, ReviewFiles, copy_in};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

pub struct Sandbox {
    pub overlay: Overlay,
    index: PathBuf,
    layers: Vec<PathBuf>,
    pub changes: PathBuf,
    pub state: PathBuf,
}

impl Sandbox {
    /// Copies a project in and mounts it. Returns `None` if this host cannot mount.
    pub fn new(project: &Path, directory: &Path, name: &str) -> Option<Self> {
        let copied = copy_in(project, &directory.join("cache"), (0, 0), &CopyOptions::default()).unwrap();
        let state = directory.join(name);
        fs::create_dir(&state).unwrap();
        let link = |from: &Path, name: String| {
            let to = state.join(name);
            fs::hard_link(from, &to).unwrap();
            to
        };
        let layers: Vec<_> =
            copied.layers.iter().enumerate().map(|(number, layer)| link(layer, format!("slot{number}"))).collect();
        let index = link(&copied.index, "index".into());
        let overlay = Overlay::new(&layers)?;
        Some(Self { overlay, index, layers, changes: state.join("changes.tar"), state })
    }

    pub fn files(&self) -> ReviewFiles {
        let open = |path: &PathBuf| File::open(path).unwrap();
        let layers = self.layers.iter().map(open).collect();
        ReviewFiles { index: open(&self.index), layers, changes: open(&self.changes) }
    }

    /// Packs what was changed, and reads it.
    pub fn review(&self) -> Review {
        self.pack();
        Review::open(self.files(), &LayerLimits::default()).unwrap()
    }

    pub fn pack(&self) {
        let upper = File::open(&self.overlay.upper).unwrap();
        let mut writer = Writer::new(File::create(&self.changes).unwrap());
        use std::os::fd::AsFd;
        pack_layer(&mut writer, upper.as_fd(), &|_| Ok(false)).unwrap();
        writer.finish().unwrap();
    }
}

/// Copies a tree with modes and times.
pub fn copy_tree(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What two trees have to agree about: kinds, contents and modes, without the root.
pub fn contents(root: &Path) -> std::collections::BTreeMap<PathBuf, (char, u32, Vec<u8>)> {
    let all = describe(root, None).into_iter().filter(|(path, _)| path != Path::new(""));
    all.map(|(path, file)| (path, (file.kind, if file.kind == 'l' { 0o777 } else { file.mode }, file.content)))
        .collect()
}
