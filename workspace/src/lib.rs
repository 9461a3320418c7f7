//! The user's project as read-only disks of a sandbox, and what the sandbox changed: listed, compared
//! and applied.
//!
//! ```text
//! project ── copy_in ──> layers (EROFS) and index ──> sandbox ──> layer of changes (tar, hostile)
//!    ^                                   └───────────────┬─────────────┘
//!    └────────── apply (journalled) <── review <── changes
//! ```
//! Everything here runs without a guest. The layer of changes is hostile: it is read in bounded memory,
//! and nothing that it names is opened outside of the project ([`beneath`]).

mod apply;
mod beneath;
mod commits;
mod copy_in;
mod index;
mod review;

pub use apply::{
    ApplyError, JOURNAL, Left, Recovered, apply, apply_until,
    concerns::{Concern, Reason},
    plan::{ApplyOptions, Conflict, ConflictKind, Plan, PlanError, Planned, plan},
    recover, recover_until,
};
pub use commits::{Branch, CommitsError, Gathered, ObjectId, branches, gather};
pub use copy_in::{CacheError, CopiedIn, CopyInError, CopyOptions, RulesError, ScanError, copy_in};
pub use index::{Content, Digest, Entry, Index, Kind, file::IndexError};
pub use review::{
    Extent, Review, ReviewError, ReviewFiles,
    compare::{Change, ChangeKind, Changes},
    content::MAX_TEXT,
    examine,
    layer::{LayerError, LayerLimits, State},
};
