//! Reads, writes and lists files of a sandbox, with bounded sizes.

use super::arguments::{BadArgument, Encoding, path, text, within};
use crate::{
    capture::{before_cut, shown},
    scope::{Scope, ScopeError},
    server::SandboxTools,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rmcp::{
    RoleServer,
    handler::server::wrapper::{Json, Parameters},
    service::RequestContext,
    tool, tool_router,
};
use sandboxvm_manager::{FileDone, FileError, Files, Sandbox, permissions};
use sandboxvm_protocol::agent::files::{FileEntry, FileKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const DEFAULT_READ: u64 = 64 * 1024;
const MAX_READ: u64 = 1024 * 1024;
const MAX_DEPTH: u64 = 10;
/// Maximum number of entries of a list.
const MAX_ENTRIES: usize = 1000;

/// Arguments of file_read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Path of the file. A path that does not begin with '/' is relative to the home directory of the user.
    path: String,
    /// Offset of the first byte to read. Default: 0.
    offset: Option<u64>,
    /// Maximum number of bytes to read (1-1048576). Default: 65536.
    max_bytes: Option<u64>,
    /// Encoding of the content in the result. Default: text if the content is UTF-8, otherwise base64.
    encoding: Option<Encoding>,
    /// User to read the file as. Default: root.
    user: Option<String>,
}

/// The content of a file, or a part of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ReadDone {
    /// The content in this encoding.
    content: String,
    /// Encoding of the content.
    encoding: Encoding,
    /// Size of the whole file in bytes when reading started.
    size: u64,
    /// Offset at which to continue reading. Absent if the end was reached.
    next_offset: Option<u64>,
}

/// Arguments of file_write.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Path of the file. A path that does not begin with '/' is relative to the home directory of the user. Missing directories are created.
    path: String,
    /// The whole new content of the file, which replaces the old content.
    content: String,
    /// Encoding of the content. Default: text.
    encoding: Option<Encoding>,
    /// Permissions in octal, such as 755. Default: those of the existing file, otherwise 644.
    mode: Option<String>,
    /// User who owns the file. Default: root.
    user: Option<String>,
}

/// Arguments of file_list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListArguments {
    /// ID or name of the sandbox.
    sandbox: String,
    /// Path of the directory. A path that does not begin with '/' is relative to the home directory of the user.
    path: String,
    /// Number of directory levels to list (1-10). Default: 1.
    depth: Option<u64>,
    /// User to list the directory as. Default: root.
    user: Option<String>,
}

/// A file.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FileShown {
    /// Absolute path of the file.
    path: String,
    /// Kind of file: file, directory, symlink, fifo, socket, character_device or block_device.
    kind: String,
    /// Size in bytes.
    size: u64,
    /// Permissions as `ls -l` shows them.
    permissions: String,
    /// Owner of the file.
    owner: String,
    /// Time of the last change of its content, in seconds since 1970.
    modified: i64,
    /// Target of a symbolic link.
    link_target: Option<String>,
}

/// The entries of a directory.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FilesShown {
    /// The first 1000 entries by path.
    entries: Vec<FileShown>,
    /// Number of entries that were left out. List a subdirectory to see those.
    left_out: usize,
}

/// Why such a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesFailure {
    #[error(transparent)]
    Argument(#[from] BadArgument),
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{0} is not UTF-8 text; use encoding base64, or leave encoding out")]
    NotText(String),
}

