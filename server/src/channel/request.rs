//! What the front may ask of the launcher. All of it is data of a client: the launcher checks every value again.

use crate::{
    access::{keys::KeyId, signature::Claim},
    channel::opening::Opening,
    config::Config,
    metering::{ends::How, traffic::Passed},
    registry::{
        network::{egress::Egress, ingress::Ingress},
        record::OnTimeout,
    },
    volumes::WantedMount,
};
use sandboxvm_build::e2b::TemplateStep;
use sandboxvm_manager::{SandboxId, volume_content};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A request with what continues its trace.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    /// `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<String>,
    pub(crate) request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Request {
    /// [`Setup`], and the listeners. Answered once.
    Setup,
    /// The front serves.
    Serving,
    /// The key with this secret, or nothing.
    Authenticate { secret: String },
    /// Does something for the key with this secret.
    Operate { secret: String, operation: Operation },
    /// May a request reach a sandbox? [`Verdict`].
    Knock(Knock),
    /// The same, and opens it: the ID of this request is the handle of the sandbox from then on. The tail is the body of a
    /// request that the launcher sends itself.
    Reach(Knock),
    /// A call of the manager's library about the guest of an open sandbox; it is the tail of the frame.
    Call { handle: u64 },
    /// Like [`Self::Call`], without an answer.
    Tell { handle: u64 },
    /// What the request asked for has begun. Without an answer.
    Begun { handle: u64 },
    /// Closes a sandbox. Without an answer.
    Release { handle: u64 },
    /// Gives up a request. Without an answer.
    Cancel { request: u64 },
    /// The last sample of an open sandbox.
    Sample { handle: u64 },
    /// The environment of an open sandbox.
    Environment { handle: u64 },
    /// Begins an upload: the answer is [`KeyId`] of its owner, with a socket for the bytes.
    Upload(UploadClaim),
    /// Serves a request about files of a volume: the answer is [`KeyId`] of its owner, with the connection on which the
    /// body and the answer follow.
    Content(Box<ContentClaim>),
    /// The sandbox whose token signed a claim: [`Signer`].
    FindSigner(Claim),
    /// Does a sandbox run?
    Runs { id: SandboxId },
    /// Which of these sandboxes are there?
    Known { ids: Vec<SandboxId> },
    /// [`Figures`].
    Measure,
}

/// What the front serves with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Certificate chain and key, PEM.
    pub(crate) tls: Option<(String, String)>,
}

/// What a client asks of the control plane.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Operation {
    Create(Create),
    Connect {
        id: String,
        timeout: u64,
        memory: Option<bool>,
    },
    Resume {
        id: String,
        timeout: u64,
        memory: Option<bool>,
    },
    Pause {
        id: String,
        memory: Option<bool>,
        healthy: bool,
    },
    SetTimeout {
        id: String,
        timeout: u64,
    },
    SetNetwork {
        id: String,
        egress: Egress,
        allow_internet_access: Option<bool>,
    },
    Extend {
        id: String,
        timeout: u64,
    },
    Fork {
        id: String,
        count: u32,
        timeout: u64,
    },
    Kill {
        id: String,
    },
    RevokeTokens {
        id: String,
    },
    /// Is it there?
    Find {
        id: String,
    },
    Show {
        id: String,
    },
    List(ListFilter),
    Snapshot {
        id: String,
        name: Option<String>,
        memory: Option<bool>,
    },
    Snapshots(SnapshotFilter),
    RemoveSnapshot {
        id: String,
    },
    Templates,
    Alias {
        alias: String,
    },
    RequestBuild {
        name: String,
        tags: Vec<String>,
        cpus: Option<u32>,
        memory: Option<u64>,
    },
    /// Path and query of the URL for an upload.
    UploadPath {
        template: String,
        hash: String,
    },
    StartBuild {
        template: String,
        build: String,
        spec: Box<BuildSpec>,
    },
    BuildStatus {
        template: String,
        build: String,
        query: BuildQuery,
    },
    ShowTemplate {
        id: String,
    },
    TemplateTags {
        id: String,
    },
    AssignTags {
        target: String,
        tags: Vec<String>,
    },
    RemoveTags {
        name: String,
        tags: Vec<String>,
    },
    Samples {
        id: String,
        start: Option<u64>,
        end: Option<u64>,
    },
    LastSamples {
        ids: Vec<String>,
    },
    Logs {
        id: String,
        query: LogsQuery,
    },
    CreateVolume {
        name: String,
    },
    Volumes,
    ShowVolume {
        id: String,
    },
    RemoveVolume {
        id: String,
    },
}

impl Operation {
    /// True if it makes, changes and ends nothing.
    pub(crate) fn looks_only(&self) -> bool {
        matches!(
            self,
            Self::Find { .. }
                | Self::Show { .. }
                | Self::List(_)
                | Self::Snapshots(_)
                | Self::Templates
                | Self::Alias { .. }
                | Self::BuildStatus { .. }
                | Self::ShowTemplate { .. }
                | Self::TemplateTags { .. }
                | Self::Samples { .. }
                | Self::LastSamples { .. }
                | Self::Logs { .. }
                | Self::Volumes
                | Self::ShowVolume { .. }
        )
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Create {
    pub(crate) template: String,
    pub(crate) timeout: u64,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) auto_resume: bool,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) env: Vec<String>,
    pub(crate) secure: bool,
    pub(crate) public_traffic: bool,
    pub(crate) mask_request_host: Option<String>,
    pub(crate) https_ports: Vec<u64>,
    pub(crate) allow_internet_access: Option<bool>,
    pub(crate) egress: Egress,
    pub(crate) volume_mounts: Vec<WantedMount>,
}

