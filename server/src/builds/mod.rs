//! What builds of templates have besides machines: the files that clients upload for them, and their logs. Knows neither
//! registries nor sandboxes; `registry` runs builds.

pub(crate) mod log;
pub(crate) mod uploads;
