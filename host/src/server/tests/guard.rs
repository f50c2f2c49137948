//! What guards the server: TLS, other origins, queue limits, clients that do not read; and the probes that tell of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::operate::{PATH, endless, running, send, slow};
use super::{Server, Setup, http};
use crate::server::{CorsConfig, ServerConfig, TlsFiles};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server/testdata").join(name)
}

fn files() -> TlsFiles {
    TlsFiles {
        certificate: file("localhost.pem"),
        key: Some(file("localhost.key")),
        client_authorities: None,
        client_optional: false,
    }
}

/// What the server sends in answer to GET /health over TLS.
async fn over_tls(server: &Server, with_certificate: bool) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = if with_certificate {
        let chain = vec![CertificateDer::from_pem_file(file("localhost.pem")).unwrap()];
        builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(file("localhost.key")).unwrap()).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    let socket = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    stream.write_all(&http::encode("GET", "/health", &[], b"")).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn tls_and_certificates_of_clients() {
    let start = async |files: TlsFiles| {
        let config = ServerConfig { tls: Some(files.load().unwrap()), ..ServerConfig::default() };
        Setup { config, ..Setup::default() }.start().await
    };
    let server = start(files()).await;
    assert!(over_tls(&server, false).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    // Plain HTTP gets no answer, and does not hold up the others.
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(&http::encode("GET", "/health", &[], b"")).await.unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"));
    assert!(over_tls(&server, false).await.is_ok());

    let strict = start(TlsFiles { client_authorities: Some(file("ca.pem")), ..files() }).await;
    assert!(over_tls(&strict, false).await.is_err());
    assert!(over_tls(&strict, true).await.unwrap().starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn what_is_wrong_with_tls_is_said_with_the_file() {
    let nothing = TlsFiles { certificate: file("nothing.pem"), ..files() };
    assert!(nothing.load().unwrap_err().to_string().contains("nothing.pem"));
    let swapped = TlsFiles { certificate: file("localhost.key"), ..files() };
    let message = swapped.load().unwrap_err().to_string();
    assert!(message.starts_with("--ssl-certfile ") && message.contains("no certificate"), "{message}");
    let keyless = TlsFiles { key: None, ..files() };
    assert!(keyless.load().unwrap_err().to_string().contains("no private key"));
    let foreign = TlsFiles { certificate: file("ca.pem"), ..files() };
    assert!(matches!(foreign.load(), Err(crate::server::TlsError::Pair(_))));
}

#[tokio::test]
async fn pages_of_other_origins_need_leave() {
    let preflight = [
        ("origin", "https://example.org"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let closed = Server::start().await;
    let reply = http::request(closed.address, "GET", "/v1/models", &preflight[..1], b"").await;
    assert_eq!(reply.header("access-control-allow-origin"), None);

    let cors = CorsConfig { origins: vec!["https://example.org".into()], ..CorsConfig::default() };
    let config = ServerConfig { cors, api_keys: vec!["secret".into()], ..ServerConfig::default() };
    let server = Setup { config, ..Setup::default() }.start().await;
    let reply = http::request(server.address, "OPTIONS", PATH, &preflight, b"").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://example.org"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("authorization,content-type"));
    // An answer that refuses can be read by the page too.
    let reply = http::request(server.address, "GET", "/v1/models", &preflight[..1], b"").await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (401, Some("https://example.org")));
    let other = [("origin", "https://example.com")];
    let reply = http::request(server.address, "GET", "/v1/models", &other, b"").await;
    assert_eq!(reply.header("access-control-allow-origin"), None);

    let wrong = CorsConfig { origins: vec!["*".into()], methods: vec!["G E T".into()], ..CorsConfig::default() };
    assert_eq!(wrong.check().unwrap_err().to_string(), "--allowed-methods: `G E T` is not a method");
}

#[tokio::test]
async fn prompts_that_wait_have_a_limit_in_tokens() {
    let server = Setup { max_waiting_tokens: Some(8), max_num_seqs: 1, ..slow() }.start().await;
    let mut sockets = vec![send(&server, &endless(true)).await];
    running(&server, 1).await;
    // Longer than the limit, but alone in the queue.
    sockets.push(send(&server, &json!({"prompt": "a prompt of many tokens", "max_tokens": 4})).await);
    while server.llm.engine().stats().waiting == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reply = server.post(PATH, json!({"prompt": "abc"})).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")), "{}", reply.text());
    assert!(reply.text().contains("--max-num-queued-tokens"), "{}", reply.text());
    drop(sockets);
    server.idle().await;
    server.ok(PATH, json!({"prompt": "abc", "max_tokens": 1})).await;
}

#[tokio::test]
async fn a_full_queue_is_healthy_but_not_ready() {
    let server = Setup { max_waiting: 1, max_num_seqs: 1, ..slow() }.start().await;
    assert_eq!(server.get("/health/ready").await.status, 200);
    assert_eq!(server.get("/load").await.json()["server_load"], 0);
    let mut sockets = vec![send(&server, &endless(true)).await];
    running(&server, 1).await;
    sockets.push(send(&server, &endless(false)).await);
    while server.llm.engine().stats().waiting == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reply = server.get("/health/ready").await;
    assert_eq!((reply.status, reply.json()["status"].as_str()), (503, Some("the queue is full")));
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ping").await.status, 200);
    assert_eq!(server.get("/load").await.json()["server_load"], 2);
    drop(sockets);
    server.idle().await;
}

#[tokio::test]
async fn a_hang_is_not_healthy() {
    let config = ServerConfig { hang_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let server = Setup { config, delay: Duration::from_millis(400), ..Setup::default() }.start().await;
    let socket = send(&server, &endless(true)).await;
    let mut seen = Vec::new();
    while !seen.contains(&503) {
        seen.push(server.get("/health").await.status);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(seen.len() < 500, "the hang was never seen");
    }
    drop(socket);
    server.idle().await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let config = ServerConfig { write_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let server = Setup { config, max_model_len: 4000, ..Setup::default() }.start().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut silent = socket.connect(server.address).await.unwrap();
    let body = json!({"prompt": "abc", "max_tokens": 3900, "ignore_eos": true, "stream": true, "logprobs": 20, "n": 4});
    let head = [("content-type", "application/json")];
    silent.write_all(&http::encode("POST", PATH, &head, body.to_string().as_bytes())).await.unwrap();
    running(&server, 4).await;
    for _ in 0..500 {
        if server.get("/load").await.json()["server_load"] == 0 {
            return drop(silent);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the answer is still being kept");
}
