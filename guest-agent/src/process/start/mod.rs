//! Starts the process of a request.
//!
//! ```text
//! environment  variables it starts with        program     the file that a name means
//! terminal     pseudoterminals                 child       the part that runs between clone and exec
//! init         namespaces of an init system    init_mounts its file systems, between clone and exec
//! ```
//!
//! What an exec costs in system calls, for a program found in the fourth directory of PATH, run as root with its
//! stdin from /dev/null, that writes one line and ends (from accept to close, both sides counted):
//!
//! ```text
//! agent   epoll_wait  accept4  recvfrom                                       server
//!         access x4  pipe2 x2  fcntl x2  clone3  close x2                     here
//!         epoll_ctl x3  sendto (Hello and Started in one packet)              server
//!         epoll_wait  read (signalfd)  wait4 x2  read  sendto  close x3       server
//! child   setsid  dup2 x3  chdir  rt_sigprocmask  sched_setscheduler  execve  child
//! ```
//! Traced where guest-kernel code is interpreted, in thousands of its instructions: access 5 each (four components
//! through the overlay), clone 7.5, pipe2 3, recvfrom 4.6, sendto 2.6, close 1.6, epoll_wait and epoll_ctl 1.4 each, the
//! rest below 2: some 75 together, of the 1,300 that `true` takes from accept to close. The others are exec itself, the
//! dynamic loader's mappings, page faults and exit, where the agent has no say.
//!
//! Stdin from the connection adds pipe2, fcntl and two closes; another user than root adds the reading of two files
//! and three calls in the child.

mod child;
mod environment;
mod init;
mod init_mounts;
mod program;
mod strings;
pub(super) mod terminal;

use crate::process::Process;
use crate::process::cgroups::{CgroupError, Cgroups};
use crate::process::output::Output;
use crate::process::stdin::Stdin;
use crate::process::title::Title;
use crate::process::user::{User, UserError};
use child::{Credentials, Namespaces, Plan, Step};
use environment::{Environment, EnvironmentError};
use init::Init;
use program::{Candidates, ProgramError};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use sandboxvm_protocol::agent::limits::ProcessLimits;
use sandboxvm_protocol::agent::{
    CText, ExecRequest, Failure, FailureKind, MAX_ARGUMENTS_TOTAL, SignalNumber, StdinSource,
};
use sandboxvm_protocol::frame::FrameKind;
use sandboxvm_spawn::{Beginning, vfork};
use std::cell::Cell;
use std::ffi::c_char;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use strings::CStrings;
use terminal::open_terminal;

/// Stack of a child until its exec. Its calls are few and not deep, and only the pages that it uses
/// exist.
const CHILD_STACK: usize = 64 * 1024;

/// Why no process was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The request names no program.
    #[error("exec: argv is empty; name a program")]
    EmptyArgv,
    /// The request is longer than the wire allows.
    #[error("exec: argv and environment take {0} bytes together, at most {MAX_ARGUMENTS_TOTAL} are possible")]
    TooLong(usize),
    /// The environment is invalid.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The user cannot be found.
    #[error(transparent)]
    User(#[from] UserError),
    /// The program cannot be executed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The working directory cannot be entered.
    #[error("exec: cannot enter the working directory {path:?}: {errno}")]
    WorkingDirectory {
        /// Path in the request.
        path: String,
        /// The error of the kernel.
        errno: Errno,
    },
    /// The sandbox has run out of a resource.
    #[error("exec: cannot {step}: {errno}; the sandbox is out of processes, files or memory")]
    Resources {
        /// The step that failed.
        step: &'static str,
        /// The error of the kernel.
        errno: Errno,
    },
    /// The init system gets no control group.
    #[error("exec: {0}")]
    Group(#[from] CgroupError),
    /// The child failed for another reason.
    #[error("exec: the new process cannot {step}: {errno}")]
    Child {
        /// The step that failed.
        step: &'static str,
        /// The error of the kernel.
        errno: Errno,
    },
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        let kind = match &error {
            SpawnError::EmptyArgv | SpawnError::Environment(_) => FailureKind::BadRequest,
            SpawnError::TooLong(_) | SpawnError::Resources { .. } => FailureKind::Resources,
            SpawnError::User(UserError::File { .. }) | SpawnError::Group(_) | SpawnError::Child { .. } => {
                FailureKind::Internal
            }
            SpawnError::User(_) => FailureKind::NoSuchUser,
            SpawnError::Program(error) if error.is_not_found() => FailureKind::NotFound,
            SpawnError::Program(_) => FailureKind::NotExecutable,
            SpawnError::WorkingDirectory { .. } => FailureKind::BadWorkingDirectory,
        };
        Self { kind, message: error.to_string() }
    }
}

