//! Copies the shares of a sandbox for its forks, while no request to them is under way. May not open a file in them:
//! a confined process copies.

use super::{child::Child, error::ForkError};
use crate::{
    limits::admission,
    mounts::{Mounts, Share, share_copy, share_root::ShareRoot},
    sandbox::Sandbox,
    supervision::Child as Process,
    vmm::group::Group,
};
use futures_util::future::BoxFuture;
use std::{ffi::CString, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Maximum number of files and directories of a copy. Copying them takes some seconds.
const NAMES: u64 = 200_000;
/// Maximum size in bytes of what is written for a copy on a file system whose files cannot share blocks.
const BYTES: u64 = 8 << 30;
/// Maximum time for all copies of a fork: programs that use the shares wait meanwhile.
const WITHIN: Duration = Duration::from_secs(60);

impl Sandbox {
    /// Makes the copies of shares that `mounts`, those of the children, say.
    pub(super) fn copy_shares<'a>(
        &'a self,
        children: &'a [Child],
        mounts: &'a Mounts,
    ) -> BoxFuture<'a, Result<(), ForkError>> {
        Box::pin(async move {
            let end = Instant::now() + WITHIN;
            for child in children {
                for share in mounts.shares().filter(|share| share.copied) {
                    let copied = timeout_at(end, self.copy_share(child.sandbox(), &share)).await;
                    let copied = copied.unwrap_or_else(|_| Err(format!("it takes longer than {} s", WITHIN.as_secs())));
                    copied.map_err(|reason| ForkError::Copy { at: share.at.clone(), reason })?;
                }
            }
            Ok(())
        })
    }

    async fn copy_share(&self, child: &Sandbox, share: &Share<'_>) -> Result<(), String> {
        fn text(error: impl std::fmt::Display) -> String {
            error.to_string()
        }
        let mut of_parent = self.record.mounts.shares();
        let is_copy = of_parent.any(|of_parent| of_parent.number == share.number && of_parent.copied);
        let source = match is_copy {
            true => share_copy::open_files(&self.directory, share.number).map_err(text)?,
            false => ShareRoot::of_host(&self.home, share).map_err(text)?,
        };
        let target = share_copy::make(&child.directory, share.number, &source).map_err(text)?;
        let program = self.home.share_program().ok_or("the bundle has no program that copies it")?;
        let bytes = BYTES.min(admission::room(&self.home).map_err(text)?);
        let argument = CString::new(format!("copy:{bytes}:{NAMES}")).unwrap_or_default();
        let group = Group::of(&child.directory);
        let name = "process that copies it";
        let mut process = Process::spawn(name, program, Some(&argument), target, Some(source.file), group.as_ref())
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        process.ended().await;
        if process.succeeded() { Ok(()) } else { Err(process.end().await) }
    }
}
