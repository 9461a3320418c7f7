//! What keys ask for: each operation with the key's own sandboxes, and within the bounds of the API.

use super::{Launcher, paging::page, views};
use crate::{
    access::keys::Key,
    channel::{
        failure::{Failure, Why},
        request::{Create, ListFilter, Operation, Resumed, Rows},
    },
    metering::samples::Sample,
    registry::{NewSandbox, entry::Entry, lifecycle::Back, network::ingress::Ingress},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Of all keys and values of a sandbox's metadata.
const MAX_METADATA: usize = 64 << 10;
/// Of a sandbox's environment, with [`EACH`] for each variable.
const MAX_ENVIRONMENT: usize = 1 << 20;
/// What a variable takes besides its text.
const EACH: usize = 32;
/// Longest a key could be.
const MAX_KEY: usize = 256;
/// Maximum length of a list; that of a page is less.
const MAX_LIST: usize = 48 << 20;
/// As many as clients may ask for at a time.
const MAX_FORKS: u32 = 100;
/// Volumes of one sandbox.
const MAX_VOLUMES: usize = 16;
/// As E2B's API has it.
const MAX_ASKED: usize = 100;

impl Launcher {
    /// The key with this secret, if it is valid.
    pub(super) fn key(&self, secret: &str) -> Result<Option<Key>, Failure> {
        if secret.len() > MAX_KEY {
            return Ok(None);
        }
        self.credentials.keys.check(secret.as_bytes(), SystemTime::now()).map_err(|error| {
            tracing::error!(%error, "cannot check API keys");
            Failure::internal("cannot check API keys; see the log of the server")
        })
    }

    /// Does what the key with this secret asks for.
    pub(super) async fn operate(self: &Arc<Self>, secret: &str, operation: Operation) -> Result<Value, Failure> {
        let key = self.key(secret)?.ok_or_else(|| Failure::new(Why::Unauthorized, "the API key is not valid"))?;
        if key.limits.read_only && !operation.looks_only() {
            return Err(Failure::new(Why::Forbidden, "this API key is read-only"));
        }
        if let Operation::StartBuild { template, build, spec } = operation {
            return self.start_build(&key, &template, &build, *spec);
        }
        self.operate_as(&key, operation).await
    }

    async fn operate_as(&self, key: &Key, operation: Operation) -> Result<Value, Failure> {
        let registry = &self.registry;
        match operation {
            Operation::Create(wanted) => {
                let made = registry.create(key, self.new_sandbox(wanted)?).await?;
                value(&views::created(self, &made))
            }
            Operation::Connect { id, timeout, memory } => {
                let entry = self.find(key, &id)?;
                let (timeout, back) = (self.timeout(timeout)?, Back::with_memory(memory));
                self.resumed(registry.connect(&entry, timeout, back).await?, &entry)
            }
            Operation::Resume { id, timeout, memory } => {
                let entry = self.find(key, &id)?;
                let (timeout, back) = (self.timeout(timeout)?, Back::with_memory(memory));
                self.resumed(registry.resume(&entry, timeout, back).await?, &entry)
            }
            Operation::Pause { id, memory, healthy } => {
                let entry = self.find(key, &id)?;
                value(&registry.pause(key, &entry, Back::with_memory(memory), healthy).await?)
            }
            Operation::SetTimeout { id, timeout } => {
                let timeout = self.timeout(timeout)?;
                let entry = self.find(key, &id)?;
                value(&registry.set_timeout(&entry, timeout).await?)
            }
            Operation::SetNetwork { id, egress, allow_internet_access } => {
                let entry = self.find(key, &id)?;
                value(&registry.set_network(&entry, egress, allow_internet_access).await?)
            }
            Operation::Extend { id, timeout } => {
                let timeout = self.timeout(timeout)?;
                let entry = self.find(key, &id)?;
                value(&registry.extend(&entry, timeout).await?)
            }
            Operation::Fork { id, count, timeout } => self.fork(key, &id, count, timeout).await,
            Operation::Kill { id } => value(&registry.kill(&*self.find(key, &id)?).await?),
            Operation::RevokeTokens { id } => {
                let entry = self.find(key, &id)?;
                registry.revoke_tokens(&entry).await?;
                value(&views::created(self, &entry))
            }
            Operation::Find { id } => self.find(key, &id).map(|_| Value::Null),
            Operation::Show { id } => {
                let entry = self.find(key, &id)?;
                value(&views::detail(self, key, &entry)?.ok_or_else(|| Failure::no_sandbox(&id))?)
            }
            Operation::List(filter) => self.listed(key, &filter),
            Operation::Snapshot { id, name, memory } => self.snapshot(key, &id, name, memory).await,
            Operation::Snapshots(filter) => self.snapshots(key, &filter),
            Operation::RemoveSnapshot { id } => self.remove_snapshot(key, &id),
            Operation::Templates => self.templates(key),
            Operation::Alias { alias } => {
                let (id, public) = registry.alias(key, &alias)?;
                Ok(json!({ "templateID": id, "public": public }))
            }
            Operation::RequestBuild { name, tags, cpus, memory } => self.request_build(key, &name, &tags, cpus, memory),
            Operation::UploadPath { template, hash } => self.upload_path(key, &template, &hash),
            // Begun by `operate`.
            Operation::StartBuild { .. } => Err(Failure::internal("a build was not started")),
            Operation::BuildStatus { template, build, query } => self.build_status(key, &template, &build, query),
            Operation::ShowTemplate { id } => self.show_template(key, &id),
            Operation::TemplateTags { id } => self.template_tags(key, &id),
            Operation::AssignTags { target, tags } => {
                let build = registry.assign_tags(key, &target, &tags)?;
                Ok(json!({ "buildID": build, "tags": tags }))
            }
            Operation::RemoveTags { name, tags } => value(&registry.remove_tags(key, &name, &tags)?),
            Operation::Samples { id, start, end } => self.samples(key, &id, start, end),
            Operation::CreateVolume { name } => self.create_volume(key, &name),
            Operation::Volumes => self.list_volumes(key),
            Operation::ShowVolume { id } => self.show_volume(key, &id),
            Operation::RemoveVolume { id } => value(&registry.remove_volume(key, &id).await?),
            Operation::LastSamples { ids } => self.last_samples(key, &ids),
            Operation::Logs { id, query } => {
                let entry = self.find(key, &id)?;
                value(&self.logs(&entry, query).await?)
            }
        }
    }

    async fn fork(&self, key: &Key, id: &str, count: u32, timeout: u64) -> Result<Value, Failure> {
        if !(1..=MAX_FORKS).contains(&count) {
            return Err(Failure::invalid(format!("invalid count: must be between 1 and {MAX_FORKS}")));
        }
        let timeout = self.timeout(timeout)?;
        let entry = self.find(key, id)?;
        let copies = self.registry.fork(key, &entry, count, timeout).await?;
        value(&copies.iter().map(|copy| views::created(self, copy)).collect::<Vec<_>>())
    }

    /// Returns the samples of a sandbox between two times, in seconds since the Unix epoch.
    fn samples(&self, key: &Key, id: &str, start: Option<u64>, end: Option<u64>) -> Result<Value, Failure> {
        let entry = self.find(key, id)?;
        self.registry.sample(&entry)?;
        let at = |seconds: Option<u64>| seconds.map(|s| UNIX_EPOCH + Duration::from_secs(s.min(1 << 40)));
        let (start, end) = (at(start), at(end));
        let is_within =
            |sample: &Sample| start.is_none_or(|start| sample.at >= start) && end.is_none_or(|end| sample.at <= end);
        let samples: Vec<Sample> = entry.samples.all().into_iter().filter(is_within).collect();
        value(&samples)
    }

    pub(super) fn find(&self, key: &Key, id: &str) -> Result<Arc<Entry>, Failure> {
        Ok(self.registry.find(&key.id, id)?)
    }

    /// Seconds as a client states them.
    fn timeout(&self, seconds: u64) -> Result<Duration, Failure> {
        let longest = self.config.longest_timeout;
        if seconds > longest {
            return Err(Failure::invalid(format!(
                "timeout: {seconds} s is longer than the {longest} s that a sandbox can have"
            )));
        }
        Ok(Duration::from_secs(seconds))
    }

    fn new_sandbox(&self, wanted: Create) -> Result<NewSandbox, Failure> {
        let ingress = Ingress::new(wanted.mask_request_host, &wanted.https_ports)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        if wanted.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_METADATA {
            return Err(Failure::invalid(format!("invalid metadata: must have at most {MAX_METADATA} bytes")));
        }
        if wanted.env.iter().map(|entry| entry.len() + EACH).sum::<usize>() > MAX_ENVIRONMENT {
            return Err(Failure::invalid(format!(
                "invalid environment: must have at most {MAX_ENVIRONMENT} bytes, with {EACH} for each variable"
            )));
        }
        if wanted.volume_mounts.len() > MAX_VOLUMES {
            return Err(Failure::invalid(format!("volumeMounts: a sandbox has at most {MAX_VOLUMES} volumes")));
        }
        Ok(NewSandbox {
            template: wanted.template,
            timeout: self.timeout(wanted.timeout)?,
            on_timeout: wanted.on_timeout,
            auto_resume: wanted.auto_resume,
            metadata: wanted.metadata,
            env: wanted.env,
            secure: wanted.secure,
            public_traffic: wanted.public_traffic,
            ingress,
            allow_internet_access: wanted.allow_internet_access,
            egress: wanted.egress,
            volume_mounts: wanted.volume_mounts,
        })
    }

    fn resumed(&self, was_paused: bool, entry: &Entry) -> Result<Value, Failure> {
        value(&Resumed { was_paused, sandbox: value(&views::created(self, entry))? })
    }

    fn listed(&self, key: &Key, filter: &ListFilter) -> Result<Value, Failure> {
        let after = UNIX_EPOCH.checked_add(Duration::from_millis(filter.started_after));
        let matches = |entry: &Arc<Entry>| {
            let record = entry.record();
            filter.states.as_ref().is_none_or(|states| states.contains(views::state(&record)))
                && filter.metadata.iter().all(|(key, value)| record.metadata.get(key) == Some(value))
                && filter.template.as_ref().is_none_or(|template| record.template.0 == *template)
                && after.is_some_and(|after| record.started_at >= after)
        };
        let mut found: Vec<Arc<Entry>> = self.registry.list(&key.id).into_iter().filter(matches).collect();
        if filter.oldest_first {
            found.reverse();
        }
        let (next, page) = match &filter.page {
            None => (None, &found[..]),
            Some(asked) => page(&found, asked, |entry| entry.id.as_str())?,
        };
        // Without those that are gone meanwhile.
        let (mut rows, mut length) = (Vec::new(), 0);
        for row in page.iter().filter_map(|entry| views::listed(self, entry).transpose()) {
            let row = value(&row?)?;
            length += row.to_string().len();
            if length > MAX_LIST {
                let most = MAX_LIST >> 20;
                return Err(Failure::invalid(format!("the list is longer than {most} MiB; use GET /v2/sandboxes")));
            }
            rows.push(row);
        }
        value(&Rows { rows: rows.into(), next })
    }

    fn last_samples(&self, key: &Key, ids: &[String]) -> Result<Value, Failure> {
        if ids.len() > MAX_ASKED {
            return Err(Failure::invalid(format!("invalid sandbox_ids: must have at most {MAX_ASKED} entries")));
        }
        let mut all = Map::new();
        for id in ids {
            let Ok(entry) = self.registry.find(&key.id, id) else { continue };
            self.registry.sample(&entry)?;
            if let Some(last) = entry.samples.last() {
                all.insert(id.clone(), value(&last)?);
            }
        }
        Ok(Value::Object(all))
    }
}

pub(super) fn value(of: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(of).map_err(|error| Failure::internal(format!("cannot encode an answer: {error}")))
}
