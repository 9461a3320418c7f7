//! Whiteouts. One of a layer hides what lower layers have, and nothing of its own layer, whatever the
//! order of the entries (OCI image specification, "Representing Changes").

use super::{InodeId, LayerNumber, NAME_OVERHEAD, Tree, inode::Inode};

impl Tree {
    /// Hides the file of a name in the layers below `layer`.
    pub(crate) fn hide(&mut self, directory: InodeId, name: &[u8], layer: LayerNumber) {
        match self.child(directory, name) {
            Some(child) if child.layer < layer => self.remove(directory, name),
            Some(child) => {
                self.hide_description(child.inode, layer);
                self.hide_content(child.inode, layer);
            }
            None => {}
        }
    }

    /// Hides the content of a directory in the layers below `layer`. A second time is free, so all
    /// whiteouts of a layer take a time that is linear in the number of files.
    pub(crate) fn hide_content(&mut self, directory: InodeId, layer: LayerNumber) {
        let mut pending = vec![directory];
        while let Some(id) = pending.pop() {
            let Some(directory) = self.directory_mut(id).filter(|directory| directory.opaque_in != layer) else {
                continue;
            };
            directory.opaque_in = layer;
            let (mut hidden, mut kept, mut names) = (Vec::new(), Vec::new(), 0);
            directory.children.retain(|name, child| {
                let is_hidden = child.layer < layer;
                if is_hidden {
                    names += name.len() + NAME_OVERHEAD;
                }
                if is_hidden { &mut hidden } else { &mut kept }.push(child.inode);
                !is_hidden
            });
            self.memory = self.memory.saturating_sub(names);
            for inode in hidden {
                self.release(inode);
            }
            for inode in kept {
                self.hide_description(inode, layer);
                pending.push(inode);
            }
        }
    }

    /// Hides the metadata of a directory that lower layers described and this one does not.
    fn hide_description(&mut self, id: InodeId, layer: LayerNumber) {
        let Some(directory) = self.directory_mut(id) else { return };
        if directory.described_in == layer {
            return;
        }
        directory.described_in = layer;
        let default = Inode::default_directory(id, 0);
        let inode = self.inode_mut(id);
        let removed = inode.attribute_bytes();
        inode.metadata = default.metadata;
        inode.attributes = None;
        self.memory = self.memory.saturating_sub(removed);
    }
}
