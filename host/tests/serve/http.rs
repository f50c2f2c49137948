//! A small HTTP/1.1 client: what the tests need and no more, so that they see the bytes as they are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An answer.
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Sends a request; the answer is not read.
pub fn send(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    // No test waits for longer, whatever goes wrong.
    socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let sent = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body));
    // A server that refuses a body need not read it to its end.
    assert!(sent.is_ok() || body.len() > 1 << 20, "{sent:?}");
    socket
}

/// Reads an answer to the end of the connection.
pub fn read(mut socket: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let end = socket.read_to_end(&mut bytes);
    assert!(end.is_ok() || !bytes.is_empty(), "{end:?}");
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("no end of head") + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = lines.any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if chunked { unchunk(&bytes[end..]) } else { bytes[end..].to_vec() };
    Reply { status, body }
}

/// Undoes chunked transfer encoding; panics if it is cut off.
fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let line = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk is cut off");
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        bytes = &bytes[line + 2..];
        if size == 0 {
            return out;
        }
        out.extend(&bytes[..size]);
        bytes = &bytes[size + 2..];
    }
}
