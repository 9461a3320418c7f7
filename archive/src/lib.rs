//! Directory trees as tar streams: modes, times, symbolic and hard links, `user.*` attributes and holes survive.
//!
//! ```text
//! directory ── pack ──> writer ──> bytes ──> reader ──> unpack ──> directory
//! ```
//! Both ends of a copy use it: the guest's agent, in a process that serves one request, and the manager. Everything is
//! blocking I/O on descriptors, and memory is bounded whatever a stream or a directory holds: a block, one entry's
//! names and attributes, and what [`pack`] and [`unpack`] state. Neither end believes the other: a reader takes nothing
//! for granted of its stream, and [`unpack`] can keep all it does below one directory (see [`Trust`]). It knows nothing
//! of sandboxes, wires or terminals.
//!
//! What is written is POSIX pax (pax(1)), which GNU tar, bsdtar and Python's tarfile read; what is read is that, old GNU
//! tar and ustar. A tar library is not used because those of Rust read long names and attributes of any stated length
//! into memory, and know no sparse files of pax.

mod entry;
mod header;
mod new_file;
mod pack;
mod place;
mod reader;
mod records;
mod sparse;
mod unpack;
mod writer;

pub use entry::{Entry, Extent, Kind, MAX_PATH, Timestamp, Totals};
pub use pack::{PackError, PackOptions, pack};
pub use place::{PlaceError, Temporary, temporary_replaces};
pub use reader::{ReadError, Reader};
pub use unpack::{Trust, UnpackError, UnpackPolicy, unpack, unpack_single};
pub use writer::Writer;
