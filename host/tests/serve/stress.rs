//! Requests of all kinds on one processor, from clients that keep their connections, leave, or come just when an idle
//! connection is closed: each that stays to the end is answered. `HOST_STRESS=20000` is for a long hunt.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::program::{Place, Server};

const CLIENTS: usize = 24;
/// An answer that takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A request of some kind: its path and its body.
fn draw(random: &mut Random, i: usize) -> (&'static str, Value) {
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Bonn", "Ulm"]}, "n": {"type": "integer"}},
                        "required": ["city", "n"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}});
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": schema}}]);
    let messages = json!([{"role": "user", "content": format!("Tell me about number {i}")}]);
    let (path, mut body) = match random.below(6) {
        0 => ("/v1/completions", json!({"prompt": format!("The sky is {i}"), "ignore_eos": true})),
        1 => ("/v1/completions", json!({"prompt": [format!("a {i}"), "b"], "logprobs": 2})),
        2 => ("/v1/completions", json!({"prompt": "x", "structured_outputs": {"regex": format!("[a-z]{{1,9}}{i}")}})),
        3 => ("/v1/chat/completions", json!({"messages": messages, "logprobs": true, "top_logprobs": 2})),
        4 => (
            "/v1/chat/completions",
            json!({"messages": messages, "response_format":
                {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}}),
        ),
        _ => {
            let choice = if random.chance(50) { "auto" } else { "required" };
            ("/v1/chat/completions", json!({"messages": messages, "tools": tools, "tool_choice": choice}))
        }
    };
    body["max_tokens"] = json!(1 + random.below(30));
    body["stream"] = json!(random.chance(60));
    if random.chance(25) {
        body["n"] = json!(1 + random.below(3));
    }
    if random.chance(25) {
        body["stop"] = json!(["e", "zzz"]);
    }
    (path, body)
}

/// What became of a request.
enum Fate {
    Whole(String),
    Left,
    /// The server had closed the connection before it saw the request.
    Closed,
}

/// A connection that is used again, as clients do.
struct Connection {
    socket: BufReader<TcpStream>,
    /// The server may close it at any moment.
    idle: bool,
}

impl Connection {
    fn new(server: &Server) -> Connection {
        let socket = TcpStream::connect(server.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Connection { socket: BufReader::new(socket), idle: false }
    }

    /// Sends a request and reads its answer, or as many chunks of it as `leave` says.
    fn ask(&mut self, path: &str, body: &Value, leave: Option<u64>) -> Fate {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let sent = self.socket.get_mut().write_all(format!("{head}{body}").as_bytes());
        let idle = std::mem::replace(&mut self.idle, true);
        if leave == Some(0) {
            return Fate::Left;
        }
        let (mut line, mut length) = (String::new(), None);
        let first = self.socket.read_line(&mut line);
        // Nothing of an answer: only a connection that was idle may end like this.
        if sent.is_err() || !matches!(first, Ok(1..)) {
            let slow = first.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(idle && !slow, "no answer: {sent:?}, {first:?}: {path} {body}");
            return Fate::Closed;
        }
        assert!(line.starts_with("HTTP/1.1 200"), "{line}: {path} {body}");
        loop {
            line.clear();
            self.socket.read_line(&mut line).unwrap();
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", bytes)) => length = Some(bytes.parse::<usize>().unwrap()),
                Some(_) => {}
                None => break,
            }
        }
        let mut text = Vec::new();
        let Some(length) = length else {
            return self.chunks(leave, &format!("{path} {body}"));
        };
        text.resize(length, 0);
        self.socket.read_exact(&mut text).unwrap_or_else(|error| panic!("{error}: {path} {body}"));
        Fate::Whole(String::from_utf8(text).unwrap())
    }

    fn chunks(&mut self, leave: Option<u64>, what: &str) -> Fate {
        let mut text = Vec::new();
        for count in 1.. {
            let mut line = String::new();
            self.socket.read_line(&mut line).unwrap_or_else(|error| panic!("{error}: {what}"));
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("cut off: {what}"));
            let start = text.len();
            text.resize(start + size + 2, 0);
            self.socket.read_exact(&mut text[start..]).unwrap_or_else(|error| panic!("{error}: {what}"));
            text.truncate(start + size);
            if size == 0 {
                break;
            }
            if leave == Some(count) {
                return Fate::Left;
            }
        }
        Fate::Whole(String::from_utf8(text).unwrap())
    }
}

/// One client's requests, until all are asked for. Counts those that were answered whole.
fn client(server: &Server, which: usize, next: &AtomicUsize, count: usize, whole: &AtomicUsize) {
    let mut random = Random(which as u64);
    let mut connection = Connection::new(server);
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= count {
            return;
        }
        let (path, body) = draw(&mut random, i);
        let leave = random.chance(30).then(|| random.below(4));
        if random.chance(3) {
            // About as long as the server keeps an idle connection.
            std::thread::sleep(Duration::from_millis(980 + random.below(40)));
            connection.idle = true;
        }
        loop {
            match connection.ask(path, &body, leave) {
                Fate::Closed => connection = Connection::new(server),
                Fate::Left => {
                    connection = Connection::new(server);
                    break;
                }
                Fate::Whole(text) => {
                    let done = if body["stream"] == true { "data: [DONE]\n\n" } else { "}" };
                    assert!(text.ends_with(done) && !text.contains("\"error\""), "{path} {body}: {text}");
                    whole.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn every_request_ends_on_one_processor_whoever_leaves() {
    let count = std::env::var("HOST_STRESS").map_or(250, |count| count.parse().unwrap());
    let place = Place::new();
    // A process has the processors of the thread that started it.
    let all = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&cpu| all.is_set(cpu)).unwrap());
    sched_setaffinity(None, &one).unwrap();
    let server = place.serve(&[
        "--disable-access-log",
        "--read-timeout",
        "1",
        "--max-num-seqs",
        "16",
        "--tool-call-parser",
        "hermes",
    ]);
    sched_setaffinity(None, &all).unwrap();
    let (next, whole, ended) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for which in 0..CLIENTS {
            let (server, next, whole, ended) = (&server, &next, &whole, &ended);
            scope.spawn(move || {
                client(server, which, next, count, whole);
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        // A client that failed ends the scope with its panic; the probe must not go on for ever.
        while ended.load(Ordering::Relaxed) < CLIENTS && next.load(Ordering::Relaxed) < count {
            assert_eq!(server.get("/health").status, 200);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let whole = whole.into_inner();
    assert!(whole > count / 2, "{whole} of {count} were answered whole");
    server.wait_until_idle(Duration::from_secs(20));
    assert!(!server.log().contains("ERROR") && !server.log().contains("panicked"), "{}", server.log());
    eprintln!("{whole} of {count} requests were answered whole");
}