#[tool_router(router = files_router, vis = "pub(crate)")]
impl SandboxTools {
    /// Reads a file of a sandbox as text or base64, up to 64 KiB by default.
    #[tool(annotations(title = "Read file", read_only_hint = true, destructive_hint = false, open_world_hint = false))]
    async fn file_read(
        &self,
        Parameters(arguments): Parameters<ReadArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<ReadDone>, String> {
        self.work(context, read(&self.scope, arguments)).await
    }

    /// Writes a file of a sandbox in one step: if the call fails, the old content remains. Missing directories are created.
    #[tool(annotations(
        title = "Write file",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn file_write(
        &self,
        Parameters(arguments): Parameters<WriteArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<FileShown>, String> {
        self.work(context, write(&self.scope, arguments)).await
    }

    /// Lists a directory of a sandbox, at most 1000 entries, sorted by path.
    #[tool(annotations(
        title = "List files",
        read_only_hint = true,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn file_list(
        &self,
        Parameters(arguments): Parameters<ListArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<FilesShown>, String> {
        self.work(context, list(&self.scope, arguments)).await
    }
}

fn files<'s>(sandbox: &'s Sandbox, user: Option<&str>) -> Result<Files<'s>, BadArgument> {
    match user {
        Some(user) => Ok(sandbox.files().as_user(text("user", user)?)),
        None => Ok(sandbox.files()),
    }
}

async fn read(scope: &Scope, arguments: ReadArguments) -> Result<ReadDone, FilesFailure> {
    let most = within("max_bytes", arguments.max_bytes.unwrap_or(DEFAULT_READ), 1, MAX_READ)?;
    // Bounded by MAX_READ.
    let most = most as usize;
    let offset = arguments.offset.unwrap_or(0);
    let sandbox = scope.find(&arguments.sandbox)?;
    let files = files(&sandbox, arguments.user.as_deref())?;
    let mut stream = files.read(path(&arguments.path)?).await?;
    let size = stream.entry().size;
    let (mut bytes, mut skipped) = (Vec::new(), 0);
    // One byte more shows whether the end was reached.
    while bytes.len() <= most
        && let Some(chunk) = stream.next().await?
    {
        // A chunk is shorter than 2^32.
        let skip = (offset - skipped).min(chunk.len() as u64);
        skipped += skip;
        bytes.extend_from_slice(&chunk[skip as usize..]);
    }
    let is_all = bytes.len() <= most;
    bytes.truncate(most);
    let (content, encoding, len) = written(bytes, is_all, arguments.encoding, &arguments.path)?;
    Ok(ReadDone { content, encoding, size, next_offset: (!is_all).then_some(offset.saturating_add(len)) })
}

/// Returns the bytes as text, and how many of them it has: an incomplete character at the end is left for the next part.
fn written(
    bytes: Vec<u8>,
    is_all: bool,
    wanted: Option<Encoding>,
    path: &str,
) -> Result<(String, Encoding, u64), FilesFailure> {
    let whole = if is_all { bytes.len() } else { before_cut(&bytes).len() };
    let whole = if whole == 0 { bytes.len() } else { whole };
    let as_text = std::str::from_utf8(&bytes[..whole]);
    match (wanted, as_text) {
        (Some(Encoding::Text) | None, Ok(text)) if wanted.is_some() || !text.contains('\0') => {
            Ok((text.to_owned(), Encoding::Text, whole as u64))
        }
        (Some(Encoding::Text), _) => Err(FilesFailure::NotText(shown(path.as_bytes()))),
        _ => Ok((STANDARD.encode(&bytes), Encoding::Base64, bytes.len() as u64)),
    }
}

async fn write(scope: &Scope, arguments: WriteArguments) -> Result<FileShown, FilesFailure> {
    let content = arguments.encoding.unwrap_or(Encoding::Text).decode(arguments.content)?;
    let mode = arguments.mode.as_deref().map(mode).transpose()?;
    let sandbox = scope.find(&arguments.sandbox)?;
    let files = files(&sandbox, arguments.user.as_deref())?;
    let path = path(&arguments.path)?;
    let mut sink = files.write(path.clone(), mode, true).await?;
    sink.write(&content).await?;
    match sink.finish().await? {
        FileDone::Entry(entry) => Ok(file_shown(&entry)),
        FileDone::Totals(_) => Ok(file_shown(&files.stat(path, true).await?)),
    }
}

fn mode(text: &str) -> Result<u32, BadArgument> {
    let number = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777 && !text.starts_with('+'));
    number.ok_or_else(|| BadArgument::new("mode", format_args!("{text:?} is not octal permissions such as 644 or 755")))
}

async fn list(scope: &Scope, arguments: ListArguments) -> Result<FilesShown, FilesFailure> {
    let depth = within("depth", arguments.depth.unwrap_or(1), 1, MAX_DEPTH)?;
    let sandbox = scope.find(&arguments.sandbox)?;
    let files = files(&sandbox, arguments.user.as_deref())?;
    // Bounded by MAX_DEPTH.
    let mut entries = files.list(path(&arguments.path)?, depth as u32).await?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let left_out = entries.len().saturating_sub(MAX_ENTRIES);
    entries.truncate(MAX_ENTRIES);
    Ok(FilesShown { entries: entries.iter().map(file_shown).collect(), left_out })
}

fn file_shown(entry: &FileEntry) -> FileShown {
    FileShown {
        path: shown(entry.path.as_bytes()),
        kind: kind(entry.kind).to_owned(),
        size: entry.size,
        permissions: permissions(entry),
        owner: shown(entry.owner.as_bytes()),
        modified: entry.modified.seconds,
        link_target: entry.link_target.as_ref().map(|target| shown(target.as_bytes())),
    }
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharacterDevice => "character_device",
        FileKind::BlockDevice => "block_device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_the_rest_is_base64() {
        let (content, encoding, len) = written("ä\x1b[2J".into(), true, None, "/x").unwrap();
        assert_eq!((content.as_str(), encoding, len), ("ä\x1b[2J", Encoding::Text, 6));
        for bytes in [vec![0xff, 0xfe], vec![b'a', 0, b'b']] {
            let (content, encoding, _) = written(bytes.clone(), true, None, "/x").unwrap();
            assert_eq!((STANDARD.decode(content).unwrap(), encoding), (bytes, Encoding::Base64));
        }
        let (content, encoding, _) = written("abc".into(), true, Some(Encoding::Base64), "/x").unwrap();
        assert_eq!((content.as_str(), encoding), ("YWJj", Encoding::Base64));
        let message = written(vec![0xff], true, Some(Encoding::Text), "/x").unwrap_err().to_string();
        assert!(message.contains("base64"), "{message}");
    }

    #[test]
    fn a_character_across_two_parts_is_read_with_the_second() {
        let whole = "aä".as_bytes();
        let (content, _, len) = written(whole[..2].to_vec(), false, None, "/x").unwrap();
        assert_eq!((content.as_str(), len), ("a", 1));
        // Parts too small for a character still lead on.
        let (_, encoding, len) = written(vec![0xc3], false, None, "/x").unwrap();
        assert_eq!((encoding, len), (Encoding::Base64, 1));
    }

    #[test]
    fn permissions_are_octal_or_refused() {
        assert_eq!(mode("755").unwrap(), 0o755);
        assert_eq!(mode("0644").unwrap(), 0o644);
        for text in ["", "8", "rwx", "77777", "+7", "-1"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }
}
