//! Machines for tests: a tree in memory, and a log of everything that the engine asks for.

use crate::engine::machine::{
    BaseImage, Disk, Done, Downloaded, Found, Machine, MachineError, Machines, Mounted, NewImage, Owner, Process,
    StepLayer, Stream,
};
use crate::key::Key;
use sandboxvm_archive::{Entry, Kind, Reader, Timestamp, Writer};
use sandboxvm_oci::{Digest, config::ImageConfig};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// A file: its content, or `None` for a directory, and its owner.
type Tree = BTreeMap<String, (Option<Vec<u8>>, Owner)>;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) log: Vec<String>,
    pub(crate) saved: BTreeMap<Key, (Tree, usize)>,
    /// The layer of each state, as the number of layers of steps below it.
    pub(crate) layers: BTreeMap<Key, usize>,
    /// The layers of steps.
    pub(crate) step_layers: BTreeMap<Key, Vec<u8>>,
    /// The last layer of each image that was extended. Its digest ends with a plus for each layer.
    pub(crate) extended: BTreeMap<String, Vec<u8>>,
    /// The names of an image cannot be listed.
    pub(crate) unlisted: bool,
    /// Symbolic links of every image.
    pub(crate) links: Vec<String>,
    pub(crate) caches: BTreeMap<String, Vec<u8>>,
    pub(crate) published: Vec<NewImage>,
    /// Content of files that a process saw at `cat PATH`, and what was written into archives.
    pub(crate) left: Vec<String>,
    /// Number of archives that were extracted below mounts.
    pub(crate) below_mounts: usize,
    pub(crate) surroundings: Vec<u8>,
    /// The files that can be downloaded, by URL.
    pub(crate) urls: BTreeMap<String, Vec<u8>>,
    /// A file of the host, and what is written to it when a process runs.
    pub(crate) on_run: Option<(PathBuf, Vec<u8>)>,
}

#[derive(Clone, Default)]
pub(crate) struct Recorder(pub(crate) Arc<Mutex<Shared>>);

#[derive(Debug)]
pub(crate) struct Recorded {
    tree: Tree,
    leading: usize,
    shared: Arc<Mutex<Shared>>,
}

impl Recorder {
    /// Returns a machine of an image, without the layers of steps.
    fn machine(&self, image: &BaseImage) -> Recorded {
        let file = |text: &str| (Some(text.as_bytes().to_vec()), Owner::default());
        let mut tree = BTreeMap::from([
            ("/bin/bash".to_owned(), file("")),
            ("/etc".to_owned(), (None, Owner::default())),
            ("/etc/passwd".to_owned(), file("root:x:0:0::/root:/bin/sh\napp:x:1000:100::/home/app:/bin/sh\n")),
            ("/etc/group".to_owned(), file("root:x:0:\nusers:x:100:\n")),
        ]);
        if image.digest == "sha256:no-shell" {
            tree.remove("/bin/bash");
        }
        let leading = image.digest.matches('+').count();
        Recorded { tree, leading, shared: self.0.clone() }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }
}

impl Recorded {
    fn note(&self, line: String) {
        self.shared.lock().unwrap().log.push(line);
    }
}

