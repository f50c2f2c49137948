//! Downloads against the hub of `test_server`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::test_server::{COMMIT, OLD, Server, sha256};
use super::{HubError, HubOptions, Weights, resolve};

const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"]}"#;

/// A valid safetensors file of about `n` bytes.
fn weights(name: &str, n: usize) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[{n}],"data_offsets":[0,{n}]}}}}"#);
    let data = (0..n).map(|i| (i * 7 % 251) as u8);
    (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(data).collect()
}

fn single() -> Server {
    let model = weights("w", 200_000);
    Server::start(&[
        ("config.json", CONFIG),
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"hi"),
        ("model.safetensors", &model),
        ("pytorch_model.bin", b"never"),
        ("modeling_tiny.py", b"never"),
        ("README.md", b"never"),
        ("onnx/model.onnx", b"never"),
        ("../escape.json", b"never"),
    ])
}

fn run(options: &HubOptions) -> Result<super::ModelFiles, HubError> {
    resolve("org/tiny", options)
}

fn error(options: &HubOptions) -> String {
    run(options).unwrap_err().to_string()
}

fn blobs(cache: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(cache.join("models--org--tiny/blobs")).into_iter().flatten().flatten().map(|f| f.path()).collect();
    found.sort();
    found
}

#[test]
fn python_files_are_fetched_if_asked_for_and_never_out_of_the_folder() {
    let model = weights("w", 8);
    let server = Server::start(&[
        ("config.json", CONFIG),
        ("model.safetensors", &model),
        ("modeling_tiny.py", b"x = 1"),
        ("sub/more.py", b"y = 1"),
        ("../escape.py", b"never"),
        (".hidden/hook.py", b"never"),
        ("setup.pyc", b"never"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { python_files: true, ..server.options(cache.path()) };
    let dir = run(&options).unwrap().dir;
    assert_eq!(fs::read(dir.join("sub/more.py")).unwrap(), b"y = 1");
    let asked: Vec<String> = server.requests().into_iter().filter(|r| r.ends_with(".py")).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().any(|r| r.ends_with("/modeling_tiny.py")), "{asked:?}");
    assert!(!dir.join("../escape.py").exists());
}

#[test]
fn download_then_cache_then_offline() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let mut options = server.options(cache.path());
    let files = run(&options).unwrap();
    assert_eq!(files.dir, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    assert_eq!(files.revision.as_deref(), Some(COMMIT));
    assert_eq!(files.config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(files.python_files, ["modeling_tiny.py"]);
    let mut names: Vec<String> =
        fs::read_dir(&files.dir).unwrap().flatten().map(|f| f.file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(Weights::open(&files.dir).unwrap().get("w").unwrap().data.len(), 200_000);
    assert!(fs::read_link(files.dir.join("config.json")).unwrap().starts_with("../../blobs"));
    let log = server.requests();
    assert_eq!(log[0], "GET /api/models/org/tiny/revision/main");
    assert_eq!(log.iter().filter(|r| r.starts_with("GET /org")).count(), 4, "{log:?}");

    // The second run only asks whether anything is new.
    assert_eq!(run(&options).unwrap().dir, files.dir);
    assert_eq!(server.requests(), ["GET /api/models/org/tiny/revision/main"]);
    // Offline, nothing is asked, and a download by commit is found too.
    options.offline = true;
    assert_eq!(run(&options).unwrap().dir, files.dir);
    options.revision = Some(COMMIT.into());
    assert_eq!(run(&options).unwrap().dir, files.dir);
    options.revision = Some("other".into());
    assert!(error(&options).contains("no ref \"other\""));
    options.cache_dir = cache.path().join("empty");
    assert!(error(&options).contains("not in the cache"));
    assert!(server.requests().is_empty());
}

#[test]
fn works_inside_an_async_runtime() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(async { run(&options) }).is_ok());
}

#[test]
fn shards_come_from_the_index() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let (a, b, other) = (weights("a", 10), weights("b", 20), weights("c", 30));
    let server = Server::start(&[
        ("config.json", CONFIG),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", &a),
        ("model-2.safetensors", &b),
        ("consolidated.safetensors", &other),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let options = server.options(cache.path());
    let dir = run(&options).unwrap().dir;
    assert!(!dir.join("consolidated.safetensors").exists());
    assert_eq!(Weights::open(&dir).unwrap().len(), 2);
    server.set(|hub| drop(hub.files.remove("model-2.safetensors")));
    let error = error(&server.options(&cache.path().join("other")));
    assert!(error.contains("names model-2.safetensors, which it does not have"), "{error}");
}

#[test]
fn a_cut_off_transfer_is_an_error_and_resumes() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    server.set(|hub| hub.cut = Some(("model.safetensors", 50_000)));
    let message = error(&options);
    assert!(message.contains("downloading model.safetensors") && message.contains("again"), "{message}");
    // No part of it passes for the whole: neither in the snapshot nor by ref.
    let repo = cache.path().join("models--org--tiny");
    assert!(!repo.join("snapshots").join(COMMIT).join("model.safetensors").exists());
    assert!(!repo.join("refs/main").exists());
    assert_eq!(blobs(cache.path()).iter().filter(|b| b.extension().is_some_and(|e| e == "incomplete")).count(), 1);
    let offline = HubOptions { offline: true, ..options.clone() };
    assert!(run(&offline).is_err());

    server.requests();
    server.set(|hub| hub.cut = None);
    let dir = run(&options).unwrap().dir;
    let log = server.requests();
    let resumed = log.iter().find(|r| r.contains("model.safetensors bytes=50000-"));
    assert!(resumed.is_some(), "{log:?}");
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
    assert!(!log.iter().any(|r| r.contains("config.json")), "{log:?}");
    assert!(blobs(cache.path()).iter().all(|b| b.extension().is_none()));
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    server.set(|hub| (hub.cut, hub.ignore_ranges) = (Some(("model.safetensors", 50_000)), true));
    assert!(run(&options).is_err());
    server.set(|hub| hub.cut = None);
    let dir = run(&options).unwrap().dir;
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
}

#[test]
fn a_cut_off_small_file_starts_anew() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    server.set(|hub| hub.cut = Some(("config.json", 5)));
    let message = error(&options);
    assert!(message.contains("downloading config.json"), "{message}");
    server.set(|hub| hub.cut = None);
    assert_eq!(run(&options).unwrap().config["architectures"][0], "LlamaForCausalLM");
    assert!(!server.requests().iter().any(|r| r.contains("bytes=")));
}

#[test]
fn a_wrong_checksum_is_an_error_and_leaves_nothing() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    server.set(|hub| hub.corrupt = Some("model.safetensors"));
    let message = error(&options);
    let good = sha256(&weights("w", 200_000));
    assert!(message.contains("model.safetensors arrived damaged") && message.contains(&good), "{message}");
    let snapshot = cache.path().join("models--org--tiny/snapshots").join(COMMIT);
    assert!(!snapshot.join("model.safetensors").exists());
    assert!(!blobs(cache.path()).iter().any(|b| b.to_string_lossy().contains(&good)));
    server.set(|hub| hub.corrupt = None);
    assert!(run(&options).is_ok());
}

