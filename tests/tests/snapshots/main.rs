//! Snapshots, forks and resets: what they restore, what damages them, and what interrupts them.

mod damage;
mod flattening;
mod kills;
mod stories;
