//! What is known of builds of templates: on disk, and of those that run. `builds` decides about them and runs them.

use crate::{
    access::keys::KeyId,
    builds::{
        log::{BuildLog, Line},
        uploads::UploadStore,
    },
    config::images::ImagesConfig,
    store::{Store, StoreError, unix_millis},
    templates::built::BuiltTemplates,
};
use sandboxvm_manager::{NetworkSpec, SandboxName};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// All builds of a server.
#[derive(Debug)]
pub(crate) struct Builds {
    pub(crate) templates: BuiltTemplates,
    pub(crate) uploads: UploadStore,
    pub(in crate::registry) logs: Store<Vec<Line>>,
    running: Mutex<HashMap<String, Running>>,
    pub(in crate::registry) turns: Semaphore,
    pub(in crate::registry) config: ImagesConfig,
    pub(in crate::registry) network: NetworkSpec,
}

#[derive(Debug)]
pub(in crate::registry) struct Running {
    pub(in crate::registry) owner: KeyId,
    pub(in crate::registry) template: SandboxName,
    pub(in crate::registry) log: Arc<BuildLog>,
    pub(in crate::registry) cancel: CancellationToken,
}

impl Builds {
    pub(in crate::registry) fn open(
        directory: &Path,
        config: &ImagesConfig,
        network: NetworkSpec,
    ) -> Result<Self, StoreError> {
        let uploads = directory.join("uploads");
        let opened = UploadStore::open(uploads.clone(), config.uploads_per_key);
        Ok(Self {
            templates: BuiltTemplates::open(directory.join("templates"), now())?,
            uploads: opened.map_err(|source| StoreError::of(&uploads, source))?,
            logs: Store::open(directory.join("build-logs"))?,
            running: Mutex::default(),
            turns: Semaphore::new(config.builds.clamp(1, 64)),
            config: config.clone(),
            network,
        })
    }

    pub(in crate::registry) fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the builds of a template that run.
    pub(in crate::registry) fn cancel(&self, template: &SandboxName) {
        for running in self.running().values().filter(|running| running.template == *template) {
            running.cancel.cancel();
        }
    }

    /// The lines of a build's log.
    pub(crate) fn lines(&self, build: &str) -> Vec<Line> {
        let running = self.running().get(build).map(|running| Arc::clone(&running.log));
        match running {
            Some(log) => log.lines(),
            None => self.logs.get(build).unwrap_or_default(),
        }
    }
}

/// What the names of kept states of a key's builds begin with.
pub(in crate::registry) fn states_of(owner: &KeyId) -> String {
    format!("step-{}-", &hex::encode(Sha256::digest(owner.0.as_bytes()))[..12])
}

pub(in crate::registry) fn now() -> u64 {
    unix_millis(SystemTime::now())
}
