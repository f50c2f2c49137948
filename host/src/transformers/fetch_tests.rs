//! Fetching from an index on the loopback interface, with faults to order, and wheels that are no good.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::tests::options;
use super::*;

/// A wheel with these files.
fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

const GOOD: [(&str, &[u8]); 5] = [
    ("transformers/__init__.py", b"__version__ = \"5.23.0\"\n"),
    ("transformers/models/llama/modeling_llama.py", b"x = 1\n"),
    ("transformers/kernels/deform.cu", b"no Python"),
    ("transformers-5.23.0.dist-info/METADATA", b"Version: 5.23.0\n"),
    ("evil.py", b"not of the package"),
];

fn pin(wheel: &[u8]) -> Pin {
    Pin { sha256: super::wheel::sha256(wheel), ..Pin::default() }
}

struct Index {
    wheel: Vec<u8>,
    json: bool,
    /// So many requests are answered 503 first.
    busy: usize,
    log: Vec<String>,
}

struct Server {
    index: Arc<Mutex<Index>>,
    url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(wheel: &[u8]) -> Server {
        let index = Arc::new(Mutex::new(Index { wheel: wheel.to_vec(), json: true, busy: 0, log: vec![] }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/simple/", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(index.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Server { index, url, _runtime: runtime }
    }

    fn options(&self, root: &Path) -> PackageOptions {
        let pin = pin(&self.index.lock().unwrap().wheel);
        PackageOptions { index: self.url.clone(), offline: false, pin, ..options(root) }
    }

    fn requests(&self) -> usize {
        std::mem::take(&mut self.index.lock().unwrap().log).len()
    }
}

async fn answer(State(index): State<Arc<Mutex<Index>>>, request: Request) -> Response {
    let mut index = index.lock().unwrap();
    let path = request.uri().path().to_owned();
    index.log.push(path.clone());
    if index.busy > 0 {
        index.busy -= 1;
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let file = Pin::default().file;
    match path.as_str() {
        "/simple/transformers/" if index.json => {
            format!("{{\"files\": [{{\"filename\": \"{file}\", \"url\": \"/files/{file}\"}}]}}").into_response()
        }
        "/simple/transformers/" => format!("<a href=\"../../files/{file}#sha256=0\">{file}</a>").into_response(),
        path if path == format!("/files/{file}") => index.wheel.clone().into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Relative paths of all files below a folder.
fn tree(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => files.push(path.strip_prefix(root).unwrap().display().to_string()),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_pinned_wheel_is_fetched_once_and_only_its_python_files_are_kept() {
    for json in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start(&wheel(&GOOD));
        server.index.lock().unwrap().json = json;
        server.index.lock().unwrap().busy = 1;
        let options = server.options(root.path());
        let package = find_or_fetch(&options).unwrap();
        assert_eq!((package.version.as_str(), package.origin), ("5.23.0", Origin::Cache));
        assert_eq!(
            tree(package.dir.parent().unwrap()),
            ["transformers/__init__.py", "transformers/models/llama/modeling_llama.py"]
        );
        assert_eq!(server.requests(), 3, "one answered 503, the index, the file");
        assert_eq!(find_or_fetch(&options).unwrap(), package);
        assert_eq!(fetch(&options).unwrap(), package);
        assert_eq!(server.requests(), 0);
    }
}

#[test]
fn what_is_not_the_pinned_file_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(&wheel(&GOOD));
    let options = server.options(root.path());
    server.index.lock().unwrap().wheel[50] ^= 1;
    let error = fetch(&options).unwrap_err().to_string();
    assert!(error.starts_with(&format!("what {} sent is not the file that host was made for", server.url)), "{error}");
    assert_eq!(tree(root.path()), Vec::<String>::new(), "nothing is left behind");
    assert_eq!(find(&options).unwrap(), None);
}

#[test]
fn an_index_that_cannot_be_asked_is_named_with_the_way_out() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(&wheel(&GOOD));
    server.index.lock().unwrap().busy = 9;
    let error = fetch(&server.options(root.path())).unwrap_err().to_string();
    for words in [&server.url, "HTTP 503", "--transformers-index", "host plugins fetch-transformers WHEEL"] {
        assert!(error.contains(words), "no `{words}` in {error}");
    }
    let gone = PackageOptions { index: "http://user:secret@127.0.0.1:9/simple".into(), ..server.options(root.path()) };
    let error = fetch(&gone).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:9") && !error.contains("secret"), "{error}");
    let empty = Server::start(b"");
    let other = Pin { file: "transformers-9.whl".into(), ..Pin::default() };
    let error = fetch(&PackageOptions { pin: other, ..empty.options(root.path()) }).unwrap_err().to_string();
    assert!(error.contains("it does not have transformers-9.whl"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    // A file where the folder should be: root may write everywhere else.
    fs::write(root.path().join("cache"), "").unwrap();
    let server = Server::start(&wheel(&GOOD));
    let error = fetch(&server.options(root.path())).unwrap_err().to_string();
    assert!(error.contains("cannot be kept in") && error.contains("XDG_CACHE_HOME"), "{error}");
    assert_eq!(server.requests(), 0, "found out before anything is fetched");
    if rustix::process::geteuid().is_root() {
        return;
    }
    let fixed = root.path().join("fixed");
    fs::create_dir(&fixed).unwrap();
    fs::set_permissions(&fixed, fs::Permissions::from_mode(0o500)).unwrap();
    let options = PackageOptions { cache_dir: Some(fixed), ..server.options(root.path()) };
    assert!(fetch(&options).unwrap_err().to_string().contains("cannot be kept in"));
}

#[test]
fn a_wheel_that_the_user_brings_is_checked_and_unpacked() {
    let root = tempfile::tempdir().unwrap();
    let try_wheel = |bytes: &[u8], pin: Pin| {
        let file = root.path().join("w.whl");
        fs::write(&file, bytes).unwrap();
        install(&file, &PackageOptions { pin, ..options(root.path()) }).map_err(|e| e.to_string())
    };
    let good = wheel(&GOOD);
    let error = try_wheel(&good, Pin::default()).unwrap_err();
    assert!(error.contains("w.whl is not the file that host was made for: its sha256 is"), "{error}");
    assert_eq!(try_wheel(&good, pin(&good)).unwrap().origin, Origin::Cache);
    for (bytes, words) in [
        (b"PK no zip".to_vec(), "is not a wheel"),
        (good[..good.len() / 2].to_vec(), "is not a wheel"),
        (wheel(&[("other/__init__.py", b"")]), "holds no transformers/__init__.py"),
        (wheel(&[GOOD[0], ("transformers/../../out.py", b"")]), "leads out of its folder"),
        (wheel(&[GOOD[0], ("/tmp/out.py", b"")]), "leads out of its folder"),
        (wheel(&[GOOD[0], ("transformers/big.py", &vec![b' '; 17 << 20])]), "more than 16 MiB in a file"),
    ] {
        let error = try_wheel(&bytes, pin(&bytes)).unwrap_err();
        assert!(error.contains("w.whl: ") && error.contains(words), "no `{words}` in {error}");
    }
    assert!(!root.path().join("out.py").exists());
    let error = install(&root.path().join("absent"), &options(root.path())).unwrap_err().to_string();
    assert!(error.contains("absent: cannot be read"), "{error}");
}
