//! From the syntax tree of parse-dockerfile to [`Dockerfile`]. Refuses every flag it does not know.

use super::{
    Assignment, Check, Command, Copy, Dockerfile, DockerfileError, Inline, Instruction, Located, MAX_DOCKERFILE,
    MAX_INSTRUCTIONS, Mount, Run, Stage, split,
};
use parse_dockerfile as syntax;

type Result<T, E = String> = std::result::Result<T, E>;

struct Source<'a> {
    text: &'a str,
    escape: char,
}

impl Dockerfile {
    /// Parses a Dockerfile. `file` is its name in errors.
    ///
    /// # Errors
    /// Fails with the line if the text is not a Dockerfile, if it states what is not supported, or
    /// if it has more than 1 MiB or 4096 instructions.
    pub fn parse(file: &str, text: &str) -> Result<Self, DockerfileError> {
        lower(file, text)
    }
}

fn lower(file: &str, text: &str) -> Result<Dockerfile, DockerfileError> {
    let fail = |line, message: String| DockerfileError { file: file.into(), line, message };
    // The parser skips a byte order mark, and its positions count from behind it.
    let text = text.trim_start_matches('\u{feff}');
    if text.len() > MAX_DOCKERFILE {
        return Err(fail(0, format!("invalid Dockerfile: it has {} bytes, the maximum is 1 MiB", text.len())));
    }
    let tree = syntax::parse(text).map_err(|error| fail(error.line(), error.to_string()))?;
    if tree.instructions.len() > MAX_INSTRUCTIONS {
        return Err(fail(0, format!("invalid Dockerfile: it has more than {MAX_INSTRUCTIONS} instructions")));
    }
    let directives = &tree.parser_directives;
    let escape = directives.escape.as_ref().map_or('\\', |escape| escape.value.value);
    let mut notes = Vec::new();
    if let Some(frontend) = &directives.syntax {
        notes.push(format!("the directive syntax={} is ignored", frontend.value.value));
    }
    let source = Source { text, escape };
    let (mut global_args, mut stages) = (Vec::new(), Vec::<Stage>::new());
    let (mut line, mut seen) = (1, 0);
    for node in &tree.instructions {
        let at = start(node);
        line += text[seen..at].matches('\n').count();
        seen = at;
        if let syntax::Instruction::From(from) = node {
            stages.push(stage(from, line).map_err(|message| fail(line, message))?);
            continue;
        }
        let instruction = source.instruction(node).map_err(|message| fail(line, message))?;
        match (stages.last_mut(), instruction) {
            (Some(stage), instruction) => {
                let text = text[at..].lines().next().unwrap_or_default().to_owned();
                stage.instructions.push(Located { line, text, instruction });
            }
            (None, Instruction::Arg(args)) => global_args.extend(args),
            (None, _) => return Err(fail(line, "expected FROM or ARG before any other instruction".into())),
        }
    }
    if stages.is_empty() {
        return Err(fail(0, "expected at least one FROM".into()));
    }
    Ok(Dockerfile { file: file.into(), escape, global_args, stages, notes })
}

fn start(node: &syntax::Instruction<'_>) -> usize {
    use syntax::Instruction as I;
    let keyword = match node {
        I::Add(x) => &x.add,
        I::Arg(x) => &x.arg,
        I::Cmd(x) => &x.cmd,
        I::Copy(x) => &x.copy,
        I::Entrypoint(x) => &x.entrypoint,
        I::Env(x) => &x.env,
        I::Expose(x) => &x.expose,
        I::From(x) => &x.from,
        I::Healthcheck(x) => &x.healthcheck,
        I::Label(x) => &x.label,
        I::Maintainer(x) => &x.maintainer,
        I::Onbuild(x) => &x.onbuild,
        I::Run(x) => &x.run,
        I::Shell(x) => &x.shell,
        I::Stopsignal(x) => &x.stopsignal,
        I::User(x) => &x.user,
        I::Volume(x) => &x.volume,
        I::Workdir(x) => &x.workdir,
        _ => return 0,
    };
    keyword.span.start
}

