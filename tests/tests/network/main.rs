//! The network of sandboxes: what a guest reaches, and what it does not. Each test has a
//! separate network namespace, so that nothing beyond this machine is reached.

mod clients;
mod first_use;
mod secrets;
