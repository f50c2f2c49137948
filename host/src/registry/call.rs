//! Asks a plugin something in a worker process, and survives whatever happens there.
//!
//! One thread, no locks: the pipes are polled without blocking until the answer is there, the worker is dead or the deadline
//! has passed. Then the worker's whole process group is killed and the worker reaped, in every case. Called by the
//! [`Registry`](super::Registry) only.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use plugin_api::{PANICKED, UNSUPPORTED};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::error::{Cause, STDERR_TAIL, Stage, one_line};
use super::frame;
use super::loader::LoadError;
use super::sandbox::{self, Limits};
use super::worker::{self, Job, WORKER_ARGUMENT, tag};

/// How the host asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    /// The program that runs [`worker::worker_main`] when told so.
    pub program: &'a Path,
    /// Wall-clock time for one question.
    pub deadline: Duration,
    /// See [`Limits::memory`].
    pub memory_limit: u64,
    /// Largest answer in bytes.
    pub answer_limit: u64,
}

/// Longest sleep between two looks at the worker.
const SLICE: Duration = Duration::from_millis(20);

/// What the worker's end of the pipe came to.
enum Outcome {
    /// A whole frame.
    Answer(Vec<u8>),
    /// The worker ended, or closed the pipe, before that.
    Gone,
    TimedOut,
    /// What came is no frame, or one that is too large.
    NoFrame(String),
}

impl Caller<'_> {
    /// Asks the plugin at `copy` to describe itself (`request` is `None`) or to build. The second part of the result is
    /// the end of the plugin's output.
    pub(super) fn ask(&self, copy: &OsStr, request: Option<&[u8]>) -> (Result<Vec<u8>, Cause>, String) {
        let stage = if request.is_some() { Stage::Build } else { Stage::Describe };
        if request.is_some_and(|r| r.len() as u64 > worker::MAX_REQUEST) {
            let message = format!("the request is larger than {} bytes", worker::MAX_REQUEST);
            return (Err(Cause::Worker(message)), String::new());
        }
        let (child, pipes) = match self.start(copy, request) {
            Ok(started) => started,
            Err(e) => {
                let message = format!("the worker process {} cannot be started: {e}", self.program.display());
                return (Err(Cause::Worker(message)), String::new());
            }
        };
        let mut worker = Worker { child };
        let (outcome, output) = pipes.watch(&worker, Instant::now() + self.deadline, self.answer_limit);
        let status = worker.end();
        (self.judge(outcome, status, stage, &output), output)
    }

    fn start(&self, copy: &OsStr, request: Option<&[u8]>) -> io::Result<(Child, Pipes)> {
        let mut child = Command::new(self.program)
            .arg(WORKER_ARGUMENT)
            .arg(copy)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        match self.pipes(&mut child, request) {
            Ok(pipes) => Ok((child, pipes)),
            Err(e) => {
                Worker { child }.end();
                Err(e)
            }
        }
    }

    fn pipes(&self, child: &mut Child, request: Option<&[u8]>) -> io::Result<Pipes> {
        let cpu_seconds = self.deadline.as_secs().saturating_mul(4).saturating_add(2);
        let job = Job {
            build: request.is_some(),
            limits: Limits { memory: self.memory_limit, cpu_seconds },
            sandbox: sandbox::parts(),
            answer_limit: self.answer_limit,
            parent: std::process::id(),
        };
        let job = serde_json::to_vec(&job)?;
        let mut to_send = Vec::new();
        for part in [Some(job.as_slice()), request].into_iter().flatten() {
            frame::write(&mut to_send, &[part])?;
        }
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        if let Some(pipe) = &stdin {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        if let Some(pipe) = &stdout {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        if let Some(pipe) = &stderr {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Pipes { stdin, stdout, stderr, to_send, sent: 0, answer: Vec::new(), output: Vec::new() })
    }

    fn judge(
        &self,
        outcome: Outcome,
        status: Option<ExitStatus>,
        stage: Stage,
        output: &str,
    ) -> Result<Vec<u8>, Cause> {
        match outcome {
            Outcome::Answer(answer) => self.read_answer(answer, stage),
            Outcome::TimedOut => Err(Cause::TimedOut { stage, deadline: self.deadline }),
            Outcome::NoFrame(what) => Err(Cause::Rubbish { stage, what }),
            Outcome::Gone => Err(match status {
                Some(status) => self.cause_of_death(status, stage, output),
                None => Cause::Worker("its worker process was lost".to_owned()),
            }),
        }
    }

    fn read_answer(&self, mut answer: Vec<u8>, stage: Stage) -> Result<Vec<u8>, Cause> {
        let rubbish = || Cause::Rubbish { stage, what: "the worker's answer has no known kind".to_owned() };
        if answer.is_empty() {
            return Err(rubbish());
        }
        let kind = answer.remove(0);
        match kind {
            tag::ANSWER => Ok(answer),
            tag::ERROR => {
                let message = String::from_utf8_lossy(&answer);
                Err(match message.strip_prefix(PANICKED) {
                    Some(message) => Cause::Panicked { stage, message: format!("at {}", one_line(message, 500)) },
                    None => match message.strip_prefix(UNSUPPORTED) {
                        Some(message) => Cause::Unsupported(one_line(message, 1000)),
                        None => Cause::Declined(one_line(&message, 1000)),
                    },
                })
            }
            tag::NOT_LOADED => {
                Err(serde_json::from_slice::<LoadError>(&answer).map_or_else(|_| rubbish(), Cause::from))
            }
            tag::TOO_LARGE => {
                let got = String::from_utf8_lossy(&answer).parse().unwrap_or(u64::MAX);
                Err(Cause::TooLarge { stage, got, limit: self.answer_limit })
            }
            _ => Err(rubbish()),
        }
    }

    /// What a worker died of; what the plugin's runtime printed last tells more than the signal.
    fn cause_of_death(&self, status: ExitStatus, stage: Stage, output: &str) -> Cause {
        let says = |text: &str| output.contains(text);
        if says("memory allocation of") || says("std::bad_alloc") || says("out of memory") {
            return Cause::OutOfMemory { stage, limit: self.memory_limit };
        }
        match (status.signal(), status.code()) {
            (Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS), _) if says("has overflowed its stack") => {
                Cause::StackOverflow { stage }
            }
            (Some(libc::SIGABRT), _) if says("panicked at ") => {
                let message = output.rsplit_once("panicked at ").map_or("", |(_, m)| m);
                let message: String = message.lines().take(2).collect::<Vec<_>>().join(" ");
                Cause::Panicked { stage, message: format!("at {}", one_line(&message, 300)) }
            }
            // Not ours, that comes only after the end: the system's, for want of memory.
            (Some(libc::SIGKILL), _) => Cause::OutOfMemory { stage, limit: self.memory_limit },
            (Some(libc::SIGXCPU), _) => Cause::TimedOut { stage, deadline: self.deadline },
            (Some(signal), _) => Cause::Crashed { signal, stage },
            (None, Some(code)) if code == i32::from(worker::FAILED) => {
                Cause::Worker("its worker process failed before the plugin was loaded".to_owned())
            }
            (None, code) => Cause::Exited { code: code.unwrap_or(-1), stage },
        }
    }
}

