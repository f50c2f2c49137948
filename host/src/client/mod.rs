//! A small client for servers with the OpenAI API, this one or others: connections that are kept, JSON out, bytes or
//! server-sent events in. It is what `host bench serve`, `host chat` and `host run-batch` speak with, and knows no
//! model and no command. Redirects, proxies and compression are left out: measurements should not have them.

mod sse;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use sse::Events;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(30);
/// Answers that are read whole may be this long.
const MOST: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("{url}: {reason}; expected something like http://127.0.0.1:8000")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// Nobody is there.
    #[error("cannot connect to {authority}: {error}")]
    Connect {
        /// Host and port.
        authority: String,
        /// Why.
        error: std::io::Error,
    },
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The server refused.
    #[error("{status}: {message}")]
    Status {
        /// HTTP status.
        status: StatusCode,
        /// The error's message, or the body's beginning.
        message: String,
    },
    /// The answer is no JSON, or too long.
    #[error("the answer cannot be read: {0}")]
    Answer(String),
}

type Sender = SendRequest<Full<Bytes>>;

/// A server. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    host: String,
    port: u16,
    authority: String,
    prefix: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    key: Option<String>,
    idle: Mutex<Vec<Sender>>,
}

/// An answer whose body is still to be read.
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its `X-Request-Id`.
    pub id: Option<String>,
    body: Incoming,
    sender: Option<Sender>,
    client: Client,
}

impl Client {
    /// The server at `url`; a path `/v1` at its end may be given or not.
    pub fn new(url: &str, key: Option<String>) -> Result<Self, ClientError> {
        let wrong = |reason: &str| ClientError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it has no host"))?.to_owned();
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|e| wrong(&e.to_string()))?;
                Some((connector().map_err(|e| wrong(&e))?, name))
            }
            _ => return Err(wrong("it must begin with http:// or https://")),
        };
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let authority = uri.authority().map_or_else(|| host.clone(), ToString::to_string);
        let path = uri.path().trim_end_matches('/');
        let prefix = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        if let Some(key) = &key
            && !key.bytes().all(|b| (0x20..0x7f).contains(&b))
        {
            return Err(wrong("the API key has characters that no header can carry"));
        }
        Ok(Self { inner: Arc::new(Inner { host, port, authority, prefix, tls, key, idle: Mutex::default() }) })
    }

    /// Sends a request and waits for the beginning of its answer, whatever its status.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply, ClientError> {
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        self.send_bytes(method, path, bytes).await
    }

    /// The same with a body that is JSON already.
    pub async fn send_bytes(&self, method: Method, path: &str, body: Bytes) -> Result<Reply, ClientError> {
        let Inner { prefix, authority, key, .. } = &*self.inner;
        let wrong = |e: axum::http::Error| ClientError::Url { url: path.to_owned(), reason: e.to_string() };
        let build = |body: Bytes| {
            let mut request = Request::builder().method(method.clone()).uri(format!("{prefix}{path}"));
            request = request.header(header::HOST, authority).header(header::ACCEPT, "*/*");
            if !body.is_empty() {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            if let Some(key) = key {
                request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
            }
            request.body(Full::new(body)).map_err(wrong)
        };
        // A kept connection may have been closed by the other side meanwhile; a new one is worth a second try.
        if let Some(mut sender) = self.idle().await
            && let Ok(reply) = sender.send_request(build(body.clone())?).await
        {
            return Ok(self.reply(reply, sender));
        }
        let mut sender = self.connect().await?;
        let reply = sender.send_request(build(body)?).await?;
        Ok(self.reply(reply, sender))
    }

    /// A JSON answer; a status that is no success is an error.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let reply = self.send(method, path, body).await?.success().await?;
        let bytes = reply.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer(e.to_string()))
    }

    /// The name of the first model that is served.
    pub async fn first_model(&self) -> Result<String, ClientError> {
        let models = self.json(Method::GET, "/v1/models", None).await?;
        let name = models["data"][0]["id"].as_str().map(str::to_owned);
        name.ok_or_else(|| ClientError::Answer("/v1/models names no model".into()))
    }

    fn reply(&self, reply: hyper::Response<Incoming>, sender: Sender) -> Reply {
        let id = reply.headers().get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        Reply { status: reply.status(), id, body: reply.into_body(), sender: Some(sender), client: self.clone() }
    }

    async fn idle(&self) -> Option<Sender> {
        loop {
            let mut sender = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let Inner { host, port, authority, tls, .. } = &*self.inner;
        let failed = |error| ClientError::Connect { authority: authority.clone(), error };
        let late = || failed(std::io::Error::new(std::io::ErrorKind::TimedOut, "it takes too long"));
        let connecting = async {
            let socket = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
            socket.set_nodelay(true).map_err(failed)?;
            match tls {
                None => handshake(socket).await,
                Some((tls, name)) => handshake(tls.connect(name.clone(), socket).await.map_err(failed)?).await,
            }
        };
        tokio::time::timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, ClientError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    Ok(sender)
}

/// TLS with the system's authorities.
fn connector() -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        return Err(
            "https needs certificates of authorities, and the system has none (SSL_CERT_FILE names others)".into()
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Reply {
    /// The next piece of the body; None at its end, when the connection is free for others.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
        if let Some(sender) = self.sender.take() {
            self.client.inner.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        }
        Ok(None)
    }

    /// The whole body.
    pub async fn bytes(mut self) -> Result<Vec<u8>, ClientError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if all.len() + chunk.len() > MOST {
                return Err(ClientError::Answer(format!("it is longer than {MOST} bytes")));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// Itself, or the error that it reports.
    pub async fn success(self) -> Result<Reply, ClientError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let status = self.status;
        let bytes = self.bytes().await?;
        let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        // OpenAI's form, then what others have.
        let places = [&json["error"]["message"], &json["message"], &json["detail"], &json["error"]];
        let message = places.iter().find_map(|place| place.as_str()).map(str::to_owned);
        let text = || String::from_utf8_lossy(&bytes).chars().take(300).collect::<String>();
        Err(ClientError::Status { status, message: message.unwrap_or_else(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, authority, port, prefix) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", 8000, ""),
            ("http://localhost/v1", "localhost", 80, ""),
            ("http://[::1]:7/llm/v1/", "[::1]:7", 7, "/llm"),
        ] {
            let client = Client::new(url, None).unwrap_or_else(|e| panic!("{e}"));
            let Inner { authority: found, port: at, prefix: path, .. } = &*client.inner;
            assert_eq!((found.as_str(), *at, path.as_str()), (authority, port, prefix), "{url}");
        }
        for url in ["127.0.0.1:8000", "ftp://a", "http://", "no url"] {
            assert!(matches!(Client::new(url, None), Err(ClientError::Url { .. })), "{url}");
        }
        assert!(Client::new("http://a", Some("new\nline".into())).is_err());
    }
}
