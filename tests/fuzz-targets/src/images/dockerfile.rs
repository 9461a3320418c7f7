//! Dockerfiles: the parser, and what a build makes of the instructions.

use sandboxvm_build::{
    context::Ignore,
    dockerfile::{Dockerfile, MAX_INSTRUCTIONS, expand, split},
    plan::{BuildArgs, base, needed, resolve},
};
use sandboxvm_oci::config::ImageConfig;

/// Input: a Dockerfile. The same text is read as a `.dockerignore` and as a word.
pub fn dockerfile(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Ignore::parse(text).map(|ignore| ignore.excludes(b"a/b.c"));
    let _ = split(text, '\\');
    let _ = expand(text, '\\', &|name| (name.len() < 3).then(|| name.repeat(3)));
    let Ok(file) = Dockerfile::parse("Dockerfile", text) else { return };
    let count: usize = file.stages.iter().map(|stage| stage.instructions.len()).sum();
    assert!(!file.stages.is_empty() && count <= MAX_INSTRUCTIONS);
    let args = BuildArgs::from([("A".to_owned(), "value".to_owned())]);
    let image = ImageConfig { env: vec!["PATH=/bin".to_owned()], cmd: vec!["sh".to_owned()], ..ImageConfig::default() };
    let Ok(stages) = needed(&file, None, &args) else { return };
    assert_eq!(stages.last(), Some(&(file.stages.len() - 1)));
    for stage in stages {
        let _ = base(&file, stage, &args);
        if let Ok(resolved) = resolve(&file, stage, &image, &args) {
            assert!(resolved.steps.len() <= file.stages[stage].instructions.len());
        }
    }
}