/// What a template is built from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildSpec {
    pub(crate) from_image: Option<String>,
    pub(crate) from_template: Option<String>,
    pub(crate) login: Option<RegistryLogin>,
    pub(crate) force: bool,
    pub(crate) steps: Vec<TemplateStep>,
    pub(crate) start_cmd: Option<String>,
    pub(crate) ready_cmd: Option<String>,
}

/// Credentials for the registry of an image.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RegistryLogin {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryLogin(..)")
    }
}

/// Which part of a build's log.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BuildQuery {
    /// Lines to skip.
    pub(crate) logs_offset: usize,
    /// Maximum number of lines.
    pub(crate) limit: Option<usize>,
}

/// What the URL of an upload says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UploadClaim {
    pub(crate) template: String,
    pub(crate) hash: String,
    /// Unix time in seconds.
    pub(crate) until: u64,
    pub(crate) signature: String,
    /// Bytes that will be sent.
    pub(crate) length: u64,
}

/// A request about files of a volume, and what its client presents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContentClaim {
    /// ID of the volume.
    pub(crate) id: String,
    /// Its token.
    pub(crate) token: String,
    pub(crate) request: volume_content::Request,
}

impl fmt::Debug for ContentClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentClaim").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One page of a list: so many rows behind the one with the token.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct PageOf {
    pub(crate) limit: Option<usize>,
    pub(crate) token: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ListFilter {
    pub(crate) states: Option<BTreeSet<String>>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) template: Option<String>,
    /// Unix time in milliseconds.
    pub(crate) started_after: u64,
    pub(crate) oldest_first: bool,
    /// All of it unless set.
    pub(crate) page: Option<PageOf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct SnapshotFilter {
    pub(crate) name: Option<String>,
    pub(crate) sandbox: Option<String>,
    pub(crate) page: PageOf,
}

/// Rows, and the token of the page behind them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Rows {
    pub(crate) rows: serde_json::Value,
    pub(crate) next: Option<String>,
}

/// A sandbox that was connected to or resumed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Resumed {
    /// False if it was running.
    pub(crate) was_paused: bool,
    pub(crate) sandbox: serde_json::Value,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// Oldest first.
    #[default]
    Forward,
    /// Newest first.
    Backward,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    #[default]
    Debug,
    /// What every line of ours has.
    Info,
    Warn,
    Error,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct LogsQuery {
    pub(crate) limit: Option<usize>,
    /// Where to begin, in milliseconds since 1970; what is as old itself is in the answer.
    #[serde(alias = "start")]
    pub(crate) cursor: Option<u64>,
    #[serde(default)]
    pub(crate) direction: Direction,
    /// The least.
    #[serde(default)]
    pub(crate) level: Level,
    /// What the message or one of its fields has in it.
    pub(crate) search: Option<String>,
}

/// What a request to a sandbox presents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Knock {
    pub(crate) id: SandboxId,
    pub(crate) port: u16,
    /// `X-Access-Token`.
    pub(crate) token: Option<String>,
    /// `E2b-Traffic-Access-Token`.
    pub(crate) traffic_token: Option<String>,
    /// It is about a file.
    pub(crate) is_file: bool,
    pub(crate) claim: Option<Claim>,
    /// Clients send it without a token although the port wants one.
    pub(crate) opening: Option<Opening>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Allowed(Facts),
    /// It would be allowed, and the sandbox is not there.
    NoSandbox,
    Denied(Denied),
}

/// What the front knows of a sandbox for a request that may reach it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) owner: KeyId,
    /// Whose commands and files these are unless a request says otherwise.
    pub(crate) user: String,
    /// Where this user's processes start unless a request says otherwise.
    pub(crate) workdir: Option<String>,
    pub(crate) ingress: Ingress,
    /// The launcher sends this request itself: its body is to be the tail of [`Request::Reach`].
    pub(crate) is_sent_by_launcher: bool,
}

/// Why a request may not reach a sandbox. Says nothing of whether the sandbox is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Denied {
    NoToken,
    WrongToken,
    WrongFileToken,
    /// A request about a file has neither a token nor a claim.
    NoClaim,
    WrongSignature,
    Expired,
    NoTrafficToken,
    WrongTrafficToken,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Signer {
    Found(SandboxId),
    Denied(Denied),
}

/// What `/metrics` and `/readiness` say of sandboxes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) running: usize,
    pub(crate) paused: usize,
    pub(crate) armed: BTreeMap<String, usize>,
    pub(crate) pools_are_warm: bool,
    pub(crate) ends: Vec<(How, u64)>,
    pub(crate) traffic: Passed,
}
