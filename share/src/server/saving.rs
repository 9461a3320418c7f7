//! The record of nodes and handles, which the guest keeps in its memory while a snapshot or a fork copies that.
//! The process that serves the copy gets it before other requests. May give a guest nothing that lookups and
//! opens would not: a node is a place and an identity, and a handle is opened as any other file.

use super::{Outcome, Server};
use crate::{
    handles::{Handle, Opened},
    protocol::{
        Reply,
        record::{self, Cursor, Kind, Part, PartWriter, SavedHandle, SavedNode},
    },
    root::{self, guest_flags},
};
use rustix::{fs::OFlags, io::Errno};
use std::sync::{Arc, Mutex};

impl Server {
    /// Returns the part of the record that begins at `cursor`.
    pub(super) fn save(&self, cursor: Cursor) -> Reply {
        let mut part = PartWriter::new(cursor.kind);
        let mut next = match cursor.kind {
            Kind::Nodes => Cursor { kind: Kind::Handles, from: 0 },
            Kind::Handles | Kind::End => Cursor { kind: Kind::End, from: 0 },
        };
        match cursor.kind {
            Kind::Nodes => {
                for node in self.nodes().saved(cursor.from) {
                    if !part.has_room() {
                        next = Cursor { kind: Kind::Nodes, from: node.number };
                        break;
                    }
                    part.node(&node);
                }
            }
            Kind::Handles => {
                for handle in self.handles().saved(cursor.from) {
                    if !part.has_room() {
                        next = Cursor { kind: Kind::Handles, from: handle.number };
                        break;
                    }
                    part.handle(&handle);
                }
            }
            Kind::End => {}
        }
        Reply::bytes(&part.finish(next))
    }

    /// Takes a part of the record of another process. Files that are not what they were stay closed, so the
    /// guest's handles of them are stale.
    pub(super) fn restore(&self, part: &[u8]) -> Outcome {
        match record::parse(part)? {
            Part::Nodes(saved) => {
                let mut nodes = self.nodes();
                for node in saved {
                    let identity = node.identity.into();
                    let identity = self.copied.as_ref().map_or(identity, |copied| copied.identity_of(identity));
                    nodes.restore(&SavedNode { identity: identity.into(), ..node })?;
                }
            }
            Part::Handles(saved) => {
                for handle in saved {
                    self.handles().has_room()?;
                    if let Ok(file) = self.open_again(&handle) {
                        let opened = Opened { node: handle.node, flags: handle.flags };
                        self.handles().restore(handle.number, file, opened)?;
                    }
                }
            }
        }
        Ok(Reply::empty())
    }

    fn open_again(&self, saved: &SavedHandle) -> Result<Handle, Errno> {
        if saved.is_directory {
            let directory = root::open_directory(self.directory(saved.node)?)?;
            return Ok(Handle::Directory(Arc::new(Mutex::new(directory))));
        }
        let flags = guest_flags(saved.flags);
        if self.settings.read_only && flags.intersects(OFlags::RWMODE) {
            return Err(Errno::ROFS);
        }
        let file = self.reopen(saved.node, flags)?;
        if root::kind(&root::examine(&file)?) != libc::S_IFREG {
            return Err(Errno::ISDIR);
        }
        Ok(Handle::File(Arc::new(file)))
    }
}
