//! The rules by which a home admits sandboxes. `limits::admission` applies them.

/// What new sandboxes may take of the host. 0 switches a rule off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionRules {
    /// Most sandboxes of a home, running or not.
    pub sandboxes: u32,
    /// How many times the host's memory all that run may have together, in hundredths.
    pub overcommit_percent: u32,
    /// Memory of the host that no new sandbox may count on, in bytes; a share of it when not stated.
    pub free_memory: Option<u64>,
    /// Room in the home's file system that no new sandbox may count on, in bytes; a share of it when not stated.
    pub free_disk: Option<u64>,
}

impl Default for AdmissionRules {
    fn default() -> Self {
        Self { sandboxes: 4096, overcommit_percent: 400, free_memory: None, free_disk: None }
    }
}
