//! What every request handler is given.

use crate::{access::Access, config::Config, registry::Registry, room::Room};
use std::sync::Arc;

/// Shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) access: Access,
    pub(crate) registry: Registry,
    /// Requests of the control plane that are worked on.
    pub(crate) room: Room,
    /// Logs that are read: each may be long, and is read to its end or until nobody wants it.
    pub(crate) log_room: Room,
    /// Those to sandboxes, until their answers begin: what a stream lasts is its sandbox's business.
    pub(crate) sandbox_room: Room,
}

/// How handlers get it.
pub(crate) type SharedApp = Arc<App>;

/// The envd version that clients are told; it switches their features on, so it is that of what is served here.
pub(crate) const ENVD_VERSION: &str = "0.6.4";

impl App {
    /// Every pool has at least one machine.
    pub(crate) fn pools_are_warm(&self) -> bool {
        self.registry.templates.values().all(|template| template.config.pool == 0 || template.armed() > 0)
    }
}
