//! What the stages of a Dockerfile do. Executes nothing.
//!
//! ```text
//! stages   which stages a target needs, and what each begins with
//! resolve  the steps of a stage, once the configuration of its base image is known
//! mounts   what `RUN --mount` puts where              places  paths and sources of `COPY` and `ADD`
//! ```

mod mounts;
mod places;
mod resolve;
mod stages;

pub use mounts::Mount;
pub(crate) use mounts::SECRETS;
pub(crate) use places::{is_remote, is_repository, joined};
pub use resolve::resolve;
pub(crate) use resolve::{Budget, resolve_within};
pub use stages::{base, needed};

use crate::dockerfile::Inline;
use sandboxvm_oci::{Digest, config::ImageConfig};
use std::collections::BTreeMap;

/// Values for `ARG`, by name.
pub type BuildArgs = BTreeMap<String, String>;

/// What a stage begins with, or where `COPY --from` takes files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// An empty disk.
    Scratch,
    /// An image, by reference.
    Image(String),
    /// Another stage, by its position in the Dockerfile.
    Stage(usize),
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs a program.
    Run {
        /// Program and arguments.
        command: Vec<String>,
        /// Mounts.
        mounts: Vec<Mount>,
        /// Environment, as `NAME=value`. It is part of the key.
        env: Vec<String>,
        /// Proxies, which are not part of the key.
        proxies: Vec<String>,
        /// User, empty for root.
        user: String,
        /// Directory in which it starts.
        workdir: String,
        /// Whether it has no network.
        no_network: bool,
    },
    /// Copies files.
    Copy {
        /// Where the files are. `None`: in the context.
        from: Option<Base>,
        /// Paths, patterns or URLs.
        sources: Vec<String>,
        /// Files from the Dockerfile.
        inline: Vec<Inline>,
        /// Absolute path.
        target: String,
        /// Owner, `None` for root.
        chown: Option<String>,
        /// Mode of all files.
        chmod: Option<u32>,
        /// What the digest of the file at a URL has to be.
        checksum: Option<Digest>,
        /// Whether archives are extracted and URLs fetched.
        is_add: bool,
    },
    /// Makes a directory unless it exists.
    Directory {
        /// Absolute path.
        path: String,
        /// Owner of new directories, empty for root.
        user: String,
    },
}

impl Action {
    /// Returns the number of bytes of what can be large.
    fn size(&self) -> usize {
        let sum = |list: &[String]| list.iter().map(String::len).sum::<usize>();
        match self {
            Self::Run { command, env, proxies, user, workdir, .. } => {
                sum(command) + sum(env) + sum(proxies) + user.len() + workdir.len()
            }
            Self::Copy { sources, inline, target, .. } => {
                sum(sources) + inline.iter().map(|document| document.content.len()).sum::<usize>() + target.len()
            }
            Self::Directory { path, user } => path.len() + user.len(),
        }
    }
}

/// A step that changes the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Line in the Dockerfile.
    pub line: usize,
    /// First line of the instruction as written.
    pub text: String,
    /// What it does.
    pub action: Action,
}

/// The steps of a stage, and the configuration of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Configuration of the image.
    pub config: ImageConfig,
}
