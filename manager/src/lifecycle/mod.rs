//! Creates, changes and ends sandboxes for a caller, and sweeps what killed processes left behind.
//!
//! # States of a sandbox
//!
//! ```text
//!              create, fork           agent listens           pause
//!   (nothing) ─────────────> creating ─────────────> running ───────> paused
//!                               │      (restored machines            <───────
//!                               │       skip this state)   │  resume, or use after the idle rule
//!                               │                          │
//!          power-off, panic, stop, kill, expiry, crash     │  reset: creating again, in the same directory
//!                               v                          v
//!                        exited (reason known) or dead (VMM vanished)
//!                               │                 ▲
//!                 rm, prune, or │                 └─ paused to disk: an ended sandbox with a mark, which `prune`
//!         the end of its `run`  v                    keeps and a server resumes by a reset
//!                            removed
//! ```
//!
//! | state | who moves a sandbox into it | on disk |
//! |---|---|---|
//! | being made | [`create`](crate::create), [`fork`] | `staging/<id>/`, locked by its maker; a sweep removes it once the maker has ended |
//! | creating | the rename to `sandboxes/<id>/`, then the VMM | complete directory, `lock` held by the VMM, `status` below `Ready` |
//! | running | the VMM, when the agent listens or a snapshot is restored | `status` says `Ready`; `identity.due` until the agent received its identity |
//! | paused | a user, or the supervisor (`idle.paused`) | `status` says `Paused` |
//! | exited | the VMM, in its last write | `status` says `Ended` and why; `lock` free soon after |
//! | dead | SIGKILL, or a restart of the host | `lock` free, `status` says anything but `Ended` |
//! | paused to disk | a server ([`paused_to_disk`]) | as exited, with `parked`, and a snapshot in `snapshots/` |
//! | removed | [`remove`], [`sweep`], the end of a `run` | `trash/<id>/` until its files are deleted; the audit log stays 30 days |
//!
//! The state is read from these files each time ([`State`](crate::State)); no process keeps it in
//! memory. The steps that must not be skipped are types: `Staged` cannot be found by others, and
//! only `Launch`, `Prepared` and `publish` turn it into a [`Sandbox`](crate::Sandbox) with a
//! machine. A `Change` must exist before the files of a sandbox are changed, and a `Running` before
//! its VMM is asked to change them.

mod create;
pub(crate) mod fork;
pub(crate) mod paused_to_disk;
pub(crate) mod remove;
mod renew_bounds;
pub(crate) mod reset;
pub(crate) mod sweep;
pub(crate) mod usage;
