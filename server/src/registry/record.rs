//! The record of a sandbox, which is on disk before a client is answered.

use super::network::{egress::Egress, ingress::Ingress};
use crate::{access::keys::KeyId, templates::TemplateId, volumes::MountedVolume};
use sandboxvm_manager::{SandboxId, SandboxName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::SystemTime};

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) id: SandboxId,
    /// The key that owns it. Other keys get 404, as for a sandbox that does not exist.
    pub(crate) owner: KeyId,
    pub(crate) template: TemplateId,
    /// The configured template that it, or what its snapshot is of, was made from: its limits are this sandbox's.
    #[serde(default)]
    pub(crate) origin: Option<TemplateId>,
    #[serde(with = "unix_ms")]
    pub(crate) started_at: SystemTime,
    /// When it expires.
    #[serde(with = "unix_ms")]
    pub(crate) end_at: SystemTime,
    pub(crate) on_timeout: OnTimeout,
    /// A request to a paused one resumes it.
    pub(crate) auto_resume: bool,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Commands and files want the sandbox's token.
    pub(crate) secure: bool,
    /// How often its tokens were revoked: which of them open it.
    #[serde(default)]
    pub(crate) token_generation: u32,
    /// Its ports answer without a token.
    pub(crate) public_traffic: bool,
    /// How they are reached.
    #[serde(default)]
    pub(crate) ingress: Ingress,
    /// What its client said of the network as a whole.
    pub(crate) allow_internet_access: Option<bool>,
    /// What its client said of its way out.
    #[serde(default)]
    pub(crate) egress: Egress,
    /// Whose commands and files these are unless a request says otherwise.
    pub(crate) user: String,
    /// Where this user's processes start unless a request says otherwise; in the user's home where it is not stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) workdir: Option<String>,
    /// The volumes that it has mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<MountedVolume>,
    pub(crate) phase: Phase,
}

/// What happens when a sandbox expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnTimeout {
    Kill,
    Pause,
    /// Without memory.
    PauseFilesystem,
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Running,
    /// On disk alone: all of it is in this snapshot, and no process or memory of it is left.
    Paused {
        snapshot: SandboxName,
    },
    /// Paused without memory: its disk is all there is, and it boots when it is resumed.
    PausedFilesystem,
}

impl Record {
    pub(crate) fn is_paused(&self) -> bool {
        matches!(self.phase, Phase::Paused { .. } | Phase::PausedFilesystem)
    }

    /// A request may wake it: what has to boot would not have what the request is for.
    pub(super) fn wakes(&self) -> bool {
        self.auto_resume && matches!(self.phase, Phase::Paused { .. })
    }
}

mod unix_ms {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::{Duration, SystemTime};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(crate::store::unix_millis(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let ms = u64::deserialize(deserializer)?;
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_millis(ms))
            .ok_or_else(|| serde::de::Error::custom("a time out of range"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::FORMAT;
    use std::time::Duration;

    pub(crate) fn example(id: &str) -> Record {
        Record {
            format: FORMAT,
            id: SandboxId::try_from(id.to_owned()).unwrap(),
            owner: KeyId("0123456789ab".into()),
            template: TemplateId("base".into()),
            origin: Some(TemplateId("base".into())),
            started_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            end_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_300_123),
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
            metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            secure: true,
            token_generation: 0,
            public_traffic: true,
            ingress: Ingress::default(),
            allow_internet_access: None,
            egress: Egress::default(),
            user: "user".into(),
            workdir: None,
            volumes: Vec::new(),
            phase: Phase::Running,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let snapshot = SandboxName::try_from("paused-abcdefgh".to_owned()).unwrap();
        let record = Record { phase: Phase::Paused { snapshot }, ..example("abcdefgh") };
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""phase":{"paused":{"snapshot":"paused-abcdefgh"}}"#), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        // As servers before wrote it.
        let older = text.replace(r#""token_generation":0,"#, "").replace(r#""egress":{},"#, "");
        assert!(!older.contains("token_generation") && !older.contains("egress"), "{older}");
        assert_eq!(serde_json::from_str::<Record>(&older).unwrap(), record);
    }
}
