//! What a copy takes. Owns the defaults of its limits, each of which is enforced where the thing that it limits
//! is counted.

/// What a copy takes, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOptions {
    /// Leaves out what `.gitignore` files and `.git/info/exclude` name. Default: false.
    pub gitignore: bool,
    /// Leaves out what `.sandboxvmignore` files name. Default: true.
    pub sandboxvmignore: bool,
    /// Maximum number of files. Default: 1,000,000.
    pub max_files: u64,
    /// Maximum size of all files in bytes. Default: 32 GiB.
    pub max_bytes: u64,
    /// Maximum number of directories above a file. Default: 256.
    pub max_depth: u16,
    /// Size in bytes to which the cache is reduced after a copy. Default: 20 GiB.
    pub cache_bytes: u64,
    /// Number of projects to which the cache is reduced after a copy. Default: 64.
    pub cache_projects: usize,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            gitignore: false,
            sandboxvmignore: true,
            max_files: 1_000_000,
            max_bytes: 32 << 30,
            max_depth: 256,
            cache_bytes: 20 << 30,
            cache_projects: 64,
        }
    }
}
