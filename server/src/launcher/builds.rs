//! Templates that keys build: what clients see of them, and the right to upload files for them.

use super::{Launcher, operations::value, views::time};
use crate::{
    access::keys::{Key, KeyId},
    app::ENVD_VERSION,
    builds::{log::Line, uploads},
    channel::{
        failure::{Failure, Why},
        request::{BuildQuery, BuildSpec, UploadClaim},
    },
    templates::built::{Build, BuiltTemplate, Status},
};
use serde_json::{Value, json};
use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long the URL of an upload is valid.
const UPLOAD_WITHIN: Duration = Duration::from_secs(3600);
/// As E2B's API has it.
const MAX_LINES: usize = 100;
/// Maximum number of tags of a request.
const MAX_TAGS: usize = 100;

fn at(millis: u64) -> String {
    time(UNIX_EPOCH + Duration::from_millis(millis))
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn signed(claim: &UploadClaim) -> String {
    format!("upload:{}:{}:{}", claim.template, claim.hash, claim.until)
}

fn line(line: &Line) -> Value {
    let mut shown = json!({ "timestamp": at(line.at), "level": line.level, "message": line.message });
    if let Some(step) = &line.step {
        shown["step"] = json!(step);
    }
    shown
}

fn build_row(build: &Build) -> Value {
    json!({
        "buildID": build.id, "status": build.status, "createdAt": at(build.created_at), "updatedAt": at(build.updated_at),
        "cpuCount": build.cpus, "memoryMB": build.memory, "diskSizeMB": build.disk, "envdVersion": ENVD_VERSION,
    })
}

/// A template as lists show it.
pub(super) fn template_of(template: &BuiltTemplate) -> Value {
    // E2B: the last successful build, and the status of the last one.
    let ready = template.builds.iter().rfind(|build| build.status == Status::Ready);
    let last = template.builds.last();
    let shown = ready.or(last);
    let updated = template.builds.iter().map(|build| build.updated_at).max().unwrap_or(template.created_at);
    json!({
        "templateID": template.id.as_str(), "buildID": shown.map(|build| &build.id),
        "cpuCount": shown.map_or(0, |build| build.cpus), "memoryMB": shown.map_or(0, |build| build.memory),
        "diskSizeMB": shown.map_or(0, |build| build.disk), "public": false,
        "aliases": [template.name], "names": [template.name],
        "createdAt": at(template.created_at), "updatedAt": at(updated), "createdBy": null, "lastSpawnedAt": null,
        "spawnCount": 0, "buildCount": template.builds.len(), "envdVersion": ENVD_VERSION,
        "buildStatus": last.map_or(Status::Error, |build| build.status),
    })
}

impl Launcher {
    pub(super) fn request_build(
        &self,
        key: &Key,
        name: &str,
        tags: &[String],
        cpus: Option<u32>,
        memory: Option<u64>,
    ) -> Result<Value, Failure> {
        if tags.len() > MAX_TAGS {
            return Err(Failure::invalid(format!("invalid tags: must have at most {MAX_TAGS} entries")));
        }
        let (template, build) = self.registry.request_build(key, name, tags, cpus, memory)?;
        Ok(json!({
            "templateID": template.id.as_str(), "buildID": build.id, "public": false,
            "names": [template.name], "aliases": [template.name], "tags": build.tags,
        }))
    }

    /// Whether a file is there, and the path of the URL for its upload.
    pub(super) fn upload_path(&self, key: &Key, template: &str, hash: &str) -> Result<Value, Failure> {
        let template = self.registry.built(key, template)?;
        if !uploads::is_hash(hash) {
            return Err(Failure::invalid("invalid hash: expected 64 lower-case hexadecimal digits"));
        }
        let mut claim = UploadClaim {
            template: template.id.as_str().to_owned(),
            hash: hash.to_owned(),
            until: seconds() + UPLOAD_WITHIN.as_secs(),
            signature: String::new(),
            length: 0,
        };
        claim.signature = self.credentials.tokens.sign(&signed(&claim));
        let UploadClaim { template, hash, until, signature, .. } = claim;
        let path = format!("/uploads/{template}/{hash}?until={until}&signature={signature}");
        Ok(json!({ "present": self.registry.builds.uploads.has(&key.id, &hash), "path": path }))
    }

    /// Returns the owner of an upload, and a socket that takes its bytes.
    pub(super) fn begin_upload(self: Arc<Self>, claim: &UploadClaim) -> Result<(KeyId, OwnedFd), Failure> {
        let denied = || Failure::new(Why::Forbidden, "the URL of the upload is not valid, or not any more");
        let is_short = claim.template.len() <= 64 && claim.signature.len() <= 64 && uploads::is_hash(&claim.hash);
        if !is_short || !self.credentials.tokens.has_signed(&signed(claim), &claim.signature) || claim.until < seconds()
        {
            return Err(denied());
        }
        let template = self.registry.builds.templates.get(&claim.template).ok_or_else(denied)?;
        let failed = |error: std::io::Error| Failure::internal(format!("cannot receive the upload: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        theirs.set_nonblocking(true).map_err(failed)?;
        let (owner, hash, length) = (template.owner.clone(), claim.hash.clone(), claim.length);
        // Checked before the client sends anything.
        let (begun, has_begun) = std::sync::mpsc::sync_channel(1);
        let pause = Duration::from_secs(self.config.body_timeout);
        tokio::task::spawn_blocking(move || {
            let receiving = self.registry.builds.uploads.begin(&owner, length);
            let receiving = match receiving {
                Ok(receiving) => receiving,
                Err(error) => return drop(begun.send(Err(error))),
            };
            if begun.send(Ok(())).is_ok()
                && let Err(error) = receiving.receive(&hash, ours, pause)
            {
                tracing::debug!(%error, "an upload was not kept");
            }
        });
        let begun = tokio::task::block_in_place(|| has_begun.recv());
        begun.map_err(|_| Failure::internal("the upload was not begun"))?.map_err(|error| {
            let why = match &error {
                uploads::UploadError::Full(_) | uploads::UploadError::Busy => Why::Quota,
                uploads::UploadError::Io(_) => Why::Internal,
            };
            Failure::new(why, error.to_string())
        })?;
        Ok((template.owner, theirs.into()))
    }

    /// Starts a build, which runs on its own thread: it reads uploads, and blocks meanwhile.
    pub(super) fn start_build(
        self: &Arc<Self>,
        key: &Key,
        template: &str,
        build: &str,
        spec: BuildSpec,
    ) -> Result<Value, Failure> {
        let job = self.registry.start_build(key, template, build, spec)?;
        let (launcher, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
        let thread = std::thread::Builder::new().name("build".to_owned());
        let spawned = thread.spawn(move || runtime.block_on(launcher.registry.run_build(job)));
        if let Err(error) = spawned {
            let message = format!("cannot start the build: {error}");
            self.registry.abandon_build(key, template, build, &message)?;
            return Err(Failure::internal(message));
        }
        Ok(Value::Null)
    }

    pub(super) fn build_status(
        &self,
        key: &Key,
        template: &str,
        build: &str,
        query: BuildQuery,
    ) -> Result<Value, Failure> {
        let limit = query.limit.unwrap_or(MAX_LINES);
        if limit > MAX_LINES {
            return Err(Failure::invalid(format!("invalid limit: must be at most {MAX_LINES}")));
        }
        // The log first is not needed: a client reads on after the end until a page is empty.
        let (template, build) = self.registry.build_of(key, template, build)?;
        let lines = self.registry.builds.lines(&build.id);
        let page: Vec<Value> = lines.iter().skip(query.logs_offset).take(limit).map(line).collect();
        let mut status = json!({
            "templateID": template.id.as_str(), "buildID": build.id, "status": build.status, "logs": [], "logEntries": page,
        });
        if let Some(reason) = &build.reason {
            status["reason"] = json!({ "message": reason.message });
            if let Some(step) = &reason.step {
                status["reason"]["step"] = json!(step);
                let of_step = lines.iter().filter(|line| line.step.as_ref() == Some(step));
                let mut last: Vec<Value> = of_step.rev().take(20).map(line).collect();
                last.reverse();
                status["reason"]["logEntries"] = json!(last);
            }
        }
        Ok(status)
    }

    pub(super) fn show_template(&self, key: &Key, id: &str) -> Result<Value, Failure> {
        let template = self.registry.built(key, id)?;
        let mut shown = template_of(&template);
        shown["builds"] = template.builds.iter().rev().map(build_row).collect();
        Ok(shown)
    }

    pub(super) fn template_tags(&self, key: &Key, id: &str) -> Result<Value, Failure> {
        let template = self.registry.built(key, id)?;
        let tags = template.tags.iter();
        let row = |(tag, named): (&String, &crate::templates::built::Tag)| json!({ "tag": tag, "buildID": named.build, "createdAt": at(named.created_at) });
        value(&tags.map(row).collect::<Vec<_>>())
    }
}
