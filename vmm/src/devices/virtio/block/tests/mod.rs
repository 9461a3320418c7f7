//! virtio-blk as a driver sees it, and the layers under it against a model.

#![allow(clippy::cast_possible_truncation, reason = "the numbers are this test's own, and small")]

mod layers;
mod requests;
