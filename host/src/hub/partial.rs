//! A file that is still arriving: it keeps what came before, and hashes what it holds. It decides nothing; `download`
//! calls it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::HubError;

/// A file that is still arriving, with the hash of what has arrived.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    pub(super) written: u64,
}

impl Partial {
    /// Keeps the first `keep` bytes of what is there.
    pub(super) fn open(path: &Path, keep: u64) -> Result<Self, HubError> {
        let options = || File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = options().map_err(HubError::io(path))?;
        let mut partial = Self { path: path.into(), file, hash: Sha256::new(), written: 0 };
        partial.rewind_to(keep)?;
        Ok(partial)
    }

    pub(super) fn restart(&mut self) -> Result<(), HubError> {
        self.hash = Sha256::new();
        self.rewind_to(0)
    }

    fn rewind_to(&mut self, keep: u64) -> Result<(), HubError> {
        let io = HubError::io(&self.path);
        let (file, hash) = (&mut self.file, &mut self.hash);
        let mut rewind = || -> std::io::Result<()> {
            file.set_len(keep)?;
            file.seek(SeekFrom::Start(0))?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = file.read(&mut buffer)?;
                if n == 0 {
                    return Ok(());
                }
                hash.update(&buffer[..n]);
            }
        };
        rewind().map_err(io)?;
        self.written = keep;
        Ok(())
    }

    pub(super) fn append(&mut self, chunk: &[u8]) -> Result<(), HubError> {
        self.file.write_all(chunk).map_err(HubError::io(&self.path))?;
        self.hash.update(chunk);
        self.written += chunk.len() as u64;
        Ok(())
    }

    /// Brings it to the disk; returns its length and sha256.
    pub(super) fn finish(self) -> Result<(u64, String), HubError> {
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((self.written, sha256))
    }
}
