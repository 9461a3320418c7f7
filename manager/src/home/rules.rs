//! The rules by which a home admits sandboxes. `limits::admission` applies them.

/// How much of the host new sandboxes may use. 0 disables a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionRules {
    /// Maximum number of sandboxes in a home, running or not.
    pub sandboxes: u32,
    /// Maximum memory of all running sandboxes together, in percent of the host's memory.
    pub overcommit_percent: u32,
    /// Memory of the host, in bytes, that has to stay free. `None` for a share of its memory.
    pub free_memory: Option<u64>,
    /// Space in the home's file system, in bytes, that has to stay free. `None` for a share of its
    /// size.
    pub free_disk: Option<u64>,
}

impl Default for AdmissionRules {
    fn default() -> Self {
        Self { sandboxes: 4096, overcommit_percent: 400, free_memory: None, free_disk: None }
    }
}
