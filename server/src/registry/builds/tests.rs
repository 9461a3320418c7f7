use super::{
    local_registry::{Registry as LocalRegistry, layout, run},
    *,
};
use crate::{
    access::keys::{KeyId, KeyLimits},
    channel::request::RegistryLogin,
    config::{Config, images::ImagesConfig},
};
use sandboxvm_images::bundle::{Bundle, BundleSources};
use sandboxvm_manager::{Manager, SupervisorProgram};
use std::fs;

fn open(home: &std::path::Path, images: ImagesConfig) -> Registry {
    let bundle = Bundle::find(&BundleSources::default());
    let supervisor = SupervisorProgram { program: "/nonexistent".into(), arguments: Vec::new() };
    let config = Config { images, ..Config::default() };
    Registry::open(&config, Manager::open(home).unwrap(), bundle, supervisor).unwrap()
}

fn key(id: &str) -> Key {
    Key { id: KeyId(id.into()), account: KeyId(id.into()), limits: KeyLimits::default() }
}

fn spec(image: &str, login: Option<(&str, &str)>) -> BuildSpec {
    BuildSpec {
        from_image: Some(image.to_owned()),
        from_template: None,
        login: login.map(|(user, password)| RegistryLogin { user: user.into(), password: password.into() }),
        force: false,
        steps: Vec::new(),
        start_cmd: None,
        ready_cmd: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_image_needs_the_credentials_of_each_build() {
    let (home, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let passwords = data.path().join("htpasswd").display().to_string();
    run("htpasswd", &["-Bbc", &passwords, "user", "secret"]);
    fs::create_dir(data.path().join("root")).unwrap();
    fs::write(data.path().join("root/file"), "private").unwrap();
    let oci = data.path().join("layout");
    layout(&oci, &data.path().join("root"), &["--config.env=A=1"]);
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {passwords}\n");
    let from = format!("oci:{}:test", oci.display());
    let local = LocalRegistry::start(data, "", &auth);
    let image = format!("{}/app", local.host());
    let to = format!("docker://{image}");
    run("skopeo", &["copy", "--dest-tls-verify=false", "--dest-creds", "user:secret", &from, &to]);
    let images = ImagesConfig {
        registries: vec![local.host()],
        plain_http: vec![local.host()],
        builds_per_key: 1,
        ..ImagesConfig::default()
    };
    let registry = open(&home.path().join("home"), images);
    let base = async |login| {
        let spec = spec(&image, login);
        let (template, build) = (SandboxName::try_from("tpl-1".to_owned()).unwrap(), "b".into());
        let job = Job { key: key("1"), template, build, spec, log: Arc::default(), cancel: CancellationToken::new() };
        let images = registry.manager.images(&registry.bundle, registry.builds.config.options()).unwrap();
        registry.image_base(&job, &image, &images).await.map(|base| (base.origin, base.setting.env))
    };
    let (origin, env) = base(Some(("user", "secret"))).await.unwrap();
    assert!(origin.starts_with("image sha256:") && env.contains(&"A=1".to_owned()), "{origin} {env:?}");
    // The blobs are in the store now, and give nothing to a build that the registry refuses.
    for login in [None, Some(("user", "wrong"))] {
        let refused = base(login).await.unwrap_err();
        assert!(refused.starts_with("cannot pull ") && !refused.contains("wrong"), "{refused}");
    }
    assert_eq!(base(Some(("user", "secret"))).await.unwrap().0, origin);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_build_of_a_template_cancels_the_one_that_runs() {
    let home = tempfile::tempdir().unwrap();
    let registry = open(home.path(), ImagesConfig::default());
    let key = key("1");
    let from_base = || BuildSpec { from_image: None, from_template: Some("base".into()), ..spec("", None) };
    let request = |name: &str| registry.request_build(&key, name, &[], None, None).unwrap();
    let (template, first) = request("mine");
    let id = template.id.as_str();
    let job = registry.start_build(&key, id, &first.id, from_base()).unwrap();
    assert!(matches!(registry.start_build(&key, id, &first.id, from_base()), Err(BuildError::NotWaiting(_))));
    // Another template has to wait.
    let (other, build) = request("other");
    let started = registry.start_build(&key, other.id.as_str(), &build.id, from_base());
    assert!(matches!(started, Err(BuildError::Quota(1))));
    let (_, second) = request("mine");
    let next = registry.start_build(&key, id, &second.id, from_base()).unwrap();
    registry.run_build(job).await;
    let shown = registry.build_of(&key, id, &first.id).unwrap().1;
    assert_eq!((shown.status, shown.reason.unwrap().message.as_str()), (Status::Error, "the build was cancelled"));
    let lines = registry.builds.lines(&first.id);
    assert_eq!(lines.last().map(|line| line.message.as_str()), Some("the build was cancelled"));
    // A deleted template ends its builds.
    assert!(registry.remove_built(&key, "mine").unwrap());
    registry.run_build(next).await;
    assert!(registry.built(&key, "mine").is_err() && registry.builds.templates.of(&key.id).len() == 1);
}
