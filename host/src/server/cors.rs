//! Which web pages of other origins may use the API from a browser. Without settings none may: an open API on
//! loopback would otherwise be at the service of every page that its user visits. It has no part in who may use the
//! API otherwise; that is `middleware::authorize`.

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// vLLM's settings. A list with `*` in it stands for everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsConfig {
    /// Origins such as `https://example.org`. Empty: the server's own page only.
    pub origins: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Request headers.
    pub headers: Vec<String>,
    /// Whether cookies and the like may come along.
    pub credentials: bool,
}

impl Default for CorsConfig {
    fn default() -> Self {
        let all = || vec![String::from("*")];
        Self { origins: Vec::new(), methods: all(), headers: all(), credentials: false }
    }
}

/// A value that no header can have.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: `{value}` is not {what}")]
pub struct CorsError {
    flag: &'static str,
    value: String,
    what: &'static str,
}

impl CorsConfig {
    /// Checks every value.
    pub fn check(&self) -> Result<(), CorsError> {
        self.layer().map(|_| ())
    }

    /// The layer; None if there is nothing to allow.
    pub(super) fn layer(&self) -> Result<Option<CorsLayer>, CorsError> {
        if self.origins.is_empty() {
            return Ok(None);
        }
        let origins: Vec<HeaderValue> = list("--allowed-origins", "an origin", &self.origins)?;
        let methods: Vec<Method> = list("--allowed-methods", "a method", &self.methods)?;
        let headers: Vec<HeaderName> = list("--allowed-headers", "a header's name", &self.headers)?;
        let all = |list: &[String]| list.iter().any(|value| value == "*");
        // With credentials browsers take `*` literally, so what was asked for is repeated instead, as vLLM does.
        let layer = CorsLayer::new()
            .allow_origin(match (all(&self.origins), self.credentials) {
                (true, false) => AllowOrigin::any(),
                (true, true) => AllowOrigin::mirror_request(),
                (false, _) => AllowOrigin::list(origins),
            })
            .allow_methods(match all(&self.methods) {
                true => AllowMethods::mirror_request(),
                false => AllowMethods::list(methods),
            })
            .allow_headers(match all(&self.headers) {
                true => AllowHeaders::mirror_request(),
                false => AllowHeaders::list(headers),
            })
            .allow_credentials(self.credentials)
            .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER])
            .max_age(std::time::Duration::from_secs(600));
        Ok(Some(layer))
    }
}

fn list<T: std::str::FromStr>(flag: &'static str, what: &'static str, values: &[String]) -> Result<Vec<T>, CorsError> {
    let parse = |value: &String| value.parse().map_err(|_| CorsError { flag, value: value.clone(), what });
    values.iter().filter(|value| *value != "*").map(parse).collect()
}
