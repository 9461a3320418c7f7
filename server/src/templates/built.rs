//! The templates that clients built, in memory as on disk: their builds, and the tags that name builds. Decides nothing about
//! machines.

use crate::{
    access::keys::KeyId,
    store::{Store, StoreError},
};
use sandboxvm_manager::SandboxName;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The tag of a build that its client gave none.
pub(crate) const DEFAULT_TAG: &str = "default";

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Its client has not started it.
    Waiting,
    Building,
    Ready,
    Error,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) message: String,
    /// `base`, the position of a step from 1, or `finalize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<String>,
}

/// What sandboxes are made from once a build is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Result {
    /// The manager's name of it.
    pub(crate) snapshot: SandboxName,
    pub(crate) user: String,
    /// Directory in which processes start.
    pub(crate) workdir: String,
    /// Environment, as `NAME=value`.
    pub(crate) env: Vec<String>,
}

/// One build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// A UUID.
    pub(crate) id: String,
    pub(crate) status: Status,
    /// The tags that it gets when it is ready.
    pub(crate) tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
    /// Unix time in milliseconds.
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    pub(crate) cpus: u32,
    /// MiB.
    pub(crate) memory: u64,
    /// MiB.
    pub(crate) disk: u64,
    /// Digest of the image that it begins with. The ready snapshots of that image count for its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Result>,
}

/// A tag of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub(crate) build: String,
    /// Unix time in milliseconds.
    pub(crate) created_at: u64,
}

/// A template that a client built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuiltTemplate {
    pub(crate) format: u32,
    pub(crate) id: SandboxName,
    pub(crate) owner: KeyId,
    pub(crate) name: String,
    /// Unix time in milliseconds.
    pub(crate) created_at: u64,
    pub(crate) tags: BTreeMap<String, Tag>,
    /// Oldest first.
    pub(crate) builds: Vec<Build>,
}

impl BuiltTemplate {
    pub(crate) fn build(&self, id: &str) -> Option<&Build> {
        self.builds.iter().find(|build| build.id == id)
    }

    pub(crate) fn build_mut(&mut self, id: &str) -> Option<&mut Build> {
        self.builds.iter_mut().find(|build| build.id == id)
    }

    /// True when a client means it by a name or ID without a tag.
    pub(crate) fn is_called(&self, asked: &str) -> bool {
        let name = asked.rsplit('/').next().unwrap_or(asked);
        self.id.as_str() == asked || self.name == name
    }

    /// The build that a tag or ID of a build names; the default one without either.
    pub(crate) fn ready(&self, which: Option<&str>) -> Option<(&Build, &Result)> {
        let by_tag = |tag: &str| self.tags.get(tag).and_then(|tag| self.build(&tag.build));
        let newest = || self.builds.iter().rfind(|build| build.status == Status::Ready);
        let build = match which {
            None => by_tag(DEFAULT_TAG).or_else(newest)?,
            Some(DEFAULT_TAG) => by_tag(DEFAULT_TAG).or_else(newest)?,
            Some(which) => by_tag(which).or_else(|| self.build(which))?,
        };
        build.result.as_ref().map(|result| (build, result))
    }

    /// Takes the builds out that nothing names any more: all but the newest `keep` failed ones, and ready ones without a tag
    /// that are older than the newest ready one.
    pub(crate) fn take_unnamed(&mut self, keep: usize) -> Vec<Build> {
        let newest_ready = self.builds.iter().rposition(|build| build.status == Status::Ready);
        let (mut failed, mut taken) = (0, Vec::new());
        for at in (0..self.builds.len()).rev() {
            let build = &self.builds[at];
            let is_tagged = self.tags.values().any(|tag| tag.build == build.id);
            let goes = match build.status {
                Status::Ready => !is_tagged && Some(at) != newest_ready,
                Status::Building => false,
                Status::Waiting | Status::Error => {
                    failed += 1;
                    failed > keep
                }
            };
            if goes {
                taken.push(self.builds.remove(at));
            }
        }
        taken
    }
}

