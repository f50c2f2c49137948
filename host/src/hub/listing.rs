//! Asks the hub what a revision holds: its commit, its files, their sizes and checksums.
//! `download` calls it.

use serde::Deserialize;

use super::HubError;
use super::download::{Download, encoded, with_causes};
use super::resolve::is_commit;

/// The hub's answer about a revision of a repository, with the fields that are used.
#[derive(Deserialize)]
struct Listing {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<ListedLfs>,
}

#[derive(Deserialize)]
struct ListedLfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// What the hub announces about a file.
#[derive(Debug, Clone)]
pub(super) struct Announced {
    pub(super) path: String,
    pub(super) size: u64,
    /// Name of the blob: the server's ETag.
    pub(super) etag: String,
    /// Known for large files only.
    pub(super) sha256: Option<String>,
}

impl Download {
    /// The commit that the revision stands for, and its files with sizes and checksums.
    pub(super) async fn list(&self) -> Result<(String, Vec<Announced>), HubError> {
        let mut tries = 0;
        let answer = loop {
            match self.ask_for_list().await {
                Err(error) if error.is_outage() && tries < self.options.retries => {
                    tracing::debug!(%error, "trying again");
                    self.wait(tries).await;
                    tries += 1;
                }
                answer => break answer?,
            }
        };
        let listing: Listing = serde_json::from_str(&answer).map_err(|e| self.bad_answer(e.to_string()))?;
        let commit = listing.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| self.bad_answer("it names no commit".into()))?;
        let mut files = listing.siblings.into_iter().map(|f| self.announced(f)).collect::<Result<Vec<_>, _>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((commit, files))
    }

    async fn ask_for_list(&self) -> Result<String, HubError> {
        let what = "asking for the list of files";
        let revision = encoded(self.options.revision());
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.options.endpoint, self.repo);
        let answer = self.get(what, url, None).await?;
        self.timed(what, answer.text()).await?.map_err(|e| self.transfer_error(what, with_causes(&e)))
    }

    fn announced(&self, file: Listed) -> Result<Announced, HubError> {
        let path = file.rfilename;
        let lfs_size = file.lfs.as_ref().and_then(|lfs| lfs.size);
        // Only what is a sha256 can be compared with one.
        let sha256 = file.lfs.and_then(|lfs| lfs.sha256).map(|s| s.to_ascii_lowercase()).filter(|s| is_hex(s, 64));
        let (Some(size), Some(etag)) = (lfs_size.or(file.size), sha256.clone().or(file.blob_id)) else {
            return Err(self.bad_answer(format!("it gives no size or object id of {path}")));
        };
        if etag.is_empty() || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            return Err(self.bad_answer(format!("{path} has the object id \"{etag}\"")));
        }
        Ok(Announced { path, size, etag, sha256 })
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}
