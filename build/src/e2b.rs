//! Template builds of E2B's API as a Dockerfile in memory, so that both use one engine and one cache.
//! Files of `COPY` are uploads, which the caller has by their hash. May not interpret credentials or
//! the commands that run after the build: those are the server's.

use crate::dockerfile::{Command, Copy, Dockerfile, Instruction, Located, Run, Stage};
use serde::Deserialize;

/// Maximum number of steps.
pub const MAX_STEPS: usize = 1000;
/// Maximum number of bytes of all arguments of a step.
pub const MAX_ARGUMENTS: usize = 256 << 10;
/// The shell that runs commands, as E2B does.
const SHELL: [&str; 3] = ["/bin/bash", "-l", "-c"];

/// What a client asks for with `POST /v2/templates/{templateID}/builds/{buildID}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateBuild {
    /// Image to begin with.
    pub from_image: Option<String>,
    /// Template to begin with.
    pub from_template: Option<String>,
    /// Whether no step uses results of earlier builds.
    #[serde(default)]
    pub force: bool,
    /// The steps, in order.
    #[serde(default)]
    pub steps: Vec<TemplateStep>,
    /// Command that runs in the snapshot of the template.
    pub start_cmd: Option<String>,
    /// Command that succeeds when the start command is ready.
    pub ready_cmd: Option<String>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateStep {
    /// `RUN`, `COPY`, `ENV`, `WORKDIR` or `USER`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Hash of the upload of a `COPY`.
    pub files_hash: Option<String>,
    /// Whether this step and those after it use no results of earlier builds.
    #[serde(default)]
    pub force: bool,
}

/// A template build is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid step {step}: {message}")]
pub struct TemplateError {
    /// Position of the step, from 0.
    pub step: usize,
    /// What is wrong, and what is expected.
    pub message: String,
}

impl TemplateBuild {
    /// Returns a Dockerfile of one stage that begins with the image `base`. The line of each
    /// instruction is the position of its step, counted from 1. `user` is the user of that image.
    ///
    /// # Errors
    /// Fails if a step has other arguments than its kind, or if a limit is exceeded.
    pub fn dockerfile(&self, base: &str, user: &str) -> Result<Dockerfile, TemplateError> {
        if self.steps.len() > MAX_STEPS {
            let message = format!("the build has more than {MAX_STEPS} steps");
            return Err(TemplateError { step: MAX_STEPS, message });
        }
        let mut instructions = Vec::new();
        let mut user = if user.is_empty() { "root".to_owned() } else { user.to_owned() };
        for (at, step) in self.steps.iter().enumerate() {
            let made = instructions_of(step, &mut user).map_err(|message| TemplateError { step: at, message })?;
            let text = format!("{} {}", step.kind, step.args.join(" "));
            let text: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
            instructions.extend(made.into_iter().map(|instruction| Located {
                line: at + 1,
                text: text.clone(),
                instruction,
            }));
        }
        let stage = Stage { line: 0, name: None, base: quoted(base), platform: None, instructions };
        let (global_args, notes) = (Vec::new(), Vec::new());
        Ok(Dockerfile { file: "template".into(), escape: '\\', global_args, stages: vec![stage], notes })
    }

    /// Returns the line of the first instruction that uses no results of earlier builds.
    #[must_use]
    pub fn fresh_from(&self) -> Option<usize> {
        if self.force { Some(0) } else { self.steps.iter().position(|step| step.force).map(|at| at + 1) }
    }
}

