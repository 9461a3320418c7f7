//! A guest that breaks the rules: it loses a connection or the device, and costs the host nothing.