/// Starts processes.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Vec<u128>,
    null: OwnedFd,
    is_batch: bool,
    /// Only of an agent that is PID 1.
    cgroups: Option<Cgroups>,
    /// The init system, and its control group if there are groups.
    init: Option<(Init, Option<OwnedFd>)>,
    /// Maximum number of open files of each process, if it differs from the agent's.
    files: Option<u64>,
}

impl Spawner {
    /// Opens `/dev/null` and makes sure that the standard streams are open, so that no other file
    /// gets their numbers.
    ///
    /// `is_batch` says whether the agent is a batch task, which its processes must not be.
    /// Processes are put into `cgroups`.
    pub(crate) fn new(is_batch: bool, cgroups: Option<Cgroups>) -> Result<Self, Errno> {
        let open_null = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let mut null = open_null()?;
        while null.as_raw_fd() <= 2 {
            // Stays open, in place of a standard stream that the kernel did not provide.
            std::mem::forget(null);
            null = open_null()?;
        }
        Ok(Self { stack: vec![0; CHILD_STACK / size_of::<u128>()], null, is_batch, cgroups, init: None, files: None })
    }

    /// Sets the limits of processes from now on.
    pub(crate) fn limit(&mut self, limits: &ProcessLimits) {
        if let Some(cgroups) = &mut self.cgroups {
            cgroups.limit(limits.processes);
        }
        self.files = limits.files.map(|files| u64::from(files.get()));
    }

