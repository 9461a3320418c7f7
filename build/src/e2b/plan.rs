//! From the steps of a client to what is executed, with a key for the state after each step. Executes
//! nothing. Texts are bounded: a short list of steps may not expand to any size.

use crate::{
    dockerfile::expand_document,
    key::{Key, KeyBuilder},
    plan::joined,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Maximum number of steps of a template.
pub const MAX_STEPS: usize = 512;
/// Maximum size in bytes of the environment of a template.
const MAX_ENVIRONMENT: usize = 128 << 10;
/// Length of the hash of an upload, in hexadecimal digits.
const HASH_DIGITS: usize = 64;
/// The user of a template whose steps name none. It is made if the image does not have it.
const DEFAULT_USER: &str = "user";

/// A step as the client sends it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateStep {
    /// `RUN`, `COPY`, `ENV`, `WORKDIR` or `USER`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Arguments; their meaning depends on the kind.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Hash of the files of `COPY`, which names their upload.
    #[serde(default)]
    pub files_hash: Option<String>,
    /// Whether this step and those after it are executed even if their result is known.
    #[serde(default)]
    pub force: Option<bool>,
}

/// What processes of a machine have unless they state something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// User.
    pub user: String,
    /// Working directory: absolute, or relative to the home of the user. Empty for that home.
    pub workdir: String,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
}

impl Setting {
    /// Returns the setting in which the steps above an image begin. The environment of an image is
    /// hostile: what no process could have is left out.
    #[must_use]
    pub fn of_image(mut env: Vec<String>) -> Self {
        let mut left = MAX_ENVIRONMENT;
        env.retain(|entry| {
            let is_variable = entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
            let fits = left > entry.len() && is_variable && !entry.contains('\0');
            left -= if fits { entry.len() + 1 } else { 0 };
            fits
        });
        Self { user: DEFAULT_USER.into(), workdir: String::new(), env }
    }
}

/// What to plan.
#[derive(Debug, Clone)]
pub struct PlanRequest<'a> {
    /// Whose states may be used and are kept.
    pub owner: &'a str,
    /// What the template begins with, such as the digest of an image. Another text is another state.
    pub origin: &'a str,
    /// The setting at its beginning.
    pub setting: Setting,
    /// Whether no known result is used at all.
    pub force: bool,
    /// The steps.
    pub steps: &'a [TemplateStep],
}

/// A step that cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step {step}: {problem}")]
pub struct FaultyStep {
    /// Position of the step, from 1.
    pub step: usize,
    /// What is wrong.
    pub problem: String,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doing {
    /// Checks that the machine can be a template, and makes the default user.
    Prepare,
    MakeUser {
        name: String,
        sudo: bool,
    },
    MakeDirectory {
        path: String,
        user: String,
    },
    Run {
        command: String,
        user: String,
        workdir: String,
        env: Arc<Vec<String>>,
    },
    Copy {
        source: String,
        /// Absolute, or relative to `workdir`.
        target: String,
        workdir: String,
        /// The user of the step, who owns what has no owner stated.
        user: String,
        owner: Option<String>,
        mode: Option<u32>,
        hash: String,
    },
}

/// A step that changes the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedStep {
    /// Position in the client's list, from 1. 0 for what precedes it.
    pub(super) number: usize,
    pub(super) text: String,
    pub(super) doing: Doing,
    /// Key of the state after it.
    pub(super) key: Key,
    /// Whether a known result may be used.
    pub(super) may_use: bool,
}

/// The steps of a template, and the setting at their end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplatePlan {
    pub(super) steps: Vec<PlannedStep>,
    pub(super) count: usize,
    /// The setting of the template.
    pub setting: Setting,
}

impl TemplatePlan {
    /// Returns the hashes of the uploads that the steps need.
    pub fn uploads(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| match &step.doing {
            Doing::Copy { hash, .. } => Some(hash.as_str()),
            _ => None,
        })
    }
}

/// Returns true if a text is the hash of an upload: 64 lower-case hexadecimal digits.
#[must_use]
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns true if a user or group can have this name. Such a name is safe in a line of `/etc/passwd`.
pub(super) fn is_account(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= 32 && !name.starts_with(['-', '.']) && name.bytes().all(fits)
}

/// Plans a template.
///
/// # Errors
/// Fails with the first step that is not valid.
pub fn plan(request: &PlanRequest<'_>) -> Result<TemplatePlan, FaultyStep> {
    let PlanRequest { owner, origin, setting, force, steps } = request;
    if steps.len() > MAX_STEPS {
        return Err(FaultyStep { step: MAX_STEPS + 1, problem: format!("a template has at most {MAX_STEPS} steps") });
    }
    let mut key = KeyBuilder::new("template");
    key.part(owner.as_bytes()).part(origin.as_bytes());
    let mut may_use = !force;
    let mut scope = Scope { setting: setting.clone(), env: Arc::new(setting.env.clone()) };
    let key = key.finish();
    let mut planned =
        vec![PlannedStep { number: 0, text: "prepare the base".into(), doing: Doing::Prepare, key, may_use }];
    let mut key = key;
    for (at, step) in steps.iter().enumerate() {
        let number = at + 1;
        may_use &= !step.force.unwrap_or(false);
        let doing = scope.apply(step).map_err(|problem| FaultyStep { step: number, problem })?;
        let Some(doing) = doing else { continue };
        key = key_after(key, &doing);
        let text = format!("{} {}", step.kind, step.args.as_deref().unwrap_or_default().join(" "));
        planned.push(PlannedStep { number, text: text.chars().take(200).collect(), doing, key, may_use });
    }
    let setting = Setting { env: scope.env.to_vec(), ..scope.setting };
    Ok(TemplatePlan { steps: planned, count: steps.len(), setting })
}