/// Splits `name:tag`. An ID of a build is a tag here.
pub(crate) fn with_tag(asked: &str) -> (&str, Option<&str>) {
    match asked.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (asked, None),
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct BuiltTemplates {
    records: Store<BuiltTemplate>,
    by_id: Mutex<HashMap<SandboxName, BuiltTemplate>>,
}

impl BuiltTemplates {
    /// Reads what is on disk. A build that ran ended with the server before.
    pub(crate) fn open(directory: PathBuf, now: u64) -> std::result::Result<Self, StoreError> {
        let records: Store<BuiltTemplate> = Store::open(directory)?;
        let mut by_id = HashMap::new();
        for mut template in records.all()? {
            let mut is_changed = false;
            for build in template.builds.iter_mut().filter(|build| build.status == Status::Building) {
                build.status = Status::Error;
                build.updated_at = now;
                build.reason = Some(Reason { message: "the server was restarted during the build".into(), step: None });
                is_changed = true;
            }
            if is_changed {
                records.put(template.id.as_str(), &template)?;
            }
            by_id.insert(template.id.clone(), template);
        }
        Ok(Self { records, by_id: Mutex::new(by_id) })
    }

    /// A key's template, by ID or name.
    pub(crate) fn find(&self, owner: &KeyId, asked: &str) -> Option<BuiltTemplate> {
        self.lock().values().find(|template| template.owner == *owner && template.is_called(asked)).cloned()
    }

    /// Any key's, by ID.
    pub(crate) fn get(&self, id: &str) -> Option<BuiltTemplate> {
        self.lock().values().find(|template| template.id.as_str() == id).cloned()
    }

    /// A key's, newest first.
    pub(crate) fn of(&self, owner: &KeyId) -> Vec<BuiltTemplate> {
        let mut own: Vec<_> = self.lock().values().filter(|template| template.owner == *owner).cloned().collect();
        own.sort_by_key(|template| std::cmp::Reverse(template.created_at));
        own
    }

    /// The snapshots that all builds need.
    pub(crate) fn snapshots(&self, owner: Option<&KeyId>) -> Vec<SandboxName> {
        let all = self.lock();
        let own = all.values().filter(|template| owner.is_none_or(|owner| template.owner == *owner));
        own.flat_map(|template| &template.builds)
            .filter_map(|build| build.result.as_ref())
            .map(|result| result.snapshot.clone())
            .collect()
    }

    /// The images that a key's builds begin with, or those of all keys.
    pub(crate) fn images(&self, owner: Option<&KeyId>) -> BTreeSet<String> {
        let all = self.lock();
        let own = all.values().filter(|template| owner.is_none_or(|owner| template.owner == *owner));
        own.flat_map(|template| &template.builds).filter_map(|build| build.image.clone()).collect()
    }

    /// The images that only this key's builds begin with.
    pub(crate) fn images_of_only(&self, owner: &KeyId) -> Vec<String> {
        let all = self.lock();
        let of = |is_own: bool| {
            let templates = all.values().filter(move |template| (template.owner == *owner) == is_own);
            templates
                .flat_map(|template| &template.builds)
                .filter_map(|build| build.image.clone())
                .collect::<BTreeSet<_>>()
        };
        of(true).difference(&of(false)).cloned().collect()
    }

    /// Writes a new one down.
    pub(crate) fn add(&self, template: BuiltTemplate) -> std::result::Result<(), StoreError> {
        self.records.put_durably(template.id.as_str(), &template)?;
        self.lock().insert(template.id.clone(), template);
        Ok(())
    }

    /// Changes one in one step, if it is there.
    pub(crate) fn change<T>(
        &self,
        id: &SandboxName,
        change: impl FnOnce(&mut BuiltTemplate) -> T,
    ) -> std::result::Result<Option<T>, StoreError> {
        let mut all = self.lock();
        let Some(template) = all.get_mut(id) else { return Ok(None) };
        let mut changed = template.clone();
        let result = change(&mut changed);
        self.records.put_durably(id.as_str(), &changed)?;
        *template = changed;
        Ok(Some(result))
    }

    /// Forgets one.
    pub(crate) fn remove(&self, id: &SandboxName) -> std::result::Result<(), StoreError> {
        self.records.remove_durably(id.as_str())?;
        self.lock().remove(id);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxName, BuiltTemplate>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FORMAT;

    fn build(id: &str, status: Status) -> Build {
        let result = (status == Status::Ready).then(|| Result {
            snapshot: SandboxName::try_from(format!("made-{id}")).unwrap(),
            user: "user".into(),
            workdir: "/home/user".into(),
            env: vec![],
        });
        let (created_at, updated_at) = (1, 1);
        let (tags, reason, image, cpus, memory, disk) = (vec![], None, None, 1, 512, 1024);
        Build { id: id.into(), status, tags, reason, created_at, updated_at, cpus, memory, disk, image, result }
    }

    fn template(builds: Vec<Build>) -> BuiltTemplate {
        BuiltTemplate {
            format: FORMAT,
            id: SandboxName::try_from("tpl-1".to_owned()).unwrap(),
            owner: KeyId("1".into()),
            name: "mine".into(),
            created_at: 1,
            tags: BTreeMap::new(),
            builds,
        }
    }

    #[test]
    fn build_that_ran_when_the_server_ended_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let all = BuiltTemplates::open(dir.path().join("x"), 7).unwrap();
        all.add(template(vec![build("a", Status::Ready), build("b", Status::Building), build("c", Status::Waiting)]))
            .unwrap();
        let all = BuiltTemplates::open(dir.path().join("x"), 7).unwrap();
        let found = all.find(&KeyId("1".into()), "ns/mine").unwrap();
        let statuses: Vec<_> = found.builds.iter().map(|build| build.status).collect();
        assert_eq!(statuses, [Status::Ready, Status::Error, Status::Waiting]);
        assert!(found.builds[1].reason.as_ref().unwrap().message.contains("restarted"));
        assert!(all.find(&KeyId("2".into()), "mine").is_none() && all.find(&KeyId("2".into()), "tpl-1").is_none());
    }

    #[test]
    fn tags_and_ids_name_builds() {
        let mut template =
            template(vec![build("a", Status::Ready), build("b", Status::Ready), build("c", Status::Error)]);
        template.tags.insert("v1".into(), Tag { build: "a".into(), created_at: 1 });
        let named = |which| template.ready(which).map(|(build, _)| build.id.as_str());
        assert_eq!((named(Some("v1")), named(None), named(Some("b"))), (Some("a"), Some("b"), Some("b")));
        assert_eq!((named(Some("c")), named(Some("v2"))), (None, None));
        assert_eq!(with_tag("ns/mine:v1"), ("ns/mine", Some("v1")));
        assert_eq!(with_tag("mine"), ("mine", None));
    }

    #[test]
    fn builds_without_a_tag_make_place_for_newer_ones() {
        let mut template = template(vec![
            build("a", Status::Ready),
            build("b", Status::Ready),
            build("e", Status::Error),
            build("f", Status::Error),
            build("c", Status::Ready),
        ]);
        template.tags.insert("v1".into(), Tag { build: "a".into(), created_at: 1 });
        let taken: Vec<_> = template.take_unnamed(1).into_iter().map(|build| build.id).collect();
        assert_eq!(taken, ["e", "b"]);
        assert_eq!(template.builds.len(), 3);
    }
}
