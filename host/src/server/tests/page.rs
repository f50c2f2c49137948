//! The page as it is sent; what it does is tested in a browser (tests/browser).

use super::{Setup, http};
use crate::server::config::ServerConfig;

#[tokio::test]
async fn the_page_is_one_document_under_a_policy() {
    let server = Setup::default().start().await;
    let reply = server.get("/").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let html = reply.text();
    assert!(!html.contains("/*STYLE*/") && !html.contains("/*SCRIPT*/"));
    // Nothing is loaded from elsewhere.
    for outside in ["src=\"http", "href=\"http", "@import", "url(http", "url(\"http", "import("] {
        assert!(!html.contains(outside), "{outside}");
    }
    // Inline styles and handlers would be refused by the policy.
    assert!(!html.contains(" style=\"") && !html.contains(" onclick="));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(html.len() < 100_000, "{} bytes", html.len());
}

#[tokio::test]
async fn without_the_key_the_page_asks_for_it() {
    let config = ServerConfig { api_keys: vec!["secret".into()], ..ServerConfig::default() };
    let server = Setup { config, ..Setup::default() }.start().await;
    let reply = server.get("/").await;
    assert_eq!(reply.status, 401);
    assert!(reply.text().contains("id=\"signin\"") && !reply.text().contains("id=\"composer\""));
    let key = [("authorization", "Bearer secret")];
    let reply = http::request(server.address, "GET", "/", &key, b"").await;
    assert!(reply.status == 200 && reply.text().contains("id=\"composer\""));
}