fn instructions_of(step: &TemplateStep, user: &mut String) -> Result<Vec<Instruction>, String> {
    if step.args.iter().map(String::len).sum::<usize>() > MAX_ARGUMENTS {
        return Err(format!("its arguments have more than {MAX_ARGUMENTS} bytes"));
    }
    if step.args.iter().any(|argument| argument.contains('\0')) {
        return Err("an argument contains a NUL".into());
    }
    let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
    match (step.kind.to_ascii_uppercase().as_str(), &args[..]) {
        ("RUN", [command] | [command, ""]) => Ok(vec![run(command)]),
        ("RUN", [command, other]) => {
            let before = Instruction::User(quoted(user));
            Ok(vec![Instruction::User(quoted(other)), run(command), before])
        }
        ("ENV", pairs) if !pairs.is_empty() && pairs.len() % 2 == 0 => {
            let pairs = pairs.chunks(2).map(|pair| match pair {
                [name, _] if !is_name(name) => Err(format!("invalid variable {name:?}")),
                [name, value] => Ok(((*name).to_owned(), expanded(value))),
                _ => Err("a variable has no value".to_owned()),
            });
            // Later variables of a step may use earlier ones.
            pairs.map(|pair| Ok(Instruction::Env(vec![pair?]))).collect()
        }
        ("WORKDIR", [path]) if !path.is_empty() => Ok(vec![Instruction::Workdir(expanded(path))]),
        ("USER", [name] | [name, _]) => {
            let administers = args.get(1) == Some(&"true");
            if !is_user(name) {
                return Err(format!("invalid user {name:?}: expected a name of a-z, 0-9, _ and -, or a number"));
            }
            user.clear();
            user.push_str(name);
            let made = made_user(name, administers);
            let run = made.map(|script| vec![Instruction::User("root".into()), run(&script)]).unwrap_or_default();
            Ok([run, vec![Instruction::User(quoted(name))]].concat())
        }
        ("COPY", [source, target, rest @ ..]) if rest.len() <= 2 => {
            let hash = step.files_hash.as_deref().unwrap_or_default();
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
                return Err("COPY has no filesHash: expected 64 hexadecimal digits".into());
            }
            let owner = rest.first().filter(|owner| !owner.is_empty()).copied().unwrap_or(user);
            let mode = rest.get(1).filter(|mode| !mode.is_empty()).map(|mode| {
                u32::from_str_radix(mode, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| format!("invalid mode {mode:?}: expected octal digits"))
            });
            Ok(vec![Instruction::Copy(Copy {
                is_add: false,
                from: None,
                upload: Some(hash.to_owned()),
                chown: Some(quoted(owner)),
                chmod: mode.transpose()?,
                sources: vec![quoted(source)],
                inline: Vec::new(),
                target: quoted(target),
            })])
        }
        (kind @ ("RUN" | "ENV" | "WORKDIR" | "USER" | "COPY"), _) => {
            Err(format!("{kind} has {} arguments, which is not supported", args.len()))
        }
        (kind, _) => Err(format!("unknown type {kind:?}: expected RUN, COPY, ENV, WORKDIR or USER")),
    }
}

fn run(command: &str) -> Instruction {
    let command = SHELL.iter().copied().chain([command]).map(str::to_owned).collect();
    Instruction::Run(Run { command: Command::Exec(command), mounts: Vec::new(), no_network: false })
}

/// Returns the script that makes a user unless it exists.
fn made_user(name: &str, administers: bool) -> Option<String> {
    if name == "root" || name.parse::<u32>().is_ok() {
        return None;
    }
    // The name consists of letters, digits, `_` and `-`.
    let mut script = format!("id -u {name} >/dev/null 2>&1 || useradd -m -s /bin/bash {name}");
    if administers {
        script += &format!(
            "; mkdir -p /etc/sudoers.d; echo '{name} ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/{name}; chmod 440 \
             /etc/sudoers.d/{name}"
        );
    }
    Some(script)
}

