//! What to type next, for failures of which the library says only what is wrong. The library names no command, option or
//! variable of this program; this module maps its error variants to them.

use sandboxvm_images::{bundle::BundleError, erofs::ErofsError, kernel::KernelError, template::TemplateError};
use sandboxvm_manager::{
    AdmissionError, AgentError, CTextError, CommitError, ControlError, CopyError, CreateError, ExecError, FileError,
    FileErrorKind, FindError, ForkError, HoldError, HomeError, HostError, ImageError, InUseError, LineageError,
    ManifestError, MountsError, NameError, NetworkFailure, ProcessSpecError, RecordError, RefusalKind, RemoveError,
    ResetError, SnapshotError, StartError, State, SuperviseError, VolumeError, audit::AuditError,
};
use sandboxvm_mcp::HttpError;
use sandboxvm_oci::registry::RegistryError;
use sandboxvm_server::{KeyError, ServerError, TokenError, TracesError};
use sandboxvm_workspace::{ApplyError, CopyInError, PlanError, ScanError};
use std::error::Error;

const OVERLOADED: &str = "the host may be overloaded";
const SNAPSHOT_AGAIN: &str = "create the snapshot again";
const OTHER_VERSION: &str = "use the version of sandboxvm that wrote the file";
const READ_ONLY_VOLUME: &str = "create a sandbox that mounts the volume with :ro";
const SHARE_ON_FORK: &str =
    "`--share-on-fork copy` gives each copy its own files, `ro` lets the copies read these, `share` also write";
const RESUME_FIRST: &str = "`sandboxvm resume SANDBOX` makes it continue";
const BUILD: &str = "scripts/quickstart builds it again";

/// Returns the hint for `error` or, if it has none, for what caused it.
pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<String> {
    std::iter::successors(Some(error), |error| (*error).source()).find_map(|error| {
        of_sandboxes(error)
            .or_else(|| of_snapshots(error))
            .or_else(|| of_processes(error))
            .or_else(|| of_images(error))
            .or_else(|| of_the_host(error))
            .or_else(|| of_servers(error))
            .or_else(|| of_workspaces(error))
            .or_else(|| of_mounts(error))
    })
}

fn is<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    error.downcast_ref()
}

fn fixed(hint: &str) -> Option<String> {
    Some(hint.to_owned())
}

/// Finding, naming, starting and ending sandboxes.
fn of_sandboxes(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = is::<FindError>(error) {
        return match error {
            FindError::Unknown(_) => fixed("`sandboxvm ls` lists the sandboxes"),
            FindError::Ambiguous { .. } => fixed("give more characters of the ID"),
            _ => None,
        };
    }
    if let Some(RemoveError::Live { id, .. }) = is(error) {
        return Some(removes(id.as_str()));
    }
    if let Some(NameError::Taken { name, .. }) = is(error) {
        return Some(format!("choose another name, or remove that sandbox with `sandboxvm rm {name}`"));
    }
    if let Some(error) = is::<RecordError>(error) {
        return match error {
            RecordError::Damaged { .. } if error.is_about_network() => {
                fixed("`sandboxvm network set SANDBOX` replaces the settings")
            }
            RecordError::Damaged { .. } => fixed("`sandboxvm rm` removes the sandbox"),
            RecordError::Format { .. } => fixed(OTHER_VERSION),
            RecordError::Directory(_) => None,
        };
    }
    if let Some(error) = is::<SuperviseError>(error) {
        return match error {
            SuperviseError::Unknown(_) => fixed("`sandboxvm port SANDBOX` lists the published ports"),
            SuperviseError::Damaged { .. } => fixed("`sandboxvm rm` removes the sandbox"),
            SuperviseError::NoCard(_) => fixed("create another sandbox with --net or --allow"),
            SuperviseError::NetworkDown(_) => fixed("`sandboxvm network show SANDBOX` shows whether it works again"),
            SuperviseError::Network(NetworkFailure::NoProgram) => fixed(BUILD),
            _ => None,
        };
    }
    match is(error)? {
        CreateError::NoCard(_) => {
            fixed("create the snapshot of a sandbox with a network, or leave out --net and --allow")
        }
        CreateError::Start { cause: StartError::Silent(_) | StartError::TimedOut(_), .. } => fixed(OVERLOADED),
        CreateError::Mounts(error) => of_mounts(error),
        CreateError::Volume(error) => of_mounts(error),
        _ => None,
    }
}

