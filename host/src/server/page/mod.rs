//! The web page at `/`: one document with its style and scripts inside, so that it needs nothing but this server.
//! Whoever lacks the key gets a document that asks for it. The policy in its header lets a browser run these scripts
//! and no others, and talk to this server only. What the page does, it does through the API.

use std::sync::LazyLock;

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = concat!(
    include_str!("base.js"),
    include_str!("settings.js"),
    include_str!("text.js"),
    include_str!("talk.js"),
    include_str!("engine.js"),
    include_str!("main.js"),
);
const SIGN_IN: &str = include_str!("signin.js");

struct Documents {
    page: String,
    sign_in: String,
    policy: String,
}

static DOCUMENTS: LazyLock<Documents> = LazyLock::new(|| {
    let fill = |html: &str, script: &str| html.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", script);
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    // The page replaces the document that asked for the key and lives under that one's policy.
    let policy = format!(
        "default-src 'none'; script-src {} {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(SIGN_IN),
        hash(STYLE)
    );
    Documents {
        page: fill(include_str!("index.html"), SCRIPT),
        sign_in: fill(include_str!("signin.html"), SIGN_IN),
        policy,
    }
});

fn document(html: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, DOCUMENTS.policy.as_str()),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    (headers, html).into_response()
}

/// `GET /`.
pub(super) async fn page() -> Response {
    document(&DOCUMENTS.page)
}

/// What `/` gives to whoever comes without a key.
pub(super) fn sign_in() -> Response {
    (StatusCode::UNAUTHORIZED, document(&DOCUMENTS.sign_in)).into_response()
}
