//! Modelling code that means harm, through the whole of loading with `--trust-remote-code`: each file ends in one clear error,
//! within the deadline, with nothing read, written or sent; and the host goes on. What the interpreter alone refuses is
//! tried in `plugins/transformers/tests/hostile.rs`, what the sandbox alone refuses in `host/tests/plugins/sandbox.rs`.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use host::llm::{Blueprint, LlmOptions, ModelSource};
use host::registry::ModelImpl;
use host_tests::library::{options, registry_with_transformers};
use host_tests::zoo;

const WORKER: &str = env!("CARGO_BIN_EXE_plugin-worker");
/// The model whose code is tampered with.
const MODEL: &str = "nimbus";
const CODE: &str = "modeling_nimbus.py";
/// What the host adds to a plugin's deadline to end it and tell; generous, since tests share a machine.
const SLACK: Duration = Duration::from_secs(20);

/// A copy of the model in `parent`, with this put before its code.
fn model(parent: &Path, before: &str) -> PathBuf {
    let dir = zoo::entry(MODEL).expect("is in the zoo").materialize(parent).expect("writes");
    let file = dir.join(CODE);
    let code = fs::read_to_string(&file).expect("reads");
    fs::write(file, format!("{before}\n{code}")).expect("writes");
    dir
}

fn settings(dir: &Path, deadline: u64) -> LlmOptions {
    let mut options = options(ModelSource::Named(dir.to_str().expect("UTF-8").into()), WORKER);
    options.registry = registry_with_transformers(WORKER);
    options.registry.deadline = Duration::from_secs(deadline);
    options.registry.memory_limit = 1 << 30;
    options.model_impl = ModelImpl::Transformers;
    options.trust_remote_code = true;
    options
}

/// Loads the model; it must fail in time, in one line.
#[track_caller]
fn fails(name: &str, dir: &Path, deadline: u64) -> String {
    let begin = Instant::now();
    let error = match Blueprint::draw(&settings(dir, deadline)) {
        Ok(_) => panic!("{name}: the model loads"),
        Err(error) => error.to_string(),
    };
    assert!(begin.elapsed() < Duration::from_secs(deadline) + SLACK, "{name} took {:?}: {error}", begin.elapsed());
    assert!(!error.contains(['\n', '\u{1b}']), "{name}: {error:?}");
    error
}

