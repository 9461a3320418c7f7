//! Prints how fast layers become an image, and the memory for many files. For people; no test runs it.
//!
//! ```text
//! throughput IMAGE LAYER...     real layers, in order, written to a new file
//! throughput IMAGE files COUNT  an archive of this many empty files, made on the fly
//! ```

use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};
use sandboxvm_layers::{Layer, Limits, unpack};
use std::{
    error::Error,
    fs::{self, File},
    io::{BufWriter, Read},
    time::Instant,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        return Err("usage: throughput IMAGE LAYER...".into());
    }
    let image = File::create_new(arguments.remove(0))?;
    let mut layers: Vec<Layer<Box<dyn Read>>> = Vec::new();
    if let [word, count] = &arguments[..]
        && word == "files"
    {
        let count = count.parse()?;
        let (read, write) = std::io::pipe()?;
        std::thread::spawn(move || write_files(write, count));
        layers.push(Layer { input: Box::new(read), format: None, diff_id: None });
    } else {
        for path in &arguments {
            layers.push(Layer { input: Box::new(File::open(path)?), format: None, diff_id: None });
        }
    }
    let mut unpacked = std::collections::BTreeMap::new();
    let before = Instant::now();
    let summary = unpack(layers, &[], image.into(), &Limits::default(), |progress| {
        unpacked.insert(progress.layer, progress.unpacked);
    })?;
    let seconds = before.elapsed().as_secs_f64();
    let bytes: u64 = unpacked.values().sum();
    println!("{bytes} bytes in {seconds:.2} s: {:.0} MB/s", bytes as f64 / 1e6 / seconds);
    println!("{} files, image of {} bytes", summary.files, summary.bytes);
    let status = fs::read_to_string("/proc/self/status")?;
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    Ok(())
}

fn write_files(output: impl std::io::Write, count: u32) -> std::io::Result<()> {
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, output));
    for number in 0..count {
        let entry = Entry {
            path: format!("usr/share/some/directory{}/file-{number}", number / 100).into_bytes(),
            kind: Kind::File { size: 0, extents: None },
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
            attributes: vec![],
        };
        writer.begin(&entry)?;
        writer.end()?;
    }
    writer.finish().map(drop)
}
