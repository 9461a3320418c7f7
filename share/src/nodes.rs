//! The files and directories that the guest's kernel refers to, by numbers. A node is a place, which is
//! the directory and the name by which it was last found, and an identity: what is at the place must have
//! that identity, or the node is stale. Most nodes are open, and the others are opened when they are used.

use crate::{
    limits::Limits,
    protocol::{Name, record::SavedNode},
    root::{self, Identity, Root},
};
use rustix::{fs::Statx, io::Errno};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
};

/// The node of the root.
pub(crate) const ROOT: u64 = 1;
/// Maximum number of directories above a node.
const MAX_DEPTH: usize = 256;

#[derive(Debug)]
struct Node {
    parent: u64,
    name: Box<[u8]>,
    identity: Identity,
    /// How many answers referred to it that the guest has not forgotten.
    lookups: u64,
    file: Option<Arc<OwnedFd>>,
}

/// Where a node is: its directory, and its name there.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) parent: Arc<OwnedFd>,
    pub(crate) name: Box<[u8]>,
    pub(crate) identity: Identity,
}

/// All nodes of a share.
#[derive(Debug)]
pub(crate) struct Nodes {
    root: Arc<OwnedFd>,
    /// In the order of their numbers, in which they are saved.
    nodes: BTreeMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    /// Nodes that were opened, oldest first. Some are closed or forgotten by now.
    opened: VecDeque<u64>,
    /// Number of nodes that are open.
    open: usize,
    next: u64,
    root_identity: Identity,
    limits: Limits,
}

impl Nodes {
    /// `first` is the number of the first node: a number that a process before this one gave out must not mean
    /// another file.
    pub(crate) fn new(root: &Root, first: u64, limits: Limits) -> Self {
        Self {
            root: root.file(),
            nodes: BTreeMap::new(),
            by_identity: HashMap::new(),
            opened: VecDeque::new(),
            open: 0,
            next: first,
            root_identity: root.identity(),
            limits,
        }
    }

    /// Returns the file of a node, which may be used by a path of one component, but is not open for data.
    pub(crate) fn file(&mut self, id: u64) -> Result<Arc<OwnedFd>, Errno> {
        let mut closed = Vec::new();
        let mut at = id;
        let mut file = loop {
            if at == ROOT {
                break Arc::clone(&self.root);
            }
            let node = self.nodes.get(&at).ok_or(Errno::STALE)?;
            if let Some(file) = &node.file {
                break Arc::clone(file);
            }
            closed.push(at);
            if closed.len() > MAX_DEPTH {
                return Err(Errno::STALE);
            }
            at = node.parent;
        };
        for at in closed.into_iter().rev() {
            let node = self.nodes.get(&at).ok_or(Errno::STALE)?;
            // Whatever is wrong with the place, the node is not there any more.
            let name = Name::new(&node.name).map_err(|_| Errno::STALE)?;
            let found = root::find(&file, name).map_err(|_| Errno::STALE)?;
            root::expect(&found, node.identity)?;
            file = Arc::new(found);
            self.keep_open(at, Arc::clone(&file));
        }
        Ok(file)
    }

    /// Returns where a node is. The root is nowhere.
    pub(crate) fn place(&mut self, id: u64) -> Result<Place, Errno> {
        let node = self.nodes.get(&id).ok_or(Errno::STALE)?;
        let (parent, name, identity) = (node.parent, node.name.clone(), node.identity);
        Ok(Place { parent: self.file(parent)?, name, identity })
    }

    /// Returns the identity of a node.
    pub(crate) fn identity(&self, id: u64) -> Result<Identity, Errno> {
        if id == ROOT { Ok(self.root_identity) } else { Ok(self.nodes.get(&id).ok_or(Errno::STALE)?.identity) }
    }

