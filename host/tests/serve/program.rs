//! Runs the real program: commands to their end, servers until they are dropped. Each run has a home of its own, no
//! settings of the machine's user, and the plugins of this workspace as they are now.
#![allow(dead_code)] // no test program needs all of it

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::build;
use crate::http::{self, Reply};

/// No single wait is longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A place for files: its own `$HOME`, which is the working folder too, and a folder `plugins` with the plugin `llama`.
pub struct Place {
    root: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { root: tempfile::tempdir().unwrap() };
        let plugins = place.path("plugins");
        std::fs::create_dir(&plugins).unwrap();
        build::set_mode(&plugins, 0o755);
        place.put_plugin("llama", build::llama());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().canonicalize().unwrap().join(name)
    }

    /// Writes a file, with the folders above it.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a plugin into the folder `plugins`.
    pub fn put_plugin(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.put(&format!("plugins/{}", build::file_name(&format!("host_plugin_{name}"))), bytes);
        build::set_mode(&path, 0o755);
        path
    }

    /// The program, in this place.
    pub fn host(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["HOST_", "HF_", "XDG_", "RUST_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        // Explicit folders come first: an old library beside the program is not used. And where a native plugin is what is
        // tested, the plugin `transformers` that may lie there is not asked after it.
        command.env("HOME", self.root.path()).env("HF_HUB_OFFLINE", "1").env("HOST_PLUGINS_PATH", self.path("plugins"));
        command.env("HOST_MODEL_IMPL", "native");
        command.current_dir(self.root.path()).args(args);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        finish(&mut self.host(args), b"")
    }

    /// Starts a server on a free port and waits until it serves.
    pub fn serve(&self, args: &[&str]) -> Server {
        let server = self.start(args);
        server.wait_for("serving ");
        server
    }

    /// Starts a server on a free port.
    pub fn start(&self, args: &[&str]) -> Server {
        Server::start(self.host(&[&["serve", "--port", "0"], args].concat()))
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// The command succeeded and had nothing to complain about.
    #[track_caller]
    pub fn good(&self) -> &str {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        &self.stdout
    }

    /// The command failed with this code, printed nothing, and said why in one line that has all of these words.
    #[track_caller]
    pub fn fails(&self, words: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:?}");
        assert!(self.stderr.starts_with("error: ") && self.stderr.ends_with('\n'), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        says(&self.stderr, words);
    }
}

/// The text has all of these words and nothing that only a programmer understands.
#[track_caller]
pub fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    for word in ["thread '", "RUST_BACKTRACE", "Os {", "Error("] {
        assert!(!text.contains(word) || words.contains(&word), "`{word}` in: {text}");
    }
}

/// Runs a command to its end, with this input.
pub fn finish(command: &mut Command, input: &[u8]) -> Output {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that needs no input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        took: start.elapsed(),
    }
}

/// A running `host serve`; killed when dropped.
pub struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    address: OnceLock<SocketAddr>,
}

impl Server {
    fn start(mut command: Command) -> Server {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, kept) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Server { child, log, address: OnceLock::new() }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a line of the log has this.
    #[track_caller]
    pub fn wait_for(&self, words: &str) {
        let start = Instant::now();
        while !self.log().contains(words) {
            assert!(start.elapsed() < PATIENCE, "no `{words}` in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn address(&self) -> SocketAddr {
        *self.address.get_or_init(|| {
            let log = self.log();
            let line = log.lines().find(|line| line.contains("serving ")).expect("not serving yet");
            let (_, rest) = line.split_once("http://").unwrap();
            rest.split_once("/v1").unwrap().0.parse().unwrap()
        })
    }

    pub fn get(&self, path: &str) -> Reply {
        http::read(http::send(self.address(), "GET", path, b""))
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Reply {
        http::read(http::send(self.address(), "POST", path, body))
    }

    /// A request that must succeed.
    #[track_caller]
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// A request that must be refused with this status and these words.
    #[track_caller]
    pub fn refused(&self, path: &str, body: &[u8], status: u16, words: &[&str]) {
        let reply = self.post(path, body);
        let text = reply.text();
        assert_eq!(reply.status, status, "{text}");
        let error = &reply.json()["error"];
        assert_eq!(error["code"], status, "{text}");
        says(error["message"].as_str().unwrap(), words);
    }

    /// The text of a completion.
    #[track_caller]
    pub fn complete(&self, body: &Value) -> String {
        self.ok("/v1/completions", body)["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// A sample of the metrics.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "")
    }

    /// The sample with this among its labels.
    #[track_caller]
    pub fn metric_of(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        line.unwrap_or_else(|| panic!("no {name} with {label} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until nothing runs, nothing waits, and no block is in use.
    #[track_caller]
    pub fn wait_until_idle(&self, patience: Duration) {
        let names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
        let start = Instant::now();
        loop {
            let values = names.map(|name| self.metric(name));
            if values == [0.0; 3] {
                return;
            }
            assert!(start.elapsed() < patience, "{names:?} are {values:?} after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the program has ended.
    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < patience, "still running after {patience:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it printed on stdout; once it has ended.
    pub fn stdout(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