fn stage(from: &syntax::FromInstruction<'_>, line: usize) -> Result<Stage> {
    let mut platform = None;
    for flag in &from.options {
        match flag.name.value.as_ref() {
            "platform" => platform = Some(value(flag)?),
            other => return Err(unknown("FROM", other, "--platform")),
        }
    }
    let name = from.as_.as_ref().map(|(_, name)| name.value.to_ascii_lowercase());
    let is_name = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
        return Err(format!("invalid stage name {name:?}: expected a letter, then a-z, 0-9, '-', '_' and '.'"));
    }
    Ok(Stage { line, name, base: from.image.value.to_string(), platform, instructions: Vec::new() })
}

fn value(flag: &syntax::Flag<'_>) -> Result<String> {
    let value = flag.value.as_ref().map(|value| value.value.to_string()).filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("--{0} has no value: expected --{0}=VALUE", flag.name.value))
}

fn unknown(instruction: &str, flag: &str, expected: &str) -> String {
    format!("{instruction} --{flag} is not supported: expected {expected}")
}

fn strings<'a, 'b: 'a>(list: impl IntoIterator<Item = &'a syntax::UnescapedString<'b>>) -> Vec<String> {
    list.into_iter().map(|item| item.value.to_string()).collect()
}

impl Source<'_> {
    fn instruction(&self, node: &syntax::Instruction<'_>) -> Result<Instruction> {
        use syntax::Instruction as I;
        Ok(match node {
            I::Arg(arg) => Instruction::Arg(self.assignments(&arg.arguments.value)?),
            I::Env(env) => Instruction::Env(self.pairs(&env.arguments.value)?),
            I::Label(label) => Instruction::Label(self.pairs(&label.arguments.value)?),
            I::Copy(copy) => Instruction::Copy(self.copy(false, &copy.options, &copy.src, &copy.dest)?),
            I::Add(add) => Instruction::Copy(self.copy(true, &add.options, &add.src, &add.dest)?),
            I::Run(run) => Instruction::Run(self.run(run)?),
            I::Shell(shell) => Instruction::Shell(strings(&shell.arguments)),
            I::User(user) => Instruction::User(user.arguments.value.to_string()),
            I::Workdir(workdir) => Instruction::Workdir(workdir.arguments.value.to_string()),
            I::Entrypoint(entrypoint) => Instruction::Entrypoint(self.command(&entrypoint.arguments)?),
            I::Cmd(cmd) => Instruction::Cmd(self.command(&cmd.arguments)?),
            I::Expose(expose) => Instruction::Expose(strings(&expose.arguments)),
            I::Volume(volume) => Instruction::Volume(match &volume.arguments {
                syntax::JsonOrStringArray::Json(list) => strings(&list.value),
                syntax::JsonOrStringArray::String(list) => strings(list),
            }),
            I::Stopsignal(signal) => Instruction::StopSignal(signal.arguments.value.to_string()),
            I::Healthcheck(check) => Instruction::Healthcheck(self.check(check)?),
            I::Maintainer(maintainer) => Instruction::Maintainer(maintainer.name.value.to_string()),
            I::Onbuild(_) => return Err("ONBUILD is not supported".into()),
            _ => return Err("the instruction is not supported".into()),
        })
    }

    fn check(&self, check: &syntax::HealthcheckInstruction<'_>) -> Result<Option<Check>> {
        let syntax::HealthcheckArguments::Cmd { arguments, .. } = &check.arguments else {
            return match check.options.first() {
                Some(flag) => Err(unknown("HEALTHCHECK NONE", &flag.name.value, "no flag")),
                None => Ok(None),
            };
        };
        let command = self.command(arguments)?;
        let mut made = Check { command, interval: 0, timeout: 0, start_period: 0, retries: 0 };
        for flag in &check.options {
            let (name, value) = (&*flag.name.value, flag.value.as_ref().map_or("", |value| &*value.value));
            let invalid = || format!("invalid HEALTHCHECK --{name}={value}: expected a duration such as 1m30s");
            match name {
                "interval" => made.interval = nanoseconds(value).ok_or_else(invalid)?,
                "timeout" => made.timeout = nanoseconds(value).ok_or_else(invalid)?,
                "start-period" => made.start_period = nanoseconds(value).ok_or_else(invalid)?,
                "retries" => {
                    let invalid = |_| format!("invalid HEALTHCHECK --retries={value}: expected a number");
                    made.retries = value.parse().map_err(invalid)?;
                }
                other => {
                    return Err(unknown("HEALTHCHECK", other, "--interval, --timeout, --start-period or --retries"));
                }
            }
        }
        Ok(Some(made))
    }

    fn words(&self, text: &str) -> Result<Vec<String>> {
        split(text, self.escape).map_err(|error| error.to_string())
    }

    fn assignments(&self, text: &str) -> Result<Vec<Assignment>> {
        let words = self.words(text)?;
        let parse = |word: String| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            if name.is_empty() || name.contains(['"', '\'', '$']) {
                return Err(format!("invalid name {name:?}: expected NAME or NAME=value"));
            }
            Ok((name, value))
        };
        words.into_iter().map(parse).collect()
    }

    /// `NAME=value ...`, or the old form `NAME value`.
    fn pairs(&self, text: &str) -> Result<Vec<(String, String)>> {
        let text = text.trim();
        let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if !first.contains('=') {
            if rest.trim().is_empty() {
                return Err(format!("{first:?} has no value: expected NAME=value"));
            }
            return Ok(vec![(first.to_owned(), rest.trim().to_owned())]);
        }
        let has_value = |(name, value): Assignment| match value {
            Some(value) => Ok((name.trim_matches(['"', '\'']).to_owned(), value)),
            None => Err(format!("{name:?} has no value: expected NAME=value")),
        };
        let words = self.words(text)?;
        let pair = |word: &String| {
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v.to_owned())));
            has_value((name.to_owned(), value))
        };
        words.iter().map(pair).collect()
    }

    fn command(&self, command: &syntax::Command<'_>) -> Result<Command> {
        Ok(match command {
            syntax::Command::Exec(list) => Command::Exec(strings(&list.value)),
            syntax::Command::Shell(text) => {
                let joined = self.joined(text.value);
                if has_here_document(&joined) {
                    return Err("a here-document after a command is not supported: expected RUN <<NAME".into());
                }
                Command::Shell(joined)
            }
            _ => return Err("expected a command".into()),
        })
    }

    /// Joins continuation lines and removes the comment lines between them.
    fn joined(&self, raw: &str) -> String {
        let mut out = String::new();
        for (index, line) in raw.lines().enumerate() {
            if index > 0 && (line.trim_start().starts_with('#') || line.trim().is_empty()) {
                continue;
            }
            out.push_str(line.trim_end().strip_suffix(self.escape).unwrap_or(line));
        }
        out.trim().to_owned()
    }

    fn copy(
        &self,
        is_add: bool,
        flags: &[syntax::Flag<'_>],
        src: &[syntax::Source<'_>],
        dest: &syntax::UnescapedString<'_>,
    ) -> Result<Copy> {
        let name = if is_add { "ADD" } else { "COPY" };
        let target = dest.value.to_string();
        let (sources, inline) = (Vec::new(), Vec::new());
        let mut copy = Copy { is_add, from: None, chown: None, chmod: None, checksum: None, sources, inline, target };
        for flag in flags {
            match flag.name.value.as_ref() {
                "from" if !is_add => copy.from = Some(value(flag)?),
                "checksum" if is_add => copy.checksum = Some(value(flag)?),
                "chown" => copy.chown = Some(value(flag)?),
                "chmod" => {
                    let text = value(flag)?;
                    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
                    copy.chmod =
                        Some(mode.ok_or_else(|| format!("invalid mode {text:?}: expected 0 to 7777 (octal)"))?);
                }
                other => return Err(unknown(name, other, "--chown, --chmod, --from of COPY, or --checksum of ADD")),
            }
        }
        for source in src {
            match source {
                syntax::Source::Path(path) => copy.sources.push(path.value.to_string()),
                syntax::Source::HereDoc(document) => {
                    // The line after the content is the delimiter, and the delimiter is the name.
                    let after = &self.text[document.span.end..];
                    let name = after.trim_start_matches(['\n', '\r']).lines().next().unwrap_or_default().trim();
                    if name.is_empty() || name.contains('/') || name.starts_with('.') {
                        return Err(format!("invalid here-document name {name:?}: expected a file name"));
                    }
                    let content = document.value.to_string();
                    copy.inline.push(Inline { name: name.into(), expand: document.expand, content });
                }
                _ => return Err(format!("invalid source of {name}")),
            }
        }
        if copy.sources.is_empty() && copy.inline.is_empty() {
            return Err(format!("{name} has no source: expected {name} SOURCE... TARGET"));
        }
        Ok(copy)
    }

    fn run(&self, run: &syntax::RunInstruction<'_>) -> Result<Run> {
        let (mut mounts, mut no_network) = (Vec::new(), false);
        for flag in &run.options {
            let text = value(flag)?;
            match (flag.name.value.as_ref(), text.as_str()) {
                ("mount", text) => mounts.push(mount(text)?),
                ("network", "none") => no_network = true,
                ("network", "default") => {}
                ("network", other) => {
                    return Err(format!("--network={other} is not supported: expected none or default"));
                }
                (other, _) => return Err(unknown("RUN", other, "--mount or --network")),
            }
        }
        let command = match run.here_docs.first() {
            Some(document) => {
                let head = match &run.arguments {
                    syntax::Command::Shell(text) => text.value.trim(),
                    _ => "",
                };
                let is_plain = head.split_whitespace().count() <= 1;
                if run.here_docs.len() > 1 || !is_plain {
                    return Err("a here-document for a program is not supported: expected RUN <<NAME".into());
                }
                // Docker executes such a document as a program.
                if document.value.starts_with("#!") {
                    return Err("a here-document with #! is not supported: expected commands for the shell, or COPY \
                                of the script and RUN of it"
                        .into());
                }
                Command::Shell(document.value.to_string())
            }
            None => self.command(&run.arguments)?,
        };
        if matches!(&command, Command::Exec(list) if list.is_empty()) || command == Command::Shell(String::new()) {
            return Err("RUN has no command".into());
        }
        Ok(Run { command, mounts, no_network })
    }
}

/// Parses a duration such as `1m30s` or `500ms`, as Go writes them, into nanoseconds.
fn nanoseconds(text: &str) -> Option<u64> {
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[letters..];
    }
    (!text.is_empty()).then_some(total)
}

