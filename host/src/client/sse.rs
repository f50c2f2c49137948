//! Server-sent events from bytes that may be cut anywhere.

/// Collects bytes and gives the data of complete events.
#[derive(Debug, Default)]
pub struct Events {
    buffer: Vec<u8>,
    /// Where in `buffer` the next event begins.
    start: usize,
}

impl Events {
    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The data of the next event that is complete. Comments and events without data are passed over.
    pub fn next_event(&mut self) -> Option<String> {
        loop {
            let (length, after) = end(&self.buffer[self.start..])?;
            let event = String::from_utf8_lossy(&self.buffer[self.start..self.start + length]).into_owned();
            self.start += after;
            let mut data: Option<String> = None;
            for line in event.lines().map(|line| line.trim_end_matches('\r')) {
                let Some(rest) = line.strip_prefix("data:") else { continue };
                let rest = rest.strip_prefix(' ').unwrap_or(rest);
                match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(rest);
                    }
                    None => data = Some(rest.to_owned()),
                }
            }
            if data.is_some() {
                return data;
            }
        }
    }
}

/// The length of the first event, and where the one after it begins.
fn end(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(newline) = bytes[at..].iter().position(|&b| b == b'\n').map(|i| at + i) {
        match &bytes[newline + 1..] {
            [b'\n', ..] => return Some((newline, newline + 2)),
            [b'\r', b'\n', ..] => return Some((newline, newline + 3)),
            _ => at = newline + 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ": hello\n\ndata: {\"a\":1}\n\nevent: error\r\ndata: ü\r\ndata:two\r\n\r\nid: 7\n\ndata: [DONE]\n\n";
        let expected = ["{\"a\":1}", "ü\ntwo", "[DONE]"];
        for size in 1..=text.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                events.push(piece);
                while let Some(event) = events.next_event() {
                    found.push(event);
                }
            }
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }
}