/// A worker that is certainly reaped.
struct Worker {
    child: Child,
}

impl Worker {
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id().try_into().ok()?)
    }

    /// Whether it has ended; leaves it to be reaped, so that its process group's number is not given away.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.pid().is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), options), Ok(None)))
    }

    /// Kills it and all processes that it has started, and reaps it.
    fn end(&mut self) -> Option<ExitStatus> {
        if let Some(group) = self.pid() {
            // Fails if all of the group are dead.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.child.wait().ok()
    }
}

/// The pipes to a worker, none of which blocks.
struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    to_send: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    output: Vec<u8>,
}

impl Pipes {
    /// Exchanges bytes until the answer is there or cannot come any more.
    fn watch(mut self, worker: &Worker, end: Instant, limit: u64) -> (Outcome, String) {
        let outcome = loop {
            // Asked before the pipes are read: what the dead have written is all there.
            let ended = worker.has_ended();
            self.send();
            self.read_output();
            match self.read_answer(limit) {
                Some(outcome) => break outcome,
                None if ended => break Outcome::Gone,
                None => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Outcome::TimedOut;
            }
            self.sleep(left.min(SLICE));
        };
        self.read_output();
        (outcome, String::from_utf8_lossy(&self.output).into_owned())
    }

    /// Waits until one of the open pipes is ready.
    fn sleep(&self, time: Duration) {
        let mut fds = Vec::with_capacity(3);
        fds.extend(self.stdin.as_ref().map(|p| PollFd::new(p, PollFlags::OUT)));
        fds.extend(self.stdout.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
        fds.extend(self.stderr.as_ref().map(|p| PollFd::new(p, PollFlags::IN)));
        let timeout = Timespec { tv_sec: 0, tv_nsec: time.as_nanos().min(999_999_999) as i64 };
        // An interrupted or failed poll is a short sleep; the loop looks again.
        if fds.is_empty() || poll(&mut fds, Some(&timeout)).is_err() {
            std::thread::sleep(time.min(Duration::from_millis(2)));
        }
    }

    fn send(&mut self) {
        while let Some(pipe) = &mut self.stdin {
            match pipe.write(&self.to_send[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.sent = self.to_send.len(), // it does not listen; how it ends will tell why
            }
            if self.sent == self.to_send.len() {
                self.stdin = None;
            }
        }
    }

    /// `Some` when it is clear what the answer is.
    fn read_answer(&mut self, limit: u64) -> Option<Outcome> {
        let mut chunk = [0u8; 64 << 10];
        while let Some(pipe) = &mut self.stdout {
            match pipe.read(&mut chunk) {
                Ok(0) => self.stdout = None,
                Ok(n) => self.answer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.stdout = None,
            }
            let Some((head, body)) = self.answer.split_first_chunk::<{ frame::HEADER }>() else { continue };
            let Some(length) = frame::length(head) else {
                return Some(Outcome::NoFrame("it wrote into the host's pipe".to_owned()));
            };
            if length > limit {
                return Some(Outcome::NoFrame(format!("an answer of {length} bytes, the limit is {limit}")));
            }
            if body.len() as u64 >= length {
                let body = self.answer.split_off(frame::HEADER);
                return Some(Outcome::Answer(body));
            }
        }
        None
    }

    /// Keeps the last [`STDERR_TAIL`] bytes.
    fn read_output(&mut self) {
        let mut chunk = [0u8; 16 << 10];
        // A plugin that writes without end must not keep the host here.
        for _ in 0..16 {
            let Some(pipe) = &mut self.stderr else { return };
            match pipe.read(&mut chunk) {
                Ok(0) => self.stderr = None,
                Ok(n) => {
                    self.output.extend_from_slice(&chunk[..n]);
                    let excess = self.output.len().saturating_sub(STDERR_TAIL);
                    self.output.drain(..excess);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.stderr = None,
            }
        }
    }
}
