//! The walls around a guest and around its VMM, attacked.

mod compare;
mod confinement;
mod drills;
mod threat_model;
