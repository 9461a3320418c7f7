//! `sandboxvm mcp`, over HTTP and over stdio.

mod stdio;
mod tools;