/// Copies of directories, and what sandboxes changed in them.
fn of_workspaces(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(CopyInError::ContainsCache(_)) = is(error) {
        return fixed("choose a directory below it, or set SANDBOXVM_HOME to a directory elsewhere");
    }
    if let Some(ScanError::TooMany(_) | ScanError::TooLarge(_)) = is(error) {
        return fixed("leave files out with .sandboxvmignore or --gitignore");
    }
    if let Some(PlanError::NoChanges(_)) = is(error) {
        return fixed("`sandboxvm changes SANDBOX` lists the paths; they are relative to the directory");
    }
    if let Some(PlanError::OtherApply(_)) = is(error) {
        return fixed(
            "`sandboxvm changes SANDBOX` finishes that of its sandbox; if that is removed, take your files out of it and remove it",
        );
    }
    match is(error)? {
        ApplyError::OtherRoot(_) => fixed("move the directory back, or `sandboxvm rm -f SANDBOX` gives the apply up"),
        _ => None,
    }
}

/// Volumes, and what else is mounted in sandboxes.
fn of_mounts(error: &(dyn Error + 'static)) -> Option<String> {
    match is::<VolumeError>(error) {
        Some(VolumeError::Unknown(_)) => return fixed("`sandboxvm volume ls` lists the volumes"),
        Some(VolumeError::Unclean(name)) => {
            return Some(format!("`sandboxvm run -v {name}:/mnt -- true` mounts it writable and unmounts it"));
        }
        Some(VolumeError::InUse { .. }) => {
            return fixed("`sandboxvm volume ls` lists the sandboxes that have it; remove them first");
        }
        Some(VolumeError::Users(_)) => return fixed("`sandboxvm rm ID` removes a sandbox that cannot be read"),
        Some(_) => return None,
        None => {}
    }
    match is(error) {
        Some(MountsError::NoHostDirectory { at, .. }) => {
            return Some(format!("add `-v HOST:{at}`, with the directory or file of the host that it is to have"));
        }
        Some(MountsError::ReadOnlyInSnapshot { .. }) => return fixed("add `:ro` to its -v"),
        _ => {}
    }
    match is(error) {
        Some(SnapshotError::WritableVolume { .. }) => return fixed(READ_ONLY_VOLUME),
        Some(SnapshotError::Hold(HoldError::Paused(_))) => return fixed(RESUME_FIRST),
        _ => {}
    }
    match is(error)? {
        ForkError::WritableVolume { .. } => fixed(READ_ONLY_VOLUME),
        ForkError::WritableShare { .. } => fixed(SHARE_ON_FORK),
        ForkError::CopiedShare { .. } => fixed("use `--share-on-fork copy`"),
        ForkError::Hold(HoldError::Paused(_)) => fixed(RESUME_FIRST),
        _ => None,
    }
}

/// Snapshots, forks, and going back to one.
fn of_snapshots(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = is::<SnapshotError>(error) {
        return match error {
            SnapshotError::Unknown(_) => fixed("`sandboxvm snapshot ls` lists the snapshots"),
            SnapshotError::Taken(name) => {
                Some(format!("choose another name, or remove that snapshot with `sandboxvm snapshot rm {name}`"))
            }
            SnapshotError::OtherHost(_)
            | SnapshotError::OtherContent { .. }
            | SnapshotError::Truncated { .. }
            | SnapshotError::Changed(_) => fixed(SNAPSHOT_AGAIN),
            _ => None,
        };
    }
    if let Some(ManifestError::Damaged { .. } | ManifestError::Nonsense { .. } | ManifestError::Format { .. }) =
        is(error)
    {
        return fixed(SNAPSHOT_AGAIN);
    }
    if let Some(error) = is::<LineageError>(error) {
        return match error {
            LineageError::Missing => fixed("create another sandbox"),
            LineageError::Format { .. } => fixed(OTHER_VERSION),
            _ => None,
        };
    }
    if let Some(ForkError::NotReady(_)) = is(error) {
        return fixed(OVERLOADED);
    }
    match is(error)? {
        ResetError::Fork { .. } => fixed("name a snapshot to reset it to"),
        ResetError::OtherMachine { snapshot, .. } => {
            Some(format!("`sandboxvm create --from {snapshot}` creates a sandbox from it"))
        }
        ResetError::OtherKernel { .. } => fixed("create a new sandbox"),
        ResetError::Start(_) => fixed("reset the sandbox again, or remove it"),
        _ => None,
    }
}

/// Processes, files, and talking to a sandbox.
fn of_processes(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = is::<ExecError>(error) {
        return match error {
            ExecError::NotRunning { sandbox, state } => of_state(sandbox, state),
            ExecError::Unresponsive { sandbox, .. } => Some(removes(sandbox)),
            ExecError::NotReady(sandbox) => Some(format!("`sandboxvm logs {sandbox}` shows its console")),
            _ => None,
        };
    }
    if let Some(error) = is::<ProcessSpecError>(error) {
        return match error {
            ProcessSpecError::NoProgram => fixed("give a program and its arguments after `--`"),
            ProcessSpecError::TooLong(_) => fixed("pass large data on standard input or in a file"),
            _ => None,
        };
    }
    if let Some(CTextError::TooLong(_)) = is(error) {
        return fixed("pass large data on standard input or in a file");
    }
    if let Some(error) = is::<ControlError>(error) {
        return match error {
            ControlError::Silent(Some(sandbox)) => Some(removes(sandbox)),
            ControlError::NotRunning { sandbox, state } => of_state(sandbox, state),
            ControlError::Unfinished(_) => fixed(OVERLOADED),
            ControlError::TooOld => fixed("stop the sandbox and start it again"),
            ControlError::Refused(refusal) => of_vmm_refusal(refusal.kind?),
            _ => None,
        };
    }
    if let Some(error) = is::<AgentError>(error) {
        return match error {
            AgentError::NotListening => fixed("`sandboxvm logs SANDBOX` shows the console of the guest"),
            AgentError::TooOld { .. } => fixed("create the sandbox, or the snapshot it was restored from, again"),
            AgentError::CannotLimit { .. } => fixed("leave out --pids and --nofile, or create the snapshot again"),
            _ => None,
        };
    }
    if let Some(InUseError::Busy) = is(error) {
        return fixed("`sandboxvm rm -f` ends both and removes the sandbox");
    }
    if let Some(FileError::Refused(refusal)) = is(error) {
        return of_refusal(refusal.kind);
    }
    match is::<CopyError>(error)? {
        error if error.exceeds_bytes() => fixed("--max-size sets a higher limit"),
        error if error.exceeds_entries() => fixed("--max-files sets a higher limit"),
        _ => None,
    }
}

/// Images and registries.
fn of_images(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(CommitError::NoImage(_)) = is(error) {
        return fixed("create the sandbox with --image and a reference");
    }
    let error = match is::<ImageError>(error) {
        Some(ImageError::Oci(error)) => error,
        _ => is::<sandboxvm_oci::Error>(error)?,
    };
    match error {
        sandboxvm_oci::Error::NotFound(_) => {
            fixed("`sandboxvm image pull` fetches an image, and `sandboxvm image ls` lists those of the home")
        }
        sandboxvm_oci::Error::AmbiguousId(_) => fixed("give more characters of the ID"),
        sandboxvm_oci::Error::Registry(RegistryError::Denied { host, .. }) => {
            Some(format!("`sandboxvm image login {host}` keeps credentials for it"))
        }
        sandboxvm_oci::Error::Registry(RegistryError::Unreachable { .. } | RegistryError::NotEncrypted(_)) => {
            fixed("for a registry without TLS give --plain-http, and for your own authority --ca")
        }
        _ => None,
    }
}

fn of_state(sandbox: &str, state: &State) -> Option<String> {
    match state {
        State::Paused => Some(format!("`sandboxvm resume {sandbox}` resumes it")),
        State::Exited { .. } | State::Dead => {
            Some(format!("`sandboxvm logs {sandbox}` shows its console, and `sandboxvm rm {sandbox}` removes it"))
        }
        State::Creating | State::Running => None,
    }
}

/// What the user can do about a request that a VMM refused.
fn of_vmm_refusal(kind: RefusalKind) -> Option<String> {
    match kind {
        RefusalKind::NoSpace => fixed("remove sandboxes or snapshots to free space on the host"),
        RefusalKind::Resources => fixed("stop some sandboxes, or raise the limits of processes and open files"),
        RefusalKind::BadSnapshot => fixed(SNAPSHOT_AGAIN),
        RefusalKind::Superseded => fixed("repeat the command"),
        // The message of a busy VMM says to wait, and the user cannot cause the others.
        RefusalKind::Busy | RefusalKind::WrongPhase | RefusalKind::BadRequest | RefusalKind::Host => None,
    }
}

fn of_refusal(kind: FileErrorKind) -> Option<String> {
    fixed(match kind {
        FileErrorKind::NoSpace => "remove files in the sandbox, or create one with a larger --disk",
        FileErrorKind::PermissionDenied => "use another user, or change the mode or owner of the file",
        FileErrorKind::ReadOnly => "choose a path on another file system",
        FileErrorKind::NotEmpty => "remove the directory with its content",
        FileErrorKind::Resources => "end processes in the sandbox, or create one with more --memory",
        FileErrorKind::BadArchive => "files that were unpacked before the error remain",
        _ => return None,
    })
}

/// What the host provides: the home, the bundle, KVM, memory and disk.
fn of_the_host(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = is::<AdmissionError>(error) {
        return match error {
            AdmissionError::MoreThanTheHost { .. } => fixed("ask for less with --memory"),
            AdmissionError::TooMany { .. } => {
                fixed("remove some (`sandboxvm ls`, `sandboxvm prune`), or raise SANDBOXVM_MAX_SANDBOXES")
            }
            AdmissionError::Overcommitted { .. } => {
                fixed("stop some sandboxes, ask for less with --memory, or raise SANDBOXVM_OVERCOMMIT")
            }
            AdmissionError::NoMemory { .. } => {
                fixed("stop some sandboxes, ask for less with --memory, or lower SANDBOXVM_MIN_FREE_MEMORY")
            }
            AdmissionError::NoDisk { .. } => {
                fixed("remove sandboxes or snapshots, ask for less with --disk, or lower SANDBOXVM_MIN_FREE_DISK")
            }
            _ => None,
        };
    }
    if let Some(error) = is::<BundleError>(error) {
        return match error {
            BundleError::Missing { part, .. } => Some(format!(
                "scripts/quickstart builds it; otherwise set SANDBOXVM_BUNDLE to the directory that contains {}",
                part.file_name()
            )),
            BundleError::NotExecutable { path, .. } => Some(format!("run `chmod +x {}`", path.display())),
            BundleError::Kernel { source, .. } => of_kernel(source),
            BundleError::Erofs { source: ErofsError::Io(_), .. } => None,
            BundleError::Erofs { .. } => fixed(BUILD),
            _ => None,
        };
    }
    if let Some(TemplateError::NoMke2fs) = is(error) {
        return fixed("install it with `apt-get install e2fsprogs`");
    }
    if let Some(HostError::NoKvm) = is(error) {
        return fixed("`sandboxvm doctor` shows what to fix");
    }
    if let Some(AuditError::NoEnd(_)) = is(error) {
        return fixed("run `sandboxvm audit verify`, then move the file aside");
    }
    match is(error)? {
        HomeError::Create { .. } => fixed("set SANDBOXVM_HOME to a directory that you can write to"),
        HomeError::Untrusted { .. } => {
            fixed("use a directory that belongs to you and that no other user can write to (chmod go-w)")
        }
    }
}

fn of_kernel(error: &KernelError) -> Option<String> {
    match error {
        KernelError::NotElf { look } if look.contains("bzImage") => {
            fixed("extract the vmlinux with scripts/extract-vmlinux of the kernel source")
        }
        KernelError::NotElf { look } if look.contains("data") => fixed("decompress it first"),
        KernelError::Empty | KernelError::Truncated { .. } => fixed(BUILD),
        _ => None,
    }
}

/// The servers that this program runs.
fn of_servers(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = is::<ServerError>(error) {
        return match error {
            ServerError::Taken(_) => fixed("stop that server, or set SANDBOXVM_HOME to another directory"),
            ServerError::Listen { .. } => fixed("choose another address with --api, --sandboxes or --metrics"),
            _ => None,
        };
    }
    if let Some(TracesError::NotBuilt) = is(error) {
        return fixed(
            "leave out --otlp and OTEL_EXPORTER_OTLP_ENDPOINT, or build with `cargo build --release --features otlp`",
        );
    }
    if let Some(error) = is::<KeyError>(error) {
        return match error {
            KeyError::Unknown(_) => fixed("`sandboxvm key ls` lists the keys"),
            KeyError::Damaged { .. } => fixed("restore the file from a copy, or remove it to start without keys"),
            KeyError::Io { .. } => None,
        };
    }
    if let Some(TokenError::Damaged(_)) = is(error) {
        return fixed("remove the file; the server then creates another secret, and all tokens change");
    }
    match is(error)? {
        HttpError::ShortToken(_) => fixed("`openssl rand -hex 32` prints a suitable token"),
        HttpError::Listen { .. } => fixed("choose another address with --http"),
        HttpError::Serve(_) => None,
    }
}

fn removes(sandbox: &str) -> String {
    format!("`sandboxvm rm -f {sandbox}` ends and removes it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{
        CopyError, FileError, MountPath, SandboxName, Silence, SilentPart, SnapshotError, VmmRefusal,
    };
    use std::time::Duration;

    #[test]
    fn hint_for_an_unresponsive_sandbox_is_found_below_other_errors() {
        let silence = Silence { part: SilentPart::Vmm, within: Duration::from_secs(5) };
        let exec = || ExecError::Unresponsive { sandbox: "demo".to_owned(), silence };
        let hint = Some("`sandboxvm rm -f demo` ends and removes it".to_owned());
        assert_eq!(of(&exec()), hint);
        assert_eq!(of(&CopyError::from(FileError::from(exec()))), hint);
        let control = || ControlError::Silent(Some("demo".to_owned()));
        assert_eq!(of(&SnapshotError::from(control())), hint);
        assert_eq!(of(&ExecError::from(control())), hint);
        assert_eq!(of(&ControlError::Silent(None)), None);
    }

    #[test]
    fn hint_for_a_request_that_a_vmm_refused_depends_on_the_kind() {
        let refused = |kind| {
            let message = "cannot write the snapshot: No space left on device (os error 28)".to_owned();
            of(&SnapshotError::from(ControlError::Refused(VmmRefusal { kind, message })))
        };
        assert!(refused(Some(RefusalKind::NoSpace)).is_some_and(|hint| hint.contains("free space")));
        assert_eq!(refused(Some(RefusalKind::Host)), None);
        // A VMM that runs since before an upgrade does not say the kind.
        assert_eq!(refused(None), None);
    }

    #[test]
    fn hints_are_found_below_the_errors_that_wrap_them() {
        let named = |error: &(dyn Error + 'static), text: &str| {
            let hint = of(error).unwrap_or_default();
            assert!(hint.contains(text), "{error}: {hint:?}");
        };
        let admission = || AdmissionError::TooMany { count: 1, there: 2, most: 2 };
        named(&CreateError::from(admission()), "SANDBOXVM_MAX_SANDBOXES");
        named(&CreateError::from(SnapshotError::from(admission())), "SANDBOXVM_MAX_SANDBOXES");
        named(&ResetError::from(admission()), "SANDBOXVM_MAX_SANDBOXES");
        named(&CreateError::from(SnapshotError::Unknown("x".into())), "sandboxvm snapshot ls");
        let snapshot = SandboxName::try_from("kept".to_owned()).unwrap();
        let at = MountPath::try_from("/data".to_owned()).unwrap();
        named(&CreateError::from(MountsError::NoHostDirectory { snapshot, at, path: "/x".into() }), "-v HOST:/data");
        named(&RemoveError::from(FindError::Unknown("x".into())), "sandboxvm ls");
        named(&SuperviseError::from(FindError::Unknown("x".into())), "sandboxvm ls");
        named(&ForkError::from(AuditError::NoEnd("/x".into())), "audit verify");
        named(&CreateError::from(HostError::NoKvm), "sandboxvm doctor");
        let name = "demo".to_owned().try_into().expect("a name");
        let holder = "aaaaaaaa".to_owned().try_into().expect("an ID");
        named(&ForkError::from(NameError::Taken { name, holder }), "sandboxvm rm demo");
        named(&ExecError::from(AgentError::from(InUseError::Busy)), "rm -f");
        let missing = BundleError::Missing { part: sandboxvm_images::bundle::Part::Kernel, path: "/x".into() };
        named(&CreateError::from(missing), "vmlinux");
        named(&ServerError::from(KeyError::Unknown("x".into())), "key ls");
    }

    #[test]
    fn hints_depend_on_the_state_of_the_sandbox() {
        let exec = |state| of(&ExecError::NotRunning { sandbox: "demo".to_owned(), state });
        assert_eq!(exec(State::Paused).as_deref(), Some("`sandboxvm resume demo` resumes it"));
        assert!(exec(State::Dead).is_some_and(|hint| hint.contains("sandboxvm logs demo")));
        assert_eq!(exec(State::Creating), None);
    }
}