    /// Notes that an answer refers to a file that was found, and returns its node.
    pub(crate) fn found(&mut self, parent: u64, name: Name<'_>, file: OwnedFd, stat: &Statx) -> Result<u64, Errno> {
        let identity = Identity::from(stat);
        let id = match self.by_identity.get(&identity) {
            Some(id) => *id,
            None if self.nodes.len() >= self.limits.nodes => return Err(Errno::NFILE),
            None => {
                let id = self.unused();
                self.by_identity.insert(identity, id);
                let node = Node { parent, name: name.bytes().into(), identity, lookups: 0, file: None };
                self.nodes.insert(id, node);
                id
            }
        };
        let Some(node) = self.nodes.get_mut(&id) else { return Err(Errno::STALE) };
        node.lookups = node.lookups.saturating_add(1);
        // Of several names, the one that was used last is most likely still there.
        if node.parent != parent || *node.name != *name.bytes() {
            (node.parent, node.name) = (parent, name.bytes().into());
        }
        if node.file.is_none() {
            self.keep_open(id, Arc::new(file));
        }
        Ok(id)
    }

    /// Returns a number that no node has.
    fn unused(&mut self) -> u64 {
        loop {
            let id = self.next;
            self.next = self.next.wrapping_add(1).max(ROOT + 1);
            // Numbers of another process, which were restored, may be anywhere.
            if !self.nodes.contains_key(&id) {
                return id;
            }
        }
    }

    /// Returns the nodes from a number on, in order.
    pub(crate) fn saved(&self, from: u64) -> impl Iterator<Item = SavedNode<'_>> {
        self.nodes.range(from..).filter_map(|(number, node)| {
            let (name, identity) = (Name::new(&node.name).ok()?, node.identity.into());
            Some(SavedNode { number: *number, parent: node.parent, identity, lookups: node.lookups, name })
        })
    }

    /// Adds a node of another process. Nothing that the guest says of it is believed: what is at its place must
    /// have its identity when it is used.
    pub(crate) fn restore(&mut self, saved: &SavedNode<'_>) -> Result<(), Errno> {
        let identity = Identity::from(saved.identity);
        if saved.number <= ROOT || self.nodes.contains_key(&saved.number) || self.by_identity.contains_key(&identity) {
            return Err(Errno::INVAL);
        }
        if self.nodes.len() >= self.limits.nodes {
            return Err(Errno::NFILE);
        }
        let (parent, name) = (saved.parent, saved.name.bytes().into());
        self.by_identity.insert(identity, saved.number);
        self.nodes.insert(saved.number, Node { parent, name, identity, lookups: saved.lookups, file: None });
        Ok(())
    }

    /// Notes that the guest has forgotten answers.
    pub(crate) fn forget(&mut self, id: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0
            && let Some(node) = self.nodes.remove(&id)
        {
            self.by_identity.remove(&node.identity);
            self.open -= usize::from(node.file.is_some());
        }
    }

    /// Notes that a file has another place.
    pub(crate) fn moved(&mut self, identity: Identity, parent: u64, name: Name<'_>) {
        if let Some(node) = self.by_identity.get(&identity).and_then(|id| self.nodes.get_mut(id)) {
            (node.parent, node.name) = (parent, name.bytes().into());
        }
    }

    fn keep_open(&mut self, id: u64, file: Arc<OwnedFd>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            self.open += usize::from(node.file.is_none());
            node.file = Some(file);
            self.opened.push_back(id);
        }
        while self.open > self.limits.open_nodes
            && let Some(oldest) = self.opened.pop_front()
        {
            if let Some(node) = self.nodes.get_mut(&oldest) {
                self.open -= usize::from(node.file.take().is_some());
            }
        }
        // The list must not grow by nodes that were forgotten since.
        if self.opened.len() > 2 * self.limits.open_nodes.max(64) {
            let nodes = &self.nodes;
            self.opened.retain(|id| nodes.get(id).is_some_and(|node| node.file.is_some()));
        }
    }
}