/// Each piece of code, at the top of the model's file, with what the error must say one of.
#[track_caller]
fn all_fail(deadline: u64, cases: &[(&str, &str, &[&str])]) {
    let root = tempfile::tempdir().expect("a folder");
    let mut wrong = Vec::new();
    for (name, code, words) in cases {
        let dir = model(&root.path().join(name), code);
        let error = fails(name, &dir, deadline);
        if !words.iter().any(|word| error.contains(word)) {
            wrong.push(format!("{name}: expected one of {words:?}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The host goes on, with a model that means well.
    let well = zoo::entry("llama").expect("is in the zoo").materialize(root.path()).expect("writes");
    let mut settings = settings(&well, 60);
    settings.trust_remote_code = false;
    settings.model_impl = ModelImpl::Native;
    Blueprint::draw(&settings).unwrap_or_else(|e| panic!("{e}"));
}

const STOPPED: &str = "did not finish building the model's graph within";
const MEMORY: &str = "ran out of memory while building the model's graph (limit 1024 MiB)";

#[test]
fn what_never_ends_is_stopped() {
    all_fail(
        6,
        &[
            ("loop", "while True: pass", &[STOPPED]),
            ("power", "x = 10 ** (10 ** 9)", &[STOPPED, MEMORY, "OverflowError", "MemoryError"]),
            ("print", "while True: print('x' * 1000)", &[STOPPED]),
            ("pattern", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')", &[STOPPED]),
            ("exceptions", "while True:\n  try: while_true\n  except BaseException: pass", &[STOPPED]),
        ],
    );
}

#[test]
fn what_takes_everything_meets_its_limit() {
    let deep = "(".repeat(100_000);
    all_fail(
        60,
        &[
            ("list", "x = [0] * (10 * 2 ** 30 // 8)", &[MEMORY, "MemoryError"]),
            ("growing", "x = []\nwhile True: x.append(bytearray(1000000))", &[MEMORY, "MemoryError"]),
            ("recursion", "def f(n): return f(n + 1)\nf(0)", &["RecursionError"]),
            (
                "limitless",
                "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1)\nf(0)",
                &["RecursionError"],
            ),
            ("nested", &deep, &["SyntaxError", "overflowed its stack", "too many nested", "nest"]),
        ],
    );
}

#[test]
fn what_reaches_out_is_refused_by_name() {
    let root = tempfile::tempdir().expect("a folder");
    let root = root.path().canonicalize().expect("a folder");
    let (secret, written) = (root.join("secret"), root.join("written"));
    fs::write(&secret, "the secret").expect("writes");
    let server = TcpListener::bind("127.0.0.1:0").expect("listens");
    server.set_nonblocking(true).expect("does not wait");
    let address = server.local_addr().expect("an address");
    let read = format!("raise Exception(open({secret:?}).read())");
    let write = format!("open({written:?}, 'w').write('x')");
    let path = format!("import pathlib\npathlib.Path({written:?}).write_text('x')");
    let connect = format!("import socket\nsocket.create_connection(('127.0.0.1', {}))", address.port());
    let fetch = format!("import urllib.request\nurllib.request.urlopen('http://{address}/')");
    all_fail(
        60,
        &[
            ("passwd", "raise Exception(open('/etc/passwd').read())", &["no access to files"]),
            ("read", &read, &["no access to files"]),
            ("write", &write, &["no access to files"]),
            ("path", &path, &["no access to files"]),
            ("socket", &connect, &["socket"]),
            ("fetch", &fetch, &["urllib"]),
            ("subprocess", "import subprocess\nsubprocess.run(['/bin/true'])", &["subprocess"]),
            ("ctypes", "import ctypes\nctypes.CDLL(None).system(b'true')", &["ctypes"]),
            ("environment", "import os\nraise Exception(os.environ['PATH'])", &["KeyError: 'PATH'"]),
            ("system", "from os import system\nsystem('true')", &["system"]),
            ("fork", "import os\nwhile True: os.fork()", &["os.fork"]),
            ("threads", "import threading\nwhile True: threading.Thread(target=print).start()", &["thread"]),
            (
                "processes",
                "import multiprocessing\nmultiprocessing.Process(target=print).start()",
                &["multiprocessing"],
            ),
            ("import", "__import__('os').system('true')", &["os.system"]),
            ("imports", "import importlib\nimportlib.import_module('posix').getpid()", &["posix"]),
            ("exit", "import sys\nsys.exit(0)", &["SystemExit", "exit"]),
        ],
    );
    assert!(!written.exists());
    assert_eq!(server.accept().expect_err("nobody came").kind(), ErrorKind::WouldBlock);
}

#[test]
fn much_source_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    // More than one file may have, then more than all may have: refused before it is read.
    let line = "x = 1 # ".to_owned() + &"x".repeat(91) + "\n";
    let dir = model(&root.path().join("one"), "");
    fs::write(dir.join("big.py"), line.repeat(1_000_000)).expect("writes");
    let error = fails("one file", &dir, 60);
    assert!(error.contains("big.py has 100000000 bytes, the limit for one file is"), "{error}");
    let dir = model(&root.path().join("many"), "");
    for i in 0..11 {
        fs::write(dir.join(format!("big{i}.py")), line.repeat(100_000)).expect("writes");
    }
    let error = fails("many files", &dir, 60);
    assert!(error.contains("the model's own code is too large"), "{error}");
    let dir = model(&root.path().join("some"), &"x = [1, 2, 3]\n".repeat(700_000));
    let error = fails("10 MB", &dir, 60);
    assert!(error.contains("modeling_nimbus.py has") && error.contains("the limit for one file is"), "{error}");
}

#[test]
fn a_graph_of_ten_million_nodes_is_an_error() {
    let root = tempfile::tempdir().expect("a folder");
    let dir = model(root.path(), "");
    let code = fs::read_to_string(dir.join(CODE)).expect("reads");
    let endless = "
class Endless(NimbusForCausalLM):
    def forward(self, *arguments, **named):
        out = super().forward(*arguments, **named)
        x = out.logits
        for _ in range(10_000_000):
            x = x + 1
        out.logits = x
        return out
NimbusForCausalLM = Endless
";
    fs::write(dir.join(CODE), code + endless).expect("writes");
    let error = fails("ten million nodes", &dir, 30);
    assert!([STOPPED, MEMORY, "nodes"].iter().any(|word| error.contains(word)), "{error}");
}
