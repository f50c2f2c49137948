//! A hub on the loopback interface with one repository, and faults to order. For tests only.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::HubOptions;

/// The commit of `main`.
pub(super) const COMMIT: &str = "1111111111111111111111111111111111111111";
/// The commit of the branch `old`, whose config differs.
pub(super) const OLD: &str = "2222222222222222222222222222222222222222";

/// What the server holds and how it misbehaves.
#[derive(Default)]
pub(super) struct Hub {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Every request: method, path, and the range if there is one.
    pub(super) log: Vec<String>,
    /// This status is the answer to everything, with a message.
    pub(super) refuse: Option<(u16, &'static str)>,
    /// Bodies of this file end after so many bytes.
    pub(super) cut: Option<(&'static str, usize)>,
    /// Bodies of this file have a wrong byte.
    pub(super) corrupt: Option<&'static str>,
    pub(super) ignore_ranges: bool,
    /// Bodies of this file never come.
    pub(super) silent: Option<&'static str>,
    /// This token is required.
    pub(super) token: Option<&'static str>,
    /// Files that exist but are refused: of a gated repository.
    pub(super) gated: bool,
    /// So many requests are answered 503 first.
    pub(super) busy: usize,
}

type Shared = Arc<Mutex<Hub>>;

/// A running server; it ends with this value.
pub(super) struct Server {
    pub(super) hub: Shared,
    endpoint: String,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(super) fn start(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, data)| (name.to_string(), data.to_vec())).collect();
        let hub = Arc::new(Mutex::new(Hub { files, ..Hub::default() }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(hub.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { hub, endpoint, _runtime: runtime }
    }

    pub(super) fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            revision: None,
            cache_dir: cache.into(),
            offline: false,
            // Some token, so that none of this machine's is picked up.
            token: Some("test".into()),
            endpoint: self.endpoint.clone(),
            python_files: false,
            progress: false,
            timeout: Duration::from_secs(5),
            retries: 1,
            retry_delay: Duration::from_millis(4),
        }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Hub)) {
        change(&mut self.hub.lock().unwrap());
    }

    /// The requests since the last call.
    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.hub.lock().unwrap().log)
    }
}

pub(super) fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect()
}

async fn answer(State(hub): State<Shared>, request: Request) -> Response {
    let (path, range) = (request.uri().path().to_owned(), header(&request, "range"));
    let authorization = header(&request, "authorization");
    let silent = {
        let mut hub = hub.lock().unwrap();
        let range = range.as_deref().map(|r| format!(" {r}")).unwrap_or_default();
        hub.log.push(format!("{} {path}{range}", request.method()));
        if hub.busy > 0 {
            hub.busy -= 1;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if let Some((status, message)) = hub.refuse {
            return refusal(status, message);
        }
        if hub.token.is_some_and(|token| authorization != Some(format!("Bearer {token}"))) {
            return refusal(401, "Invalid credentials");
        }
        hub.silent.is_some_and(|file| path.ends_with(file) && request.method() == Method::GET)
    };
    if silent {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let hub = hub.lock().unwrap();
    if let Some(revision) = path.strip_prefix("/api/models/org/tiny/revision/") {
        return listing(&hub, revision, request.uri().query());
    }
    let resolved = path.strip_prefix("/org/tiny/resolve/").and_then(|rest| rest.split_once('/'));
    match resolved {
        Some((commit, file)) if [COMMIT, OLD].contains(&commit) => {
            if hub.gated {
                return refusal(403, "Access to model org/tiny is restricted");
            }
            body(&hub, file, commit, request.method(), range.as_deref())
        }
        _ => refusal(404, "Repository not found"),
    }
}

fn header(request: &Request, name: &str) -> Option<String> {
    request.headers().get(name).map(|v| v.to_str().unwrap().to_owned())
}

fn refusal(status: u16, message: &str) -> Response {
    (StatusCode::from_u16(status).unwrap(), [("x-error-message", message.to_owned())]).into_response()
}

fn content(hub: &Hub, file: &str, commit: &str) -> Option<Vec<u8>> {
    if commit == OLD && file == "config.json" {
        return Some(br#"{"old": true}"#.to_vec());
    }
    hub.files.get(file).cloned()
}

fn listing(hub: &Hub, revision: &str, query: Option<&str>) -> Response {
    let commit = match revision {
        "main" | COMMIT => COMMIT,
        "old" | "refs%2Fpr%2F1" | OLD => OLD,
        _ => return refusal(404, "Invalid rev id"),
    };
    assert_eq!(query, Some("blobs=true"), "sizes and checksums are wanted");
    let files: Vec<_> = hub
        .files
        .keys()
        .map(|name| {
            let data = content(hub, name, commit).unwrap();
            let sum = sha256(&data);
            if name.ends_with(".safetensors") {
                let lfs = json!({"sha256": sum, "size": data.len(), "pointerSize": 133});
                json!({"rfilename": name, "size": data.len(), "blobId": &sum[..40], "lfs": lfs})
            } else {
                json!({"rfilename": name, "size": data.len(), "blobId": &sum[..40]})
            }
        })
        .collect();
    axum::Json(json!({"_id": "1", "id": "org/tiny", "sha": commit, "siblings": files})).into_response()
}

fn body(hub: &Hub, file: &str, commit: &str, method: &Method, range: Option<&str>) -> Response {
    let Some(mut data) = content(hub, file, commit) else {
        return refusal(404, "Entry not found");
    };
    if hub.corrupt == Some(file) {
        data[0] ^= 1;
    }
    let total = data.len();
    let from = range
        .filter(|_| !hub.ignore_ranges)
        .map_or(0, |r| r.strip_prefix("bytes=").and_then(|r| r.split_once('-')).unwrap().0.parse::<usize>().unwrap());
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = Bytes::from(data).slice(from..);
    let length = rest.len();
    let stream = match hub.cut {
        Some((name, after)) if name == file && total > after => {
            let first: Result<Bytes, std::io::Error> = Ok(rest.slice(..after.saturating_sub(from).min(length)));
            // Later, so that the first part has left.
            let error = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("cut"))
            };
            let first = futures_util::stream::iter([first]);
            Body::from_stream(first.chain(futures_util::stream::once(error)))
        }
        _ => Body::from(rest),
    };
    let stream = if *method == Method::HEAD { Body::empty() } else { stream };
    let headers = [("content-length", length.to_string()), ("etag", "\"x\"".into()), ("x-repo-commit", commit.into())];
    (status, headers, stream).into_response()
}