    /// Returns the descriptor of the init system, in whose mounts paths are meant.
    pub(crate) fn init(&self) -> Option<BorrowedFd<'_>> {
        self.init.as_ref().map(|(init, _)| init.process())
    }

    /// Notes that the init system has ended. Processes are then started outside of its namespaces.
    pub(crate) fn init_ended(&mut self) {
        self.init = None;
    }

    /// Starts an init system in its own namespaces, which processes enter from then on.
    pub(crate) fn spawn_init(&mut self, request: &ExecRequest) -> Result<Process, SpawnError> {
        let group = self.cgroups.as_ref().map(Cgroups::init).transpose()?;
        let process = self.spawn_in(request, Some(group.as_ref().map(AsFd::as_fd)))?;
        match Init::of(process.pid) {
            Ok(init) => self.init = Some((init, group)),
            Err(errno) => {
                process.signal(SignalNumber::KILL);
                let _ = waitpid(Some(process.pid), WaitOptions::empty());
                return Err(SpawnError::Resources { step: "refer to the init", errno });
            }
        }
        Ok(process)
    }

    /// Starts the process that `request` describes.
    pub(crate) fn spawn(&mut self, request: &ExecRequest) -> Result<Process, SpawnError> {
        self.spawn_in(request, None)
    }

    /// Starts a process. `new` is for an init system: new namespaces, and its control group.
    fn spawn_in(&mut self, request: &ExecRequest, new: Option<Option<BorrowedFd<'_>>>) -> Result<Process, SpawnError> {
        let name = request.argv.first().ok_or(SpawnError::EmptyArgv)?.as_bytes();
        let bytes = |texts: &[CText]| texts.iter().map(|text| text.as_bytes().len() + 1).sum::<usize>();
        let total = bytes(&request.argv) + bytes(&request.env);
        if total > MAX_ARGUMENTS_TOTAL {
            return Err(SpawnError::TooLong(total));
        }
        let user = match &request.user {
            None => User::root(),
            Some(wanted) => User::find(wanted.as_bytes())?,
        };
        let namespaces = match (new, self.init()) {
            (Some(_), _) => Namespaces::New,
            (None, Some(init)) => Namespaces::Of(init.as_raw_fd()),
            (None, None) => Namespaces::Machine,
        };
        let contained = namespaces != Namespaces::Machine;
        let environment = Environment::new(&request.env, &user, request.terminal.is_some(), contained)?;
        let programs = Candidates::find(name, environment.get(b"PATH").unwrap_or_default())?;
        let directory = request.cwd.as_ref().map_or(&user.home[..], CText::as_bytes);

        let mut argv = CStrings::with_capacity(request.argv.len(), total);
        for argument in &request.argv {
            argv.push(&[argument.as_bytes()]);
        }
        let mut directory_string = CStrings::default();
        directory_string.push(&[directory]);
        let ends = Ends::open(request, &user)?;
        let envp = environment.to_strings();
        let plan = Plan {
            programs: &programs.strings().pointers(),
            argv: &argv.pointers(),
            envp: &envp.pointers(),
            streams: ends.child_streams(&self.null),
            terminal: request.terminal.is_some(),
            is_batch: self.is_batch,
            namespaces,
            credentials: user.ids.as_ref().map(|ids| Credentials { uid: ids.uid, gid: ids.gid, groups: &ids.groups }),
            files: self.files,
            is_urgent: Cell::new(false),
            directory: directory_pointer(directory, &directory_string),
            directory_is_optional: request.cwd.is_none(),
            failure: Cell::new(None),
        };
        let pid = self.clone_child(&plan, new.flatten())?;
        let failure = plan.failure.take();
        if let Some((step, errno)) = failure {
            // The child ends right after its report. It is reaped here, so that it is never taken
            // for a process of the table.
            let _ = waitpid(Some(pid), WaitOptions::empty());
            let errno = Errno::from_raw_os_error(errno);
            return Err(match (step, errno) {
                (_, Errno::NOMEM | Errno::AGAIN) => SpawnError::Resources { step: step.name(), errno },
                (Step::Exec, Errno::TOOBIG) => SpawnError::Resources { step: "pass on its arguments", errno },
                (Step::Exec, _) => programs.explain(name, directory, errno).into(),
                (Step::WorkingDirectory, _) => SpawnError::WorkingDirectory {
                    path: String::from_utf8_lossy(directory).chars().take(256).collect(),
                    errno,
                },
                _ => SpawnError::Child { step: step.name(), errno },
            });
        }
        Ok(ends.into_process(pid, request))
    }

    /// Creates the process, with the PID namespace that the plan asks for.
    fn clone_child(&mut self, plan: &Plan<'_>, of_init: Option<BorrowedFd<'_>>) -> Result<Pid, SpawnError> {
        let Self { stack, cgroups, init, .. } = self;
        let cgroups = cgroups.as_ref();
        let pid = match (plan.namespaces, init) {
            (Namespaces::New, _) => run_child(stack, plan, of_init),
            (_, Some((init, group))) => {
                let group = group.as_ref().map(AsFd::as_fd);
                init.with_children_inside(|| clone_into(stack, plan, cgroups, group)).and_then(|made| made)
            }
            (_, None) => clone_into(stack, plan, cgroups, cgroups.map(Cgroups::sandbox)),
        };
        pid.map_err(|errno| SpawnError::Resources { step: "start a process", errno })
    }
}

/// Creates the process in a control group. If the sandbox has reached its limit, a few processes of
/// hosts are created in the reserve instead, with priority.
fn clone_into(
    stack: &mut [u128],
    plan: &Plan<'_>,
    cgroups: Option<&Cgroups>,
    group: Option<BorrowedFd<'_>>,
) -> Result<Pid, Errno> {
    let Some(cgroups) = cgroups else { return run_child(stack, plan, None) };
    match run_child(stack, plan, group) {
        Err(Errno::AGAIN) => {
            plan.is_urgent.set(true);
            run_child(stack, plan, Some(cgroups.reserve()))
        }
        made @ (Ok(_) | Err(Errno::NOMEM)) => made,
        // Root of the guest has removed the group, or enabled controllers for it.
        Err(_) => run_child(stack, plan, None),
    }
}

