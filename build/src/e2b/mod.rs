//! Templates as E2B's clients describe them: a list of steps in JSON, executed in one machine, whose
//! final state is the template.
//!
//! ```text
//! JSON ── plan ──> steps with keys ── run ──> machine in its final state
//! uploaded archive of a COPY ── upload ──> files in the machine
//! ```
//! Steps, archives and what machines answer are hostile. Knows no HTTP, and nothing is unpacked on the
//! host. May not let the state of one owner become that of another: keys begin with the owner, since
//! the hash of an upload is only what its client says.

mod accounts;
mod plan;
mod run;
#[cfg(test)]
mod tests;
mod upload;

pub use plan::{FaultyStep, MAX_STEPS, PlanRequest, Setting, TemplatePlan, TemplateStep, plan};
pub use run::{Finished, TemplateFailure, TemplateRequest, Uploads, build_template};