/// Says whether a shell would read further lines. The parser takes those lines for instructions.
fn has_here_document(text: &str) -> bool {
    let starts = |rest: &str| {
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        rest.starts_with(|c: char| c.is_ascii_alphabetic() || "_\"'".contains(c))
    };
    text.match_indices("<<").any(|(at, _)| !text[..at].ends_with('<') && starts(&text[at + 2..]))
}

fn mount(text: &str) -> Result<Mount> {
    // A mount without a type is a bind mount.
    let kind = text.split(',').rev().find_map(|field| field.strip_prefix("type=")).unwrap_or("bind");
    match kind {
        "bind" | "cache" | "secret" | "tmpfs" => {}
        "ssh" => {
            return Err("--mount=type=ssh is not supported: a sandbox has no connection to the SSH agent of the \
                        host; use type=secret for a key of this build"
                .into());
        }
        kind => return Err(format!("--mount=type={kind} is not supported: expected bind, cache, secret or tmpfs")),
    }
    let (mut id, mut target, mut required) = (None, None, false);
    let (mut from, mut source, mut size, mut writable) = (None, None, None, false);
    for field in text.split(',') {
        let (name, value) = field.split_once('=').unwrap_or((field, "true"));
        match (kind, name) {
            (_, "type") => {}
            ("cache" | "secret", "id") => id = Some(value.to_owned()),
            (_, "target" | "dst" | "destination") => target = Some(value.to_owned()),
            ("secret", "required") => required = value == "true",
            (_, "readonly" | "ro") if value == "true" => {}
            ("bind", "readonly" | "ro") if value == "false" => writable = true,
            ("bind", "rw" | "readwrite") => writable = value == "true",
            ("bind", "from") => from = Some(value.to_owned()),
            ("bind", "source" | "src") => source = Some(value.to_owned()),
            ("tmpfs", "size") => size = Some(bytes(value).ok_or_else(|| format!("invalid size {value:?} of a tmpfs"))?),
            ("cache", "sharing") if matches!(value, "shared" | "locked" | "private") => {}
            _ => return Err(format!("--mount=type={kind} field {field:?} is not supported")),
        }
    }
    if kind == "secret" {
        if id.is_none() && target.is_none() {
            return Err("--mount=type=secret has no id: expected id=NAME without a slash".into());
        }
        return Ok(Mount::Secret { id, target, required });
    }
    let target = target.ok_or_else(|| format!("--mount=type={kind} has no target"))?;
    Ok(match kind {
        "cache" => Mount::Cache { id, target },
        "tmpfs" => Mount::Tmpfs { target, size },
        _ => Mount::Bind { from, source, target, writable },
    })
}