fn below<'a>(path: &'a str, top: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(top.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

impl Disk for Recorded {
    async fn find(&mut self, path: &str) -> Done<Option<Found>> {
        let path = path.trim_end_matches('/');
        Ok(match self.tree.get(path) {
            _ if path.is_empty() => Some(Found::Directory),
            Some((None, _)) => Some(Found::Directory),
            Some(_) => Some(Found::File),
            None => None,
        })
    }

    async fn read(&mut self, path: &str, _: usize) -> Done<Option<Vec<u8>>> {
        Ok(self.tree.get(path).and_then(|(content, _)| content.clone()))
    }

    async fn make_directory(&mut self, path: &str, owner: Owner) -> Done<()> {
        for (at, _) in format!("{path}/").match_indices('/').skip(1) {
            self.tree.entry(path[..at].to_owned()).or_insert((None, owner));
        }
        Ok(())
    }

    async fn extract_to_disk(&mut self, mut archive: File) -> Done<()> {
        self.shared.lock().unwrap().below_mounts += 1;
        self.extract(&mut archive).await
    }
}

impl Machine for Recorded {
    async fn run(&mut self, process: &Process, output: &mut (dyn FnMut(Stream, &[u8]) + Send)) -> Done<u8> {
        let text = process.command.last().unwrap().clone();
        self.note(format!("run {text} as {:?} in {}", process.user, process.workdir));
        if let Some((path, content)) = &self.shared.lock().unwrap().on_run {
            std::fs::write(path, content).unwrap();
        }
        match text.split_once(' ') {
            Some(("exit", code)) => return Ok(code.parse().unwrap()),
            Some(("write", path)) => {
                self.tree.insert(path.to_owned(), (Some(b"written".to_vec()), Owner::default()));
            }
            Some(("cat", path)) => {
                let content = self.tree.get(path).and_then(|(content, _)| content.clone());
                output(Stream::Stdout, &content.unwrap_or_else(|| b"nothing".to_vec()));
            }
            _ => output(Stream::Stdout, text.as_bytes()),
        }
        Ok(0)
    }

    async fn end_processes(&mut self) -> Done<()> {
        Ok(())
    }

    async fn extract(&mut self, archive: &mut (dyn Read + Send)) -> Done<()> {
        let mut reader = Reader::new(archive);
        while let Some(entry) = reader.next_entry().map_err(MachineError::new)? {
            let path = format!("/{}", String::from_utf8(entry.path).unwrap().trim_end_matches('/'));
            let owner = Owner { uid: entry.uid, gid: entry.gid };
            let mut content = Vec::new();
            let mut buffer = [0; 64];
            loop {
                match reader.read_content(&mut buffer).map_err(MachineError::new)? {
                    0 => break,
                    count => content.extend_from_slice(&buffer[..count]),
                }
            }
            let content = match entry.kind {
                Kind::Directory => None,
                Kind::Symlink(target) => Some(self.tree[std::str::from_utf8(&target).unwrap()].0.clone().unwrap()),
                _ => Some(content),
            };
            self.note(format!("extract {path} {}:{}", owner.uid, owner.gid));
            self.tree.insert(path, (content, owner));
        }
        Ok(())
    }

    async fn archive(&mut self, path: &str, output: &mut File) -> Done<bool> {
        self.note(format!("archive {path}"));
        let mut writer = Writer::new(Vec::new());
        let mut is_empty = true;
        for (name, (content, owner)) in &self.tree {
            let Some(rest) = below(name, path) else { continue };
            is_empty = false;
            let kind = match content {
                None => Kind::Directory,
                Some(content) => Kind::File { size: content.len() as u64, extents: None },
            };
            let (path, modified) = (format!("x{rest}").into_bytes(), Timestamp::default());
            let (uid, gid) = (owner.uid, owner.gid);
            writer.begin(&Entry { path, kind, mode: 0o644, uid, gid, modified, attributes: Vec::new() }).unwrap();
            writer.content(content.as_deref().unwrap_or_default()).unwrap();
            writer.end().unwrap();
        }
        output.write_all(&writer.finish().unwrap()).unwrap();
        Ok(!is_empty)
    }

    async fn mount(&mut self, target: &str, what: Mounted<'_>) -> Done<()> {
        self.note(format!("mount {what:?} at {target}"));
        let Mounted::Bind { source, .. } = what else { return Ok(()) };
        let inner = self
            .tree
            .iter()
            .filter_map(|(name, file)| Some((format!("{target}{}", below(name, source)?), file.clone())));
        let inner: Vec<_> = inner.collect();
        self.tree.extend(inner);
        Ok(())
    }

    async fn unmount(&mut self, target: &str) -> Done<()> {
        self.note(format!("unmount {target}"));
        self.tree.retain(|name, _| below(name, target).is_none_or(str::is_empty));
        Ok(())
    }

    async fn remove(&mut self, path: &str) -> Done<()> {
        self.note(format!("remove {path}"));
        self.tree.retain(|name, _| below(name, path).is_none());
        Ok(())
    }

    async fn save(&mut self, key: Key) -> Done<bool> {
        self.note("save".into());
        self.shared.lock().unwrap().saved.insert(key, (self.tree.clone(), self.leading));
        Ok(true)
    }

    async fn finish(self) -> Done<()> {
        Ok(())
    }
}

impl Machines for Recorder {
    type Machine = Recorded;

    async fn image(&self, reference: Option<&str>) -> Done<BaseImage> {
        let config = ImageConfig { env: vec!["PATH=/bin".into()], ..ImageConfig::default() };
        match reference {
            Some("absent") => Err(MachineError::new("no such image")),
            Some(reference) => Ok(BaseImage { digest: format!("sha256:{reference}"), config }),
            None => Ok(BaseImage { digest: "sha256:empty".into(), config: ImageConfig::default() }),
        }
    }

    fn surroundings(&self) -> Vec<u8> {
        self.0.lock().unwrap().surroundings.clone()
    }

    async fn download(&self, url: &str, maximum: u64, mut output: File) -> Done<Downloaded> {
        let mut shared = self.0.lock().unwrap();
        shared.log.push(format!("download {url}"));
        let content = shared.urls.get(url).cloned().ok_or_else(|| MachineError::new("there is no such file"))?;
        assert!(content.len() as u64 <= maximum);
        output.write_all(&content).unwrap();
        let modified = Timestamp { seconds: 100, nanoseconds: 0 };
        Ok(Downloaded { size: content.len() as u64, digest: Digest::of(&content), modified })
    }

    async fn start(&self, image: &BaseImage) -> Done<Recorded> {
        self.0.lock().unwrap().log.push(format!("start {}", image.digest));
        let mut machine = self.machine(image);
        let log = self.log();
        for layers in 1..=machine.leading {
            let digest = &image.digest[..image.digest.len() + layers - machine.leading];
            let bytes = self.0.lock().unwrap().extended[digest].clone();
            machine.extract(&mut &bytes[..]).await?;
        }
        self.0.lock().unwrap().log = log;
        Ok(machine)
    }

    fn has(&self, key: Key) -> bool {
        self.0.lock().unwrap().saved.contains_key(&key)
    }

    async fn restore(&self, key: Key) -> Done<Recorded> {
        let mut shared = self.0.lock().unwrap();
        shared.log.push("restore".into());
        let (tree, leading) = shared.saved[&key].clone();
        Ok(Recorded { tree, leading, shared: self.0.clone() })
    }

    fn known_layer(&self, key: Key) -> Option<usize> {
        self.0.lock().unwrap().layers.get(&key).copied()
    }

    fn has_step_layer(&self, key: Key) -> bool {
        self.0.lock().unwrap().step_layers.contains_key(&key)
    }

    fn leading(&self, machine: &Recorded, _: &BaseImage) -> Done<usize> {
        Ok(machine.leading)
    }

    async fn names(&self, image: &BaseImage, output: File) -> Done<()> {
        if self.0.lock().unwrap().unlisted {
            return Err(MachineError::new("there are too many"));
        }
        let mut machine = self.machine(image);
        let mut writer = Writer::new(output);
        for (name, (content, owner)) in std::mem::take(&mut machine.tree) {
            let kind = if content.is_some() { Kind::File { size: 0, extents: None } } else { Kind::Directory };
            let (uid, gid, modified) = (owner.uid, owner.gid, Timestamp { seconds: 7, nanoseconds: 0 });
            let path = name.as_bytes()[1..].to_vec();
            writer.begin(&Entry { path, kind, mode: 0o711, uid, gid, modified, attributes: Vec::new() }).unwrap();
        }
        for link in &self.0.lock().unwrap().links {
            let (path, kind) = (link.as_bytes().to_vec(), Kind::Symlink(b"etc".to_vec()));
            let (modified, attributes) = (Timestamp::default(), Vec::new());
            writer.begin(&Entry { path, kind, mode: 0o777, uid: 0, gid: 0, modified, attributes }).unwrap();
        }
        writer.finish().unwrap();
        Ok(())
    }

    async fn extend(&self, base: &BaseImage, layers: Vec<StepLayer>) -> Done<BaseImage> {
        let mut shared = self.0.lock().unwrap();
        let mut digest = base.digest.clone();
        let texts: Vec<_> = layers.iter().map(|layer| layer.created_by.as_str()).collect();
        let line = format!("extend {} by {}", base.digest, texts.join(", "));
        shared.log.push(line);
        for StepLayer { key, archive, .. } in layers {
            if let Some(mut archive) = archive {
                let mut bytes = Vec::new();
                archive.read_to_end(&mut bytes).unwrap();
                shared.step_layers.insert(key, bytes);
            }
            let bytes = shared.step_layers[&key].clone();
            digest = format!("{digest}+");
            shared.extended.insert(digest.clone(), bytes);
        }
        Ok(BaseImage { digest, config: base.config.clone() })
    }

    async fn publish(&self, image: &NewImage, machine: Option<&mut Recorded>) -> Done<String> {
        let mut shared = self.0.lock().unwrap();
        shared.log.push(format!("publish {}", if machine.is_some() { "the changes" } else { "a known layer" }));
        if let Some(machine) = &machine {
            let names = machine.tree.iter().map(|(name, (content, _))| {
                format!("{name}={}", String::from_utf8_lossy(content.as_deref().unwrap_or_default()))
            });
            shared.left = names.collect();
        }
        if let (Some(key), Some(machine)) = (image.key, machine) {
            shared.layers.insert(key, machine.leading);
        }
        shared.published.push(image.clone());
        Ok("sha256:built".into())
    }

    fn scratch(&self) -> io::Result<File> {
        tempfile::tempfile()
    }

    fn cache(&self, id: &str) -> Option<File> {
        let bytes = self.0.lock().unwrap().caches.get(id).cloned()?;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        Some(file)
    }

    async fn keep_cache(&self, id: &str, mut archive: File) -> bool {
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut archive).unwrap();
        archive.read_to_end(&mut bytes).unwrap();
        self.0.lock().unwrap().caches.insert(id.to_owned(), bytes);
        true
    }
}
