//! The life of a sandbox: how it starts, what limits and serves it, and every way in which it ends.

mod audit;
mod crash;
mod ending;
mod leaks;
mod limits;
mod pool;
mod ports;
mod stopped_vmm;
mod stories;
mod supervision;