/// Parses a size such as `64m`, in powers of 1024, as docker does.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let shift = match &lower[digits..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    lower[..digits].parse::<u64>().ok()?.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Dockerfile {
        Dockerfile::parse("Dockerfile", text).unwrap()
    }

    fn first(line: &str) -> Instruction {
        parse(&format!("FROM a\n{line}\n")).stages[0].instructions[0].instruction.clone()
    }

    #[test]
    fn byte_order_marks_move_no_instruction() {
        for marks in ["\u{feff}", "\u{feff}\u{feff}"] {
            let file = parse(&format!("{marks}FROM a\nENV A=\u{54d}\nRUN b\n"));
            let lines: Vec<_> = file.stages[0].instructions.iter().map(|at| (at.line, at.text.as_str())).collect();
            assert_eq!(lines, [(2, "ENV A=\u{54d}"), (3, "RUN b")]);
        }
    }

    #[test]
    fn stages_and_global_arguments_are_found() {
        let file = parse(
            "# syntax=docker/dockerfile:1\nARG V=1\nFROM --platform=linux/amd64 a:$V AS Build\nRUN x\nFROM build\n",
        );
        assert_eq!(file.global_args, [("V".into(), Some("1".into()))]);
        let names: Vec<_> = file.stages.iter().map(|s| (s.line, s.name.as_deref(), s.base.as_str())).collect();
        assert_eq!(names, [(3, Some("build"), "a:$V"), (5, None, "build")]);
        assert_eq!(file.notes, ["the directive syntax=docker/dockerfile:1 is ignored"]);
    }

    #[test]
    fn continuation_comments_and_here_documents_are_read() {
        let shell = |line| match first(line) {
            Instruction::Run(Run { command: Command::Shell(text), .. }) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(shell("RUN a && \\\n  # comment\n  b"), "a &&   b");
        assert_eq!(shell("RUN <<EOF\necho 1\necho 2\nEOF"), "echo 1\necho 2\n");
        assert_eq!(shell("RUN cat <<<word"), "cat <<<word");
        let Instruction::Copy(copy) = first("COPY <<a.txt <<\"b\" /x/\n1 $A\na.txt\n2\nb") else { panic!() };
        let inline: Vec<_> = copy.inline.iter().map(|i| (&i.name[..], i.expand, &i.content[..])).collect();
        assert_eq!(inline, [("a.txt", true, "1 $A\n"), ("b", false, "2\n")]);
    }

    #[test]
    fn flags_and_mounts_are_read() {
        let Instruction::Copy(copy) = first("COPY --from=b --chown=1:2 --chmod=0640 a b /c/") else { panic!() };
        assert_eq!((copy.from.as_deref(), copy.chown.as_deref(), copy.chmod), (Some("b"), Some("1:2"), Some(0o640)));
        let Instruction::Run(run) =
            first("RUN --network=none --mount=type=secret,id=k --mount=type=cache,target=/c [\"a\", \"b\"]")
        else {
            panic!()
        };
        assert!(run.no_network);
        assert_eq!(run.command, Command::Exec(vec!["a".into(), "b".into()]));
        assert_eq!(run.mounts[0], Mount::Secret { id: Some("k".into()), target: None, required: false });
        let mount = |flag: &str| match first(&format!("RUN --mount={flag} x")) {
            Instruction::Run(mut run) => run.mounts.remove(0),
            other => panic!("{other:?}"),
        };
        let bind = |from: Option<&str>, source: Option<&str>, writable| Mount::Bind {
            from: from.map(str::to_owned),
            source: source.map(str::to_owned),
            target: "/t".into(),
            writable,
        };
        assert_eq!(mount("target=/t"), bind(None, None, false));
        assert_eq!(mount("type=bind,from=b,src=s,dst=/t,rw"), bind(Some("b"), Some("s"), true));
        assert_eq!(mount("type=bind,target=/t,ro"), bind(None, None, false));
        assert_eq!(mount("type=tmpfs,target=/t,size=2m"), Mount::Tmpfs { target: "/t".into(), size: Some(2 << 20) });
        let Instruction::Copy(add) = first("ADD --checksum=sha256:ab https://a.example/b /c/") else { panic!() };
        assert_eq!(add.checksum.as_deref(), Some("sha256:ab"));
    }

    #[test]
    fn unsupported_text_is_refused_with_its_line() {
        let refused = |text: &str| Dockerfile::parse("D", text).unwrap_err().to_string();
        assert_eq!(refused("FROM a\n\nONBUILD RUN x\n"), "D:3: ONBUILD is not supported");
        let script = refused("FROM a\nRUN <<EOF\n#!/usr/bin/env python3\nprint(1)\nEOF\n");
        assert!(script.starts_with("D:2: a here-document with #! is not supported"), "{script}");
        let ssh = refused("FROM a\nRUN --mount=type=ssh y\n");
        assert!(ssh.starts_with("D:2: --mount=type=ssh is not supported: a sandbox has no connection"), "{ssh}");
        for text in [
            "",
            "RUN x",
            "FROM a\nRUN --security=insecure x",
            "FROM a\nCOPY --link a b",
            "FROM a\nNOPE x",
            "FROM a\nRUN --mount=type=tmpfs,target=/x,from=b y",
            "FROM a\nRUN --mount=type=tmpfs,target=/x,size=0 y",
            "FROM a\nRUN --mount=type=bind,target=/x,id=b y",
            "FROM a\nRUN --mount=type=bind y",
            "FROM a\nRUN --mount=type=npipe,target=/x y",
            "FROM a\nCOPY --checksum=sha256:00 a b",
            "FROM a\nRUN --mount=type=cache,from=b,target=/x y",
            "FROM a\nCOPY --chmod=9 a b",
            "FROM a AS 1x",
            "FROM a\nRUN cat <<EOF >x\nRUN y\nEOF\n",
            "FROM a\nRUN python3 <<EOF\nprint(1)\nEOF\n",
            "FROM a\nRUN --mount=type=secret y",
            "FROM a\nENV A",
        ] {
            refused(text);
        }
    }
}