#[test]
fn a_part_from_another_file_is_noticed() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    let folder = cache.path().join("models--org--tiny/blobs");
    fs::create_dir_all(&folder).unwrap();
    let partial = folder.join(format!("{}.incomplete", sha256(&weights("w", 200_000))));
    for part in [vec![9; 70_000], vec![9; weights("w", 200_000).len()], vec![9; 900_000]] {
        fs::write(&partial, part).unwrap();
        let dir = run(&options).unwrap().dir;
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
        fs::remove_dir_all(cache.path().join("models--org--tiny/snapshots")).unwrap();
        fs::remove_file(folder.join(sha256(&weights("w", 200_000)))).unwrap();
    }
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    server.set(|hub| hub.refuse = Some((401, "Invalid username or password.")));
    let message = error(&options);
    for part in ["HTTP 401", "HF_TOKEN", "/org/tiny", "Invalid username or password."] {
        assert!(message.contains(part), "{message}");
    }
    server.set(|hub| hub.refuse = Some((403, "")));
    let message = error(&options);
    assert!(
        message.contains("HTTP 403") && message.contains("HF_TOKEN") && message.contains("conditions"),
        "{message}"
    );
    server.set(|hub| hub.refuse = Some((404, "Repository not found")));
    let message = error(&options);
    for part in ["no model \"org/tiny\"", "revision \"main\"", "./org/tiny", "config.json"] {
        assert!(message.contains(part), "{message}");
    }
    // Gated: the list is public, the files are not.
    server.set(|hub| (hub.refuse, hub.gated) = (None, true));
    let message = error(&options);
    assert!(message.contains("HTTP 403") && message.contains("/org/tiny with your account"), "{message}");
    // Refusals are no outage: nothing is tried again.
    server.requests();
    server.set(|hub| hub.refuse = Some((403, "")));
    error(&options);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn the_token_is_sent() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    server.set(|hub| hub.token = Some("hf_secret"));
    let mut options = server.options(cache.path());
    let message = error(&options);
    assert!(message.contains("HTTP 401") && !message.contains("hf_secret"), "{message}");
    options.token = Some("hf_secret".into());
    assert!(run(&options).is_ok());
}

