//! The worker process: `host __plugin-worker FILE`. Loads one plugin, asks it one thing, answers, ends.
//!
//! Called by the program's `main` before anything else is set up; the other end is [`super::call`]. It is expected to die
//! of whatever the plugin does, and tells the host nothing about that: the host watches.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use host_plugin_abi::RootModuleRef;
use host_plugin_abi::abi_stable::std_types::RSlice;
use plugin_api::Sources;
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};

use super::sandbox::{self, Access, Limits, Parts};
use super::{frame, loader};

/// First argument of a worker process.
pub const WORKER_ARGUMENT: &str = "__plugin-worker";

/// Stack of the thread that runs the plugin: an interpreter recurses deeply. Only address space until it is used.
const STACK: usize = 256 << 20;
/// Largest job; it holds numbers only.
const MAX_JOB: u64 = 4096;
/// Largest build request: config.json and the checkpoint's list of tensors.
pub(super) const MAX_REQUEST: u64 = 64 << 20;

/// What the worker is to do; the first frame. The second is the build request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub build: bool,
    pub limits: Limits,
    pub sandbox: Parts,
    pub answer_limit: u64,
    pub parent: u32,
}

/// First byte of an answer.
pub(super) mod tag {
    /// The plugin's answer follows.
    pub(crate) const ANSWER: u8 = b'+';
    /// The plugin's error value follows.
    pub(crate) const ERROR: u8 = b'-';
    /// A [`LoadError`](super::super::loader::LoadError) follows.
    pub(crate) const NOT_LOADED: u8 = b'!';
    /// The answer is too large; its size follows.
    pub(crate) const TOO_LARGE: u8 = b'#';
}

/// Whether the program was started as a worker: then `main` does nothing but call [`worker_main`].
pub fn is_worker() -> bool {
    std::env::args_os().nth(1).is_some_and(|a| a == WORKER_ARGUMENT)
}

/// Runs one job. What goes wrong before the plugin is loaded is printed to stderr, where the host finds it.
pub fn worker_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("the plugin worker failed: {e}");
            ExitCode::from(FAILED)
        }
    }
}

/// Exit code of a worker that failed by itself.
pub(super) const FAILED: u8 = 87;

fn run() -> io::Result<()> {
    let path = std::env::args_os().nth(2).map(PathBuf::from).ok_or_else(|| io::Error::other("no plugin named"))?;
    let mut input = io::stdin().lock();
    let job: Job = serde_json::from_slice(&frame::read(&mut input, MAX_JOB)?)?;
    sandbox::die_with_parent(job.parent)?;
    let request = if job.build { frame::read(&mut input, MAX_REQUEST)? } else { Vec::new() };
    drop(input);
    let answer_to = take_stdio()?;
    let access = Access::new(&path, &sources(&request)?);
    let memory = job.limits.memory.saturating_add(STACK as u64);
    sandbox::enter(Limits { memory, ..job.limits }, &access, job.sandbox)?;
    let thread = std::thread::Builder::new().name("plugin".to_owned()).stack_size(STACK).spawn(move || {
        let mut pipe = File::from(answer_to);
        sandbox::close(access.writable.is_some(), job.sandbox)?;
        match loader::load(&path) {
            Err(e) => frame::write(&mut pipe, &[&[tag::NOT_LOADED], &serde_json::to_vec(&e)?]),
            Ok(module) => ask(&module, job.build, &request, job.answer_limit, &mut pipe),
        }
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the worker panicked")))
}

/// The sources of a build request; of its other parts only the plugin makes something.
fn sources(request: &[u8]) -> io::Result<Sources> {
    #[derive(Deserialize)]
    struct Part {
        sources: Sources,
    }
    if request.is_empty() {
        return Ok(Sources::default());
    }
    Ok(serde_json::from_slice::<Part>(request)?.sources)
}

/// The pipe to the host moves to a descriptor that the plugin does not know, so that what it prints cannot end up in the
/// answer: its stdout becomes stderr, its stdin is empty.
fn take_stdio() -> io::Result<OwnedFd> {
    let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 10)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(pipe)
}

fn ask(module: &RootModuleRef, build: bool, request: &[u8], limit: u64, pipe: &mut File) -> io::Result<()> {
    let (tag, answer) = if build {
        match module.build()(RSlice::from_slice(request)).into_result() {
            Ok(text) => (tag::ANSWER, text),
            Err(message) => (tag::ERROR, message),
        }
    } else {
        (tag::ANSWER, module.describe()())
    };
    if answer.len() as u64 >= limit {
        return frame::write(pipe, &[&[tag::TOO_LARGE], answer.len().to_string().as_bytes()]);
    }
    let result = frame::write(pipe, &[&[tag], answer.as_slice()]);
    // Its memory was allocated by the plugin: nothing more of the plugin is run.
    std::mem::forget(answer);
    result
}