fn is_user(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('-')
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Returns a word of a Dockerfile that stands for exactly this text.
fn quoted(text: &str) -> String {
    text.chars().flat_map(|c| ['\\', c]).collect()
}

/// Returns a word of a Dockerfile that stands for this text with its variables expanded.
fn expanded(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| match c {
        '"' | '\\' => vec!['\\', c],
        c => vec![c],
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Action, Base, BuildArgs, base, resolve};
    use sandboxvm_oci::config::ImageConfig;

    /// The example of a recorded client.
    const RECORDED: &str = r#"{"fromImage":"python:3.11",
        "fromImageRegistry":{"type":"registry","username":"u","password":"p"},"force":false,
        "steps":[
        {"type":"USER","args":["root"],"force":false},
        {"type":"WORKDIR","args":["/app"],"force":false},
        {"type":"COPY","args":["a.txt","/app/","root","0644"],"filesHash":"HASH","force":false},
        {"type":"COPY","args":["d","d","",""],"filesHash":"HASH","force":false},
        {"type":"ENV","args":["A","1","B","x \"y\" $A"],"force":false},
        {"type":"USER","args":["app","true"],"force":false},
        {"type":"RUN","args":["apt-get update && apt-get install -y curl","root"],"force":false},
        {"type":"RUN","args":["pip install numpy"],"force":true}],
        "startCmd":"python -m http.server 8000","readyCmd":"sleep 1"}"#;

    fn recorded() -> TemplateBuild {
        serde_json::from_str(&RECORDED.replace("HASH", &"ab".repeat(32))).unwrap()
    }

    #[test]
    fn recorded_build_becomes_steps_with_users_and_uploads() {
        let build = recorded();
        assert_eq!(build.fresh_from(), Some(8));
        let file = build.dockerfile("python:3.11", "").unwrap();
        assert_eq!(base(&file, 0, &BuildArgs::new()).unwrap(), Base::Image("python:3.11".into()));
        let resolved = resolve(&file, 0, &ImageConfig::default(), &BuildArgs::new()).unwrap();
        let lines: Vec<_> = resolved.steps.iter().map(|step| step.line).collect();
        assert_eq!(lines, [2, 3, 4, 6, 7, 8]);
        let Action::Copy { from, sources, target, chown, chmod, .. } = &resolved.steps[1].action else { panic!() };
        assert_eq!(from, &Some(Base::Upload("ab".repeat(32))));
        assert_eq!((sources[0].as_str(), target.as_str()), ("a.txt", "/app/"));
        assert_eq!((chown.as_deref(), *chmod), (Some("root"), Some(0o644)));
        let Action::Copy { target, chown, .. } = &resolved.steps[2].action else { panic!() };
        assert_eq!((target.as_str(), chown.as_deref()), ("/app/d", Some("root")));
        let run = |at: usize| match &resolved.steps[at].action {
            Action::Run { command, user, .. } => (command.last().unwrap().as_str(), user.as_str()),
            _ => panic!("not a RUN"),
        };
        assert!(run(3).0.contains("useradd") && run(3).0.contains("NOPASSWD") && run(3).1 == "root");
        assert_eq!(run(4), ("apt-get update && apt-get install -y curl", "root"));
        assert_eq!(run(5), ("pip install numpy", "app"));
        assert_eq!(resolved.config.env, ["A=1", "B=x \"y\" 1"]);
        assert_eq!(resolved.config.user, "app");
    }

    #[test]
    fn words_stand_for_their_text() {
        for text in ["a b", "$HOME", "it's \"x\" \\ y", "*.txt", "ä"] {
            let word = crate::dockerfile::expand(&quoted(text), '\\', &|_| Some("no".into())).unwrap();
            assert_eq!(word, text);
            let word = crate::dockerfile::expand(&expanded(text), '\\', &|_| Some("v".into())).unwrap();
            assert_eq!(word, text.replace("$HOME", "v"));
        }
    }

    #[test]
    fn invalid_steps_are_refused_with_their_position() {
        let refused = |kind: &str, args: &[&str]| {
            let args = args.iter().map(|argument| (*argument).to_owned()).collect();
            let step = TemplateStep { kind: kind.into(), args, files_hash: Some("no".into()), force: false };
            let first = recorded().steps[0].clone();
            let build = TemplateBuild { steps: vec![first, step], ..recorded() };
            let error = build.dockerfile("x", "").unwrap_err();
            assert_eq!(error.step, 1);
            error.message
        };
        assert!(refused("RUN", &[]).contains("0 arguments"));
        assert!(refused("ENV", &["A"]).contains("1 arguments"));
        assert!(refused("ENV", &["A B", "x"]).contains("invalid variable"));
        assert!(refused("USER", &["a;reboot"]).contains("invalid user"));
        assert!(refused("COPY", &["a", "b"]).contains("filesHash"));
        assert!(refused("FETCH", &["a"]).contains("unknown type"));
        assert!(refused("RUN", &[&"x".repeat(MAX_ARGUMENTS + 1)]).contains("bytes"));
        assert!(refused("RUN", &["a\0"]).contains("NUL"));
    }
}
