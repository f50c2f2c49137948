//! How a server ends, and what keeps it from starting.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::http;
use crate::models::Folder;
use crate::program::{Place, Server};

/// A stream that has begun and goes on for a while.
fn stream(server: &Server, max_tokens: usize) -> TcpStream {
    let body = json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": true, "stream": true});
    let socket = http::send(server.address(), "POST", "/v1/completions", body.to_string().as_bytes());
    let mut first = [0; 1];
    assert_eq!(socket.peek(&mut first).unwrap(), 1);
    socket
}

#[test]
fn sigterm_lets_streams_finish() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    let streams: Vec<TcpStream> = (0..4).map(|_| stream(&server, 1000)).collect();
    server.signal(Signal::TERM);
    server.wait_for("shutting down: finishing what runs connections=4");
    assert!(TcpStream::connect(server.address()).is_err(), "a new connection was accepted");
    for stream in streams {
        let text = http::read(stream).text();
        assert!(text.ends_with("data: [DONE]\n\n") && text.contains("\"finish_reason\":\"length\""), "{text}");
    }
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(0));
    assert!(server.log().ends_with("stopped\n"), "{}", server.log());
    assert_eq!(server.stdout(), "");
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let place = Place::new();
    let folder = slow_model(&place);
    let mut server = place.serve(&[folder.arg(), "--executor", "reference"]);
    let body = json!({"prompt": [1, 2], "max_tokens": 4000, "ignore_eos": true, "stream": true});
    let mut running = http::send(server.address(), "POST", "/v1/completions", body.to_string().as_bytes());
    running.read_exact(&mut [0; 10]).unwrap();
    server.signal(Signal::TERM);
    server.wait_for("once more to stop at once");
    let start = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(2));
}

/// A model with a long context, for requests that do not end by themselves during a test.
fn slow_model(place: &Place) -> Folder {
    let folder = Folder::llama(&place.path("models"));
    folder.config(|c| {
        c.insert("max_position_embeddings".into(), json!(4096));
    });
    folder
}

#[test]
fn what_takes_longer_than_the_shutdown_timeout_is_told_so() {
    let place = Place::new();
    let folder = slow_model(&place);
    let mut server = place.serve(&[folder.arg(), "--executor", "reference", "--shutdown-timeout", "1"]);
    let body = json!({"prompt": [1, 2], "max_tokens": 4000, "ignore_eos": true, "stream": true});
    let running = http::send(server.address(), "POST", "/v1/completions", body.to_string().as_bytes());
    running.peek(&mut [0; 1]).unwrap();
    server.signal(Signal::INT);
    let text = http::read(running).text();
    assert!(text.contains("the server is shutting down") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = Place::new().run(&["serve", "--port", &port]);
    output.fails(&[&format!("cannot listen on 127.0.0.1:{port} (--host, --port)"), "in use"]);
    let output = Place::new().run(&["serve", "--host", "192.0.2.1", "--port", "0"]);
    output.fails(&["cannot listen on 192.0.2.1:0", "--host"]);
}

#[test]
fn a_unix_socket_serves_and_goes_with_the_server() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let place = Place::new();
    let path = place.path("host.sock");
    let arg = path.to_str().unwrap();
    let mut server = place.serve(&["--uds", arg]);
    assert!(server.log().contains(&format!("on unix:{arg}")), "{}", server.log());
    let mut socket = UnixStream::connect(&path).unwrap();
    socket.write_all(b"GET /v1/models HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("host-demo"), "{answer}");
    place.run(&["serve", "--uds", arg]).fails(&["--uds", arg, "another server listens there"]);
    let file = place.put("file", "not a socket");
    place.run(&["serve", "--uds", file.to_str().unwrap()]).fails(&["--uds", "file"]);
    server.signal(Signal::TERM);
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(!path.exists(), "the socket is still there");
    // What a server that was killed leaves behind is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = place.serve(&["--uds", arg]);
    assert!(UnixStream::connect(&path).is_ok());
    drop(server);
}
