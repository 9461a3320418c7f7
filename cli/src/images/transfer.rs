//! Transfers with their progress: on a terminal a line that changes, otherwise nothing until the result.

use super::Opened;
use crate::{failure::Failure, output::progress};
use sandboxvm_manager::{BootableImage, UnpackProgress};
use sandboxvm_oci::{Event, Progress, PullOptions, Pulled, PushOptions, Reference};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts the bytes of a transfer.
#[derive(Debug, Default)]
struct Counted {
    moved: Arc<AtomicU64>,
}

impl Progress for Counted {
    fn notify(&self, event: Event) {
        if let Event::Transferred { bytes, .. } = event {
            self.moved.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Opened {
    /// Pulls an image.
    pub(crate) async fn pull(&self, reference: &Reference) -> Result<Pulled, Failure> {
        let counted = Arc::new(Counted::default());
        let moved = counted.moved.clone();
        let name = reference.to_string();
        let pulling = self.store.images().pull(&name, PullOptions::default(), counted);
        Ok(progress::transfer("pulling", &moved, pulling).await?)
    }

    /// Pushes an image under its own reference.
    pub(crate) async fn push(&self, reference: &Reference) -> Result<(), Failure> {
        let counted = Arc::new(Counted::default());
        let moved = counted.moved.clone();
        let name = reference.to_string();
        let pushing = self.store.images().push(&name, &name, PushOptions::default(), counted);
        Ok(progress::transfer("pushing", &moved, pushing).await?)
    }

    /// Returns an image with its disk, which is made if it does not exist.
    pub(crate) async fn bootable(&self, image: &str) -> Result<BootableImage, Failure> {
        let read = Arc::new(AtomicU64::new(0));
        let counter = read.clone();
        let unpacking =
            self.store.bootable(image, move |made: UnpackProgress| counter.store(made.read, Ordering::Relaxed));
        Ok(progress::transfer("unpacking", &read, unpacking).await?)
    }
}
