//! What happens around every request: an id, one access-log line, the API key, and JSON answers for panics,
//! unknown routes and wrong methods. It never looks into bodies. Installed by [`super::router`].

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::page;
use super::state::AppState;
use super::traces::Parent;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Probes and scrapes would drown everything else in the log.
const UNLOGGED: [&str; 5] = ["/health", "/health/ready", "/ping", "/metrics", "/load"];
/// What needs no key: probes of orchestrators cannot carry a secret, and say nothing but yes or no.
const OPEN: [&str; 3] = ["/health", "/health/ready", "/ping"];

/// The id of a request: what the client sent as `X-Request-Id`, or a fresh one.
#[derive(Debug, Clone)]
pub(crate) struct RequestId {
    pub(crate) text: Arc<str>,
    /// Whether the client chose it.
    pub(crate) given: bool,
    /// The caller's span, where spans are recorded.
    pub(crate) parent: Parent,
}

impl RequestId {
    /// An id that no other request of any run has had, as far as 128 mixed bits go.
    pub(crate) fn fresh() -> Self {
        static KEYS: std::sync::LazyLock<(RandomState, RandomState)> =
            std::sync::LazyLock::new(|| (RandomState::new(), RandomState::new()));
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let text = format!("{:016x}{:016x}", KEYS.0.hash_one(count), KEYS.1.hash_one(count)).into();
        Self { text, given: false, parent: Parent::default() }
    }

    /// The client's id if it is one that we can repeat in headers, JSON and logs.
    pub(crate) fn from_client(value: &str) -> Option<Self> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/+=".contains(&b);
        (!value.is_empty() && value.len() <= 128 && value.bytes().all(fine)).then(|| Self {
            text: value.into(),
            given: true,
            parent: Parent::default(),
        })
    }
}

/// A key that nobody can guess, for a server that only its own process should use.
pub fn random_key() -> String {
    // The standard library seeds its hashers from the system's source of random numbers.
    let word = || RandomState::new().hash_one(Instant::now());
    format!("{:016x}{:016x}", word(), word())
}

/// Gives the request its id, times it and logs it.
pub(crate) async fn observe(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let mut id = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|value| RequestId::from_client(value.to_str().ok()?))
        .unwrap_or_else(RequestId::fresh);
    if state.config.traces.is_some() {
        id.parent = Parent::of(request.headers());
    }
    // Only routes that exist have a name, so that nobody can make up labels.
    let handler = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let path = request.uri().path();
    let silent = UNLOGGED.contains(&path) || state.config.unlogged.iter().any(|other| other == path);
    let logged = state.config.access_log && !silent;
    let line = logged.then(|| (request.uri().path().to_owned(), Instant::now()));
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    state.metrics.handled(handler, &method, response.status());
    if let Ok(value) = HeaderValue::from_str(&id.text) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if let Some((path, start)) = line {
        let status = response.status().as_u16();
        // For streams this is the time until the answer began.
        let ms = start.elapsed().as_secs_f64() * 1e3;
        tracing::info!(target: "host::access", %method, path, status, ms, request_id = %id.text, "request");
    }
    response
}

/// The API keys, hashed: comparing digests takes the same time whatever was sent.
#[derive(Debug)]
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
    }

    /// Whether a request with these headers may use the API: `Authorization: Bearer KEY`, or `x-api-key`, which Anthropic's
    /// clients send.
    fn admit(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let key = match (given.get(..7), headers.get("x-api-key")) {
            (Some(scheme), _) if scheme.eq_ignore_ascii_case(b"bearer ") => &given[7..],
            (_, Some(key)) => key.as_bytes(),
            _ => return false,
        };
        let given: [u8; 32] = Sha256::digest(key).into();
        // Every key is compared whole, so that time tells neither which key nor how much of it matched.
        let matches = |key: &[u8; 32]| key.iter().zip(&given).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0;
        self.0.iter().fold(false, |any, key| any | matches(key))
    }
}

/// Lets a request through if it carries a key; probes are open to all.
pub(crate) async fn authorize(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    if OPEN.contains(&request.uri().path()) || state.keys.admit(request.headers()) {
        return next.run(request).await;
    }
    if request.uri().path() == "/" && request.method() == Method::GET {
        return page::sign_in();
    }
    let message = "this server needs an API key; send it as Authorization: Bearer KEY";
    ApiError::new(StatusCode::UNAUTHORIZED, message).into_response()
}

/// 404 for a route that does not exist.
pub(crate) async fn not_found(method: Method, uri: Uri) -> ApiError {
    let message =
        format!("there is no route {method} {}; see /v1/models, /v1/completions, /v1/chat/completions", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, message)
}

/// 405 for a route that exists with another method.
pub(crate) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}; see the Allow header", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// 500 for a handler that panicked. The panic's own message goes to the log only.
pub(crate) fn panicked(panic: Box<dyn Any + Send + 'static>) -> axum::http::Response<Body> {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)");
    tracing::error!(panic = message, "a request handler panicked; this is a bug");
    ApiError::internal("the server failed on this request; its log has the details").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_admit_only_their_own() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        let headers = |name: &'static str, text: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(text))])
        };
        assert!(keys.admit(&headers("authorization", "Bearer one")));
        assert!(keys.admit(&headers("authorization", "bearer two")));
        assert!(keys.admit(&headers("x-api-key", "two")));
        for bad in ["Bearer", "Bearer ", "Bearer on", "Bearer onetwo", "one", "Basic one", ""] {
            assert!(!keys.admit(&headers("authorization", bad)), "{bad}");
            assert!(!keys.admit(&headers("x-api-key", if bad == "one" { "" } else { bad })), "{bad}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
        assert!(Keys::new(&[]).admit(&HeaderMap::new()));
    }

    #[test]
    fn request_ids() {
        assert_ne!(RequestId::fresh().text, RequestId::fresh().text);
        assert_eq!(RequestId::fresh().text.len(), 32);
        assert!(RequestId::from_client("abc-1").is_some());
        assert!(RequestId::from_client("a\"b").is_none());
        assert!(RequestId::from_client(&"a".repeat(129)).is_none());
    }
}
