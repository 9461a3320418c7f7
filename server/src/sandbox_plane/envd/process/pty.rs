//! The terminal that a request describes.

use crate::sandbox_plane::envd::connect::{ConnectError, json::Number};
use sandboxvm_manager::TerminalSize;
use serde::Deserialize;

/// A terminal.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pty {
    size: Option<PtySize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PtySize {
    cols: Option<Number>,
    rows: Option<Number>,
}

impl Pty {
    pub(super) fn size(&self) -> Result<TerminalSize, ConnectError> {
        let size = self.size.as_ref().ok_or_else(|| ConnectError::invalid("pty: it has no size"))?;
        let cells = |number: Option<Number>, what: &str| {
            u16::try_from(number.unwrap_or_default().0)
                .map_err(|_| ConnectError::invalid(format!("pty: {what} must be below 65536")))
        };
        Ok(TerminalSize { rows: cells(size.rows, "rows")?, columns: cells(size.cols, "cols")? })
    }
}
