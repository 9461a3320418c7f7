//! virtio-blk as a driver sees it, and the layers under it against a model.

mod layers;
mod requests;