fn key_after(before: Key, doing: &Doing) -> Key {
    let mut key;
    match doing {
        Doing::Prepare => return before,
        Doing::MakeUser { name, sudo } => {
            key = KeyBuilder::new("template user");
            key.key(before).part(name.as_bytes()).part(&[u8::from(*sudo)]);
        }
        Doing::MakeDirectory { path, user } => {
            key = KeyBuilder::new("template directory");
            key.key(before).parts(&[path, user]);
        }
        Doing::Run { command, user, workdir, env } => {
            key = KeyBuilder::new("template run");
            key.key(before).parts(&[command, user, workdir]).parts(env);
        }
        Doing::Copy { source, target, workdir, user, owner, mode, hash } => {
            key = KeyBuilder::new("template copy");
            key.key(before).parts(&[source, target, workdir, user, hash]);
            key.part(owner.as_deref().unwrap_or_default().as_bytes());
            key.part(&mode.unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    key.finish()
}

struct Scope {
    /// Without its environment.
    setting: Setting,
    env: Arc<Vec<String>>,
}

impl Scope {
    fn apply(&mut self, step: &TemplateStep) -> Result<Option<Doing>, String> {
        let args = step.args.as_deref().unwrap_or_default();
        if let Some(bad) = args.iter().find(|text| text.contains('\0')) {
            return Err(format!("invalid argument {bad:?}: it contains a NUL"));
        }
        let argument = |at: usize| args.get(at).map(String::as_str).filter(|text| !text.is_empty());
        let needed = |at, what| argument(at).ok_or_else(|| format!("{} needs {what}", step.kind));
        Ok(match step.kind.as_str() {
            "ENV" => {
                self.set_variables(args)?;
                None
            }
            "USER" => {
                let name = needed(0, "a user")?;
                account(name)?;
                name.clone_into(&mut self.setting.user);
                Some(Doing::MakeUser { name: name.to_owned(), sudo: argument(1) == Some("true") })
            }
            "WORKDIR" => {
                let path = joined(&self.setting.workdir, needed(0, "a path")?);
                let path = if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path };
                self.setting.workdir.clone_from(&path);
                Some(Doing::MakeDirectory { path, user: self.setting.user.clone() })
            }
            "RUN" => {
                let user = argument(1).unwrap_or(&self.setting.user);
                account(user)?;
                Some(Doing::Run {
                    command: needed(0, "a command")?.to_owned(),
                    user: user.to_owned(),
                    workdir: self.setting.workdir.clone(),
                    env: self.env.clone(),
                })
            }
            "COPY" => {
                let hash = step.files_hash.as_deref().filter(|hash| is_hash(hash));
                let hash = hash.ok_or("COPY needs filesHash: 64 lower-case hexadecimal digits")?;
                let owner = argument(2);
                owner.map_or(Ok(()), account)?;
                let mode = argument(3).map(|text| match u32::from_str_radix(text, 8) {
                    Ok(mode) if mode <= 0o7777 => Ok(mode),
                    _ => Err(format!("invalid mode {text:?}: expected an octal number up to 7777")),
                });
                Some(Doing::Copy {
                    source: needed(0, "a source")?.to_owned(),
                    target: needed(1, "a target")?.to_owned(),
                    workdir: self.setting.workdir.clone(),
                    user: self.setting.user.clone(),
                    owner: owner.map(str::to_owned),
                    mode: mode.transpose()?,
                    hash: hash.to_owned(),
                })
            }
            other => return Err(format!("invalid type {other:?}: expected RUN, COPY, ENV, WORKDIR or USER")),
        })
    }

    fn set_variables(&mut self, args: &[String]) -> Result<(), String> {
        if !args.len().is_multiple_of(2) {
            return Err("ENV needs a value for each name".into());
        }
        // All values of one step see the environment before it.
        let before = self.env.clone();
        let lookup = |name: &str| {
            let value = before.iter().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name));
            Some(value.map(|(_, value)| value.to_owned()).unwrap_or_default())
        };
        let env = Arc::make_mut(&mut self.env);
        for pair in args.chunks_exact(2) {
            let name = &pair[0];
            if name.is_empty() || name.contains('=') {
                return Err(format!("invalid variable {name:?}"));
            }
            let value = expand_document(&pair[1], '\\', &lookup).map_err(|error| error.to_string())?;
            env.retain(|entry| entry.split('=').next() != Some(name));
            env.push(format!("{name}={value}"));
            if env.iter().map(|entry| entry.len() + 1).sum::<usize>() > MAX_ENVIRONMENT {
                return Err(format!("the environment has more than {MAX_ENVIRONMENT} bytes"));
            }
        }
        Ok(())
    }
}

/// Checks `user` or `user:group`.
fn account(text: &str) -> Result<(), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, "x"));
    match is_account(user) && is_account(group) {
        true => Ok(()),
        false => Err(format!("invalid user {text:?}: use 1-32 characters from a-z, A-Z, 0-9 and _-.")),
    }
}
