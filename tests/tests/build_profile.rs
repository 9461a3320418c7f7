//! How the programs that are shipped are compiled.

/// A wrong number that came from a guest, an image or a client aborts instead of being used.
#[test]
fn every_crate_of_the_project_checks_its_arithmetic() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let manifest: toml::Table = std::fs::read_to_string(manifest).unwrap().parse().unwrap();
    let profiles = manifest["profile"].as_table().unwrap();
    assert_eq!(profiles["release"]["overflow-checks"].as_bool(), Some(true));
    for (profile, settings) in profiles {
        // A profile that inherits from release has its setting, unless it says otherwise.
        let without =
            |settings: &toml::Value| settings.get("overflow-checks").and_then(toml::Value::as_bool) == Some(false);
        assert!(!without(settings), "{profile}");
        let packages = settings.get("package").and_then(toml::Value::as_table);
        // "*" stands for all crates but those of the workspace.
        for (name, settings) in packages.into_iter().flatten().filter(|(name, _)| name.as_str() != "*") {
            assert!(!without(settings), "{profile}: {name}");
        }
    }
}
