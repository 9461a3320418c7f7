//! The Dockerfile as data: stages and their instructions, before variables are expanded. May not
//! touch a file or start anything.
//!
//! The crate parse-dockerfile finds instructions, continuation lines and here-documents. This
//! module checks flags, and refuses what is not supported instead of ignoring it.

mod expand;
mod lower;

pub use expand::{ExpandError, expand, expand_document, split};

/// Maximum size of a Dockerfile in bytes.
pub const MAX_DOCKERFILE: usize = 1 << 20;
/// Maximum number of instructions.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Why a Dockerfile is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {message}")]
pub struct DockerfileError {
    /// Name of the file, as the caller states it.
    pub file: String,
    /// Line of the instruction, from 1. 0: the whole file.
    pub line: usize,
    /// What is wrong, and what is expected.
    pub message: String,
}

/// A Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// Name of the file, for errors.
    pub file: String,
    /// The character of the directive `escape`.
    pub escape: char,
    /// `ARG` before the first `FROM`.
    pub global_args: Vec<Assignment>,
    /// The stages, in the order of the file. There is at least one.
    pub stages: Vec<Stage>,
    /// What the build ignores, for the user.
    pub notes: Vec<String>,
}

/// `NAME` or `NAME=word`.
pub type Assignment = (String, Option<String>);

/// From one `FROM` to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Line of `FROM`.
    pub line: usize,
    /// Name after `AS`, in lower case.
    pub name: Option<String>,
    /// Image or stage, with variables.
    pub base: String,
    /// Value of `--platform`.
    pub platform: Option<String>,
    /// The instructions after `FROM`.
    pub instructions: Vec<Located>,
}

/// An instruction and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Line of its first word, from 1.
    pub line: usize,
    /// The first line of the instruction as written.
    pub text: String,
    /// The instruction.
    pub instruction: Instruction,
}

/// A program and its arguments, or text for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// JSON form.
    Exec(Vec<String>),
    /// Shell form.
    Shell(String),
}

/// An instruction. Words still contain quotes and variables.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant has the name of its instruction")]
pub enum Instruction {
    Arg(Vec<Assignment>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Copy(Copy),
    Run(Run),
    Shell(Vec<String>),
    User(String),
    Workdir(String),
    Entrypoint(Command),
    Cmd(Command),
    Expose(Vec<String>),
    Volume(Vec<String>),
    StopSignal(String),
    /// `None`: `HEALTHCHECK NONE`.
    Healthcheck(Option<Check>),
    Maintainer(String),
}

/// `HEALTHCHECK` with a command. Times are in nanoseconds. 0: the default of the program that
/// checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The command.
    pub command: Command,
    /// Time between two checks.
    pub interval: u64,
    /// Time after which a check has failed.
    pub timeout: u64,
    /// Time in which failures do not count.
    pub start_period: u64,
    /// Number of failures in a row after which the program is unhealthy.
    pub retries: u32,
}

/// `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is `ADD`, which extracts local archives and fetches URLs.
    pub is_add: bool,
    /// Stage or image of `--from`.
    pub from: Option<String>,
    /// Owner of `--chown`.
    pub chown: Option<String>,
    /// Mode of `--chmod`, at most 0o7777.
    pub chmod: Option<u32>,
    /// Digest of `--checksum`, with variables.
    pub checksum: Option<String>,
    /// Paths, patterns or URLs.
    pub sources: Vec<String>,
    /// Files whose content is in the Dockerfile.
    pub inline: Vec<Inline>,
    /// Where to.
    pub target: String,
}

/// A here-document of `COPY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// Its delimiter, which is the name of the file.
    pub name: String,
    /// Whether variables are expanded.
    pub expand: bool,
    /// The content.
    pub content: String,
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// Values of `--mount`.
    pub mounts: Vec<Mount>,
    /// Whether `--network=none` was given.
    pub no_network: bool,
}

/// A value of `--mount`, with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A directory that is kept between builds.
    Cache {
        /// Name of the cache. `None`: the target.
        id: Option<String>,
        /// Directory in the machine.
        target: String,
    },
    /// A secret, as a file on a file system in memory.
    Secret {
        /// Name of the secret. `None`: the name of the target.
        id: Option<String>,
        /// File in the machine. `None`: of that name in `/run/secrets`. One of both is stated.
        target: Option<String>,
        /// Whether the build fails without it.
        required: bool,
    },
    /// Files of the context, of a stage or of an image, which are not part of the result.
    Bind {
        /// Stage or image. `None`: the context.
        from: Option<String>,
        /// File or directory there. `None`: its root.
        source: Option<String>,
        /// File or directory in the machine.
        target: String,
        /// Whether the step may write to it. What it writes is lost.
        writable: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Directory in the machine.
        target: String,
        /// Maximum size in bytes. `None`: half of the memory.
        size: Option<u64>,
    },
}
