//! The frames that host and worker exchange: a mark, a length, the bytes. Both sides bound the length before they read.

use std::io::{self, Read, Write};

/// Starts every frame: a stray write to the pipe is recognised as such.
const MARK: [u8; 4] = *b"hpw1";
/// Mark and length.
pub(super) const HEADER: usize = 12;

/// The header of a frame of `length` bytes.
pub(super) fn header(length: usize) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..4].copy_from_slice(&MARK);
    out[4..].copy_from_slice(&(length as u64).to_le_bytes());
    out
}

/// The length in a header; `None`: it is none.
pub(super) fn length(header: &[u8; HEADER]) -> Option<u64> {
    let (mark, length) = header.split_at(4);
    (mark == MARK).then(|| length.try_into().map_or(0, u64::from_le_bytes))
}

/// Writes one frame. For the worker, which may block.
pub(super) fn write(to: &mut impl Write, parts: &[&[u8]]) -> io::Result<()> {
    to.write_all(&header(parts.iter().map(|p| p.len()).sum()))?;
    parts.iter().try_for_each(|p| to.write_all(p))?;
    to.flush()
}

/// Reads one frame of at most `limit` bytes. For the worker, which may block.
pub(super) fn read(from: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut head = [0; HEADER];
    from.read_exact(&mut head)?;
    let length = length(&head).ok_or_else(|| io::Error::other("no frame of host"))?;
    if length > limit {
        return Err(io::Error::other(format!("a frame of {length} bytes, the limit is {limit}")));
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_as_written_and_are_bounded() {
        let mut bytes = Vec::new();
        write(&mut bytes, &[b"ab", b"c"]).unwrap();
        assert_eq!(read(&mut bytes.as_slice(), 3).unwrap(), b"abc");
        assert!(read(&mut bytes.as_slice(), 2).unwrap_err().to_string().contains("limit is 2"));
        assert!(read(&mut &bytes[..bytes.len() - 1], 3).is_err());
        assert!(read(&mut &b"println output"[..], 100).unwrap_err().to_string().contains("no frame"));
        let huge = header(usize::MAX);
        assert!(read(&mut huge.as_slice(), 1000).is_err());
    }
}
