//! An OCI image layout for umoci, and what umoci makes of it.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::{fs, path::Path, process::Command};

fn blob(directory: &Path, content: &[u8]) -> (String, usize) {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(directory.join("blobs/sha256").join(&hex), content).unwrap();
    (format!("sha256:{hex}"), content.len())
}

/// Unpacks uncompressed layers with umoci, and returns the root file system in `directory`.
pub fn umoci(layers: &[Vec<u8>], directory: &Path) -> std::path::PathBuf {
    let layout = directory.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let blobs: Vec<_> = layers.iter().map(|layer| blob(&layout, layer)).collect();
    let descriptor = |kind: &str, (digest, size): &(String, usize)| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let diff_ids: Vec<_> = blobs.iter().map(|(digest, _)| digest).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(&layout, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", &config),
        "layers": blobs.iter().map(|blob| descriptor("layer.v1.tar", blob)).collect::<Vec<_>>(),
    });
    let manifest = blob(&layout, manifest.to_string().as_bytes());
    let mut named = descriptor("manifest.v1+json", &manifest);
    named["annotations"] = json!({"org.opencontainers.image.ref.name": "test"});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [named]}).to_string()).unwrap();
    let bundle = directory.join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:test", layout.display()))
        .arg(&bundle)
        .output()
        .expect("umoci is installed (scripts/lib/prerequisites.sh)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle.join("rootfs")
}