#[test]
fn revisions() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let mut options = server.options(cache.path());
    for revision in ["old", "refs/pr/1", OLD] {
        options.revision = Some(revision.into());
        let files = run(&options).unwrap();
        assert_eq!((files.revision.as_deref(), files.config["old"].as_bool()), (Some(OLD), Some(true)));
        let offline = HubOptions { offline: true, ..options.clone() };
        assert_eq!(run(&offline).unwrap().dir, files.dir);
    }
    // The branch's weights were fetched once.
    options.revision = None;
    server.requests();
    assert!(run(&options).unwrap().config.get("old").is_none());
    assert!(!server.requests().iter().any(|r| r.contains("model.safetensors")));
    options.revision = Some("nope".into());
    let message = error(&options);
    assert!(message.contains("revision \"nope\"") && message.contains("--revision"), "{message}");
    options.revision = Some("../../etc".into());
    assert!(error(&options).contains("is not a revision"));
}

#[test]
fn an_outage_falls_back_to_the_cache() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    server.set(|hub| hub.busy = 1);
    let dir = run(&options).unwrap().dir;
    server.set(|hub| hub.busy = 100);
    assert_eq!(run(&options).unwrap().dir, dir);
    let nothing = HubOptions { cache_dir: cache.path().join("none"), ..options.clone() };
    assert!(error(&nothing).contains("HTTP 503"));
    // Nobody listens.
    let dead = HubOptions { endpoint: "http://127.0.0.1:9".into(), ..nothing };
    let message = error(&dead);
    assert!(message.contains("http://127.0.0.1:9") && message.contains("HF_ENDPOINT"), "{message}");
}

#[test]
fn silence_is_a_timeout() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let mut options = server.options(cache.path());
    (options.timeout, options.retries) = (Duration::from_millis(300), 0);
    server.set(|hub| hub.silent = Some("model.safetensors"));
    let message = error(&options);
    assert!(message.contains("nothing arrived") && message.contains("HF_HUB_DOWNLOAD_TIMEOUT"), "{message}");
}

#[test]
fn repositories_without_usable_files() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(&[("config.json", CONFIG), ("pytorch_model.bin", b"x")]);
    let message = error(&server.options(cache.path()));
    assert!(message.contains("no safetensors weights (found pytorch_model.bin)"), "{message}");
    let server = Server::start(&[("model.safetensors", b"x")]);
    let message = error(&server.options(cache.path()));
    assert!(message.contains("it has no config.json"), "{message}");
}

#[test]
fn two_at_once_share_the_work() {
    let (server, cache) = (single(), tempfile::tempdir().unwrap());
    let options = server.options(cache.path());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| run(&options).unwrap().dir)).collect();
        for run in runs {
            let dir = run.join().unwrap();
            assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights("w", 200_000));
        }
    });
    let fetched = server.requests().iter().filter(|r| r.starts_with("GET") && r.contains("model.safetensors")).count();
    assert_eq!(fetched, 1);
}