/// Starts the child without a copy of the agent's address space. The agent continues after the
/// child has executed its program or failed, so `plan` may be on the stack.
fn run_child(stack: &mut [u128], plan: &Plan<'_>, cgroup: Option<BorrowedFd<'_>>) -> Result<Pid, Errno> {
    let argument = (&raw const *plan).cast_mut().cast();
    let new_pid_namespace = plan.namespaces == Namespaces::New;
    let beginning = Beginning { cgroup, clear_handlers: false, new_pid_namespace };
    // SAFETY: this thread is the only one, and no signal has a handler. `child::run` only makes system calls and writes to `plan.failure`, a Cell,
    // while this thread is suspended.
    unsafe { vfork(child::run, argument, stack, beginning) }
}

/// Returns null if it is the directory of the agent.
fn directory_pointer(directory: &[u8], string: &CStrings) -> *const c_char {
    let path = string.get(0).filter(|_| directory != b"/");
    path.map_or(std::ptr::null(), |path| path.as_ptr())
}

/// Both ends of the streams between a process and the agent.
#[derive(Debug)]
struct Ends {
    /// Stdin, stdout and stderr of the process. A missing stdin is `/dev/null`. A terminal is all
    /// three.
    child: [Option<OwnedFd>; 3],
    stdin: Option<Stdin>,
    outputs: [Option<Output>; 2],
}

impl Ends {
    fn open(request: &ExecRequest, user: &User) -> Result<Self, SpawnError> {
        let feeds = request.stdin == StdinSource::Connection;
        if let Some(size) = request.terminal {
            let owner = user.ids.as_ref().map(|ids| ids.uid);
            let terminal =
                open_terminal(size, owner).map_err(|errno| SpawnError::Resources { step: "open a terminal", errno })?;
            return Ok(Self {
                child: [Some(terminal.slave), None, None],
                stdin: feeds.then(|| Stdin::terminal(terminal.input)),
                outputs: [Some(Output::terminal(terminal.master)), None],
            });
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let nonblocking = |end: &OwnedFd| fcntl_setfl(end, OFlags::NONBLOCK);
        let open = || {
            let (stdin, child_stdin) = if feeds {
                let (child, agent) = pipe()?;
                nonblocking(&agent)?;
                (Some(Stdin::pipe(agent)), Some(child))
            } else {
                (None, None)
            };
            let (stdout, child_stdout) = pipe()?;
            nonblocking(&stdout)?;
            let (stderr, child_stderr) = pipe()?;
            nonblocking(&stderr)?;
            let outputs = [(stdout, FrameKind::Stdout), (stderr, FrameKind::Stderr)];
            Ok(Self {
                child: [child_stdin, Some(child_stdout), Some(child_stderr)],
                stdin,
                outputs: outputs.map(|(end, kind)| Some(Output::pipe(end, kind))),
            })
        };
        open().map_err(|errno| SpawnError::Resources { step: "make its pipes", errno })
    }

    fn child_streams(&self, null: &OwnedFd) -> [RawFd; 3] {
        let [stdin, stdout, stderr] = &self.child;
        let stdin = stdin.as_ref().unwrap_or(null);
        // Only a terminal has no separate stdout and stderr.
        [stdin, stdout.as_ref().unwrap_or(stdin), stderr.as_ref().unwrap_or(stdin)].map(AsRawFd::as_raw_fd)
    }

    /// Closes the child's ends.
    fn into_process(self, pid: Pid, request: &ExecRequest) -> Process {
        Process {
            pid,
            title: Title::new(&request.argv),
            started_at: 0,
            owner: None,
            kept: None,
            feeder: None,
            has_terminal: request.terminal.is_some(),
            stdin: self.stdin,
            outputs: self.outputs,
            first_output: 0,
            deadline: None,
            timed_out: false,
            on_disconnect: request.on_disconnect,
            ended: None,
            was_told: false,
            is_due: false,
        }
    }
}
