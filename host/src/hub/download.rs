//! Fetches a repository's files into the hub cache.
//!
//! hf-hub does the HTTP and Xet transfers. What it does not do happens here: its own cache writer takes whatever arrived
//! for the whole file, so files are streamed into `blobs/*.incomplete`, resumed where they stopped, compared with the
//! announced size and sha256, and only then renamed to their place and linked into the snapshot. A ref is written last:
//! a snapshot that a ref points to is complete. Python files, pickles and other formats are never fetched.

use std::fs::{self, File};
use std::future::Future;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::resolve::{INDEX, SINGLE, is_commit, is_plain_name, repo_folder, shards_of_index};
use super::{HubError, HubOptions};

/// Files that are fetched at the same time.
const PARALLEL: usize = 4;
/// A resumed transfer that brought this much starts counting its tries anew.
const PROGRESS: u64 = 1 << 20;

/// A complete snapshot in the cache.
pub(super) struct Snapshot {
    pub(super) dir: PathBuf,
    pub(super) commit: String,
    pub(super) python_files: Vec<String>,
}

/// Brings the repository's files into the cache. Blocks.
pub(super) fn download(repo: &str, options: &HubOptions) -> Result<Snapshot, HubError> {
    // A thread of its own: the caller may itself run on an async runtime, where blocking on another one panics.
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(PARALLEL).enable_all().build();
            let runtime = runtime.map_err(|source| HubError::Io { path: "(async runtime)".into(), source })?;
            runtime.block_on(async { Download::new(repo, options)?.run().await })
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A download under way.
struct Download {
    repo: String,
    options: HubOptions,
    remote: HFRepository<RepoTypeModel>,
    folder: PathBuf,
    bar: ProgressBar,
}

/// What the hub announces about a file.
#[derive(Debug, Clone)]
struct Announced {
    path: String,
    size: u64,
    /// Name of the blob: the server's ETag.
    etag: String,
    /// Known for large files only.
    sha256: Option<String>,
}

impl Download {
    fn new(repo: &str, options: &HubOptions) -> Result<Arc<Self>, HubError> {
        let mut builder = HFClient::builder()
            .endpoint(&options.endpoint)
            .cache_dir(&options.cache_dir)
            .user_agent(concat!("host/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(options.retries as usize)
            .retry_base_delay(options.retry_delay / 4);
        if let Some(token) = &options.token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|e| HubError::Transfer {
            endpoint: options.endpoint.clone(),
            repo: repo.into(),
            what: "setting up the download".into(),
            message: e.to_string(),
        })?;
        let (owner, name) = hf_hub::split_id(repo);
        Ok(Arc::new(Self {
            repo: repo.into(),
            options: options.clone(),
            remote: client.model(owner, name),
            folder: repo_folder(&options.cache_dir, repo),
            bar: ProgressBar::hidden(),
        }))
    }

    async fn run(self: Arc<Self>) -> Result<Snapshot, HubError> {
        let (commit, files) = self.list().await?;
        let dir = self.folder.join("snapshots").join(&commit);
        let small: Vec<String> = files.iter().filter(|f| is_small_file(f)).cloned().collect();
        if !small.iter().any(|f| f == "config.json") {
            let detail = ": it has no config.json".into();
            return Err(self.not_found(detail));
        }
        self.clone().fetch_all(&commit, &dir, small).await?;
        let weights = self.weight_files(&files, &dir)?;
        self.clone().fetch_all(&commit, &dir, weights).await?;
        if !is_commit(self.options.revision()) {
            self.write_ref(&commit)?;
        }
        let python_files = files.into_iter().filter(|f| f.ends_with(".py")).collect();
        Ok(Snapshot { dir, commit, python_files })
    }

    /// The commit that the revision stands for, and the names of its files.
    async fn list(&self) -> Result<(String, Vec<String>), HubError> {
        let what = "asking for the list of files";
        let request = self.remote.info().revision(self.options.revision().to_owned()).send();
        let info = self.timed(what, request).await?.map_err(|e| self.failed(what, e))?;
        let commit = info.sha.filter(|sha| is_commit(sha)).ok_or_else(|| self.bad_answer("it names no commit".into()))?;
        let mut files: Vec<String> = info.siblings.unwrap_or_default().into_iter().map(|s| s.rfilename).collect();
        files.sort();
        Ok((commit, files))
    }

    /// The safetensors files of the checkpoint: the single one, else those that the index (fetched before) names.
    fn weight_files(&self, files: &[String], dir: &Path) -> Result<Vec<String>, HubError> {
        let has = |name: &str| files.iter().any(|f| f == name);
        if has(SINGLE) {
            return Ok(vec![SINGLE.into()]);
        }
        if !has(INDEX) {
            let found: Vec<&str> = files
                .iter()
                .map(String::as_str)
                .filter(|f| [".bin", ".gguf", ".pt", ".pth", ".safetensors", ".msgpack", ".h5"].iter().any(|e| f.ends_with(e)))
                .take(5)
                .collect();
            let found = if found.is_empty() { "no weights at all".into() } else { format!("found {}", found.join(", ")) };
            return Err(HubError::NoWeights { repo: self.repo.clone(), found });
        }
        let shards = shards_of_index(&dir.join(INDEX))?;
        if let Some(missing) = shards.iter().find(|shard| !has(shard)) {
            return Err(self.not_found(format!(": its {INDEX} names {missing}, which it does not have")));
        }
        Ok(shards)
    }

    /// Fetches those of the files that the snapshot lacks.
    async fn fetch_all(self: Arc<Self>, commit: &str, dir: &Path, mut files: Vec<String>) -> Result<(), HubError> {
        files.retain(|file| !dir.join(file).is_file());
        if files.is_empty() {
            return Ok(());
        }
        let announced = self.announced(commit, files).await?;
        let total: u64 = announced.iter().map(|file| file.size).sum();
        let bar = if self.options.progress { progress_bar(total) } else { ProgressBar::hidden() };
        tracing::info!(repo = self.repo, files = announced.len(), bytes = total, "downloading");
        let this = Arc::new(Self { bar, ..self.parts() });
        let tasks = announced.into_iter().map(|file| {
            let (this, commit, dir) = (this.clone(), commit.to_owned(), dir.to_owned());
            async move { this.fetch(&commit, &dir, &file).await }
        });
        let mut results = stream::iter(tasks).buffer_unordered(PARALLEL);
        while let Some(result) = results.next().await {
            result?;
        }
        this.bar.finish_and_clear();
        Ok(())
    }

    fn parts(&self) -> Self {
        Self {
            repo: self.repo.clone(),
            options: self.options.clone(),
            remote: self.remote.clone(),
            folder: self.folder.clone(),
            bar: ProgressBar::hidden(),
        }
    }

    /// Sizes and checksums of the files.
    async fn announced(&self, commit: &str, files: Vec<String>) -> Result<Vec<Announced>, HubError> {
        let what = "asking for sizes and checksums";
        let request = self.remote.get_paths_info().paths(files.clone()).revision(commit.to_owned()).send();
        let entries = self.timed(what, request).await?.map_err(|e| self.failed(what, e))?;
        let mut announced = Vec::with_capacity(files.len());
        for entry in entries {
            let RepoTreeEntry::File { oid, size, path, lfs, .. } = entry else { continue };
            if !files.contains(&path) {
                continue;
            }
            let (size, sha256) = match lfs {
                Some(lfs) => (lfs.size.unwrap_or(size), Some(lfs.sha256.unwrap_or_else(|| oid.clone()))),
                None => (size, None),
            };
            // Only what is a sha256 can be compared with one.
            let sha256 = sha256.map(|s| s.to_ascii_lowercase()).filter(|s| is_hex(s, 64));
            let etag = sha256.clone().unwrap_or(oid);
            if !is_plain_name(&etag) || !etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                return Err(self.bad_answer(format!("{path} has the object id \"{etag}\"")));
            }
            announced.push(Announced { path, size, etag, sha256 });
        }
        match files.iter().find(|file| !announced.iter().any(|a| a.path == **file)) {
            Some(missing) => Err(self.bad_answer(format!("it lists {missing} but does not describe it"))),
            None => Ok(announced),
        }
    }

    /// Brings one file into the snapshot.
    async fn fetch(&self, commit: &str, dir: &Path, file: &Announced) -> Result<(), HubError> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(HubError::io(&blobs))?;
        let blob = blobs.join(&file.etag);
        let _lock = self.lock(&file.etag).await?;
        // Another process may have finished it while this one waited; a blob of another size is a leftover.
        let there = blob.metadata().is_ok_and(|m| m.len() == file.size);
        if there {
            self.bar.inc(file.size);
        } else {
            let partial = blobs.join(format!("{}.incomplete", file.etag));
            self.transfer(commit, file, &partial).await?;
            fs::rename(&partial, &blob).map_err(HubError::io(&blob))?;
        }
        link(&blob, &dir.join(&file.path))
    }

    /// Transfers the file to `partial`, trying again and resuming, until it is whole and verified.
    async fn transfer(&self, commit: &str, file: &Announced, partial: &Path) -> Result<(), HubError> {
        let mut tries = 0;
        loop {
            let before = partial.metadata().map_or(0, |m| m.len());
            // Without a checksum nobody can tell whether the old part belongs to the new one.
            let from = if file.sha256.is_some() && before <= file.size { before } else { 0 };
            let error = match self.attempt(commit, file, partial, from).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let arrived = partial.metadata().map_or(0, |m| m.len());
            if file.sha256.is_some() && arrived >= from + PROGRESS {
                tries = 0;
            }
            let again = error.is_outage() || (matches!(error, HubError::Damaged { .. }) && from > 0);
            if !again || tries >= self.options.retries {
                if file.sha256.is_none() {
                    let _ = fs::remove_file(partial);
                }
                return Err(error);
            }
            tracing::warn!(%error, file = file.path, "trying again");
            tokio::time::sleep(self.options.retry_delay * 2u32.saturating_pow(tries.min(6))).await;
            tries += 1;
        }
    }

    /// One try: appends what is missing from `from` on, then checks size and sha256.
    async fn attempt(&self, commit: &str, file: &Announced, partial: &Path, from: u64) -> Result<(), HubError> {
        let what = format!("downloading {}", file.path);
        let mut out = Partial::open(partial, from)?;
        self.bar.set_message(file.path.clone());
        let counted = self.bar.position();
        if from < file.size {
            let range = (from > 0).then_some(from..file.size);
            let request =
                self.remote.download_file_stream().filename(file.path.clone()).revision(commit.to_owned()).maybe_range(range);
            let answer = self.timed(&what, request.send()).await?;
            let (length, mut body) = answer.map_err(|e| self.failed(&what, e))?;
            if from > 0 && length == Some(file.size) {
                // The server ignores ranges and sends all of it.
                out.restart()?;
            }
            loop {
                let next = self.timed(&what, body.next()).await;
                let chunk = match next {
                    Ok(Some(Ok(chunk))) => chunk,
                    Ok(None) => break,
                    Ok(Some(Err(e))) => return Err(self.undo(counted, self.failed(&what, e))),
                    Err(e) => return Err(self.undo(counted, e)),
                };
                out.append(&chunk)?;
                self.bar.inc(chunk.len() as u64);
                if out.written > file.size {
                    let message = format!("more than the announced {} bytes arrived", file.size);
                    return Err(self.undo(counted, self.damaged(file, partial, message)));
                }
            }
        }
        let (written, sha256) = out.finish()?;
        if written < file.size {
            let message = format!("the transfer was cut off after {written} of {} bytes", file.size);
            return Err(self.undo(counted, self.transfer_error(&what, message)));
        }
        match &file.sha256 {
            Some(expected) if *expected != sha256 => {
                let message = format!("its sha256 is {sha256}, the hub announced {expected}");
                Err(self.undo(counted, self.damaged(file, partial, message)))
            }
            _ => Ok(()),
        }
    }

    fn undo(&self, counted: u64, error: HubError) -> HubError {
        self.bar.set_position(counted);
        error
    }

    /// Two processes may fetch one file: the second waits for the first. Hugging Face's tools use the same lock.
    async fn lock(&self, etag: &str) -> Result<File, HubError> {
        let name = self.folder.file_name().unwrap_or_default();
        let dir = self.options.cache_dir.join(".locks").join(name);
        fs::create_dir_all(&dir).map_err(HubError::io(&dir))?;
        let path = dir.join(format!("{etag}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(HubError::io(&path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(fs::TryLockError::WouldBlock) => {
                    if !told {
                        tracing::info!(repo = self.repo, "another process is downloading the same file: waiting for it");
                        told = true;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(fs::TryLockError::Error(source)) => return Err(HubError::Io { path, source }),
            }
        }
    }

    fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        let path = self.folder.join("refs").join(self.options.revision());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(HubError::io(parent))?;
        }
        if fs::read_to_string(&path).is_ok_and(|old| old.trim() == commit) {
            return Ok(());
        }
        fs::write(&path, commit).map_err(HubError::io(&path))
    }

    /// Gives up on a request that stays silent.
    async fn timed<T>(&self, what: &str, request: impl Future<Output = T>) -> Result<T, HubError> {
        tokio::time::timeout(self.options.timeout, request).await.map_err(|_| HubError::Timeout {
            endpoint: self.options.endpoint.clone(),
            repo: self.repo.clone(),
            what: what.into(),
            seconds: self.options.timeout.as_secs(),
        })
    }

    /// hf-hub's error in our words.
    fn failed(&self, what: &str, error: HFError) -> HubError {
        let (endpoint, repo) = (self.options.endpoint.clone(), self.repo.clone());
        match error {
            HFError::AuthRequired { context } => {
                HubError::Unauthorized { endpoint, repo, detail: said(context.server_message.as_deref()) }
            }
            HFError::Forbidden { context } => {
                HubError::Forbidden { endpoint, repo, detail: said(context.server_message.as_deref()) }
            }
            HFError::RepoNotFound { .. } => self.not_found(String::new()),
            HFError::RevisionNotFound { context, .. } => {
                self.not_found(said(context.and_then(|c| c.server_message).as_deref()))
            }
            HFError::EntryNotFound { path, .. } => self.not_found(format!(": it has no {path}")),
            HFError::MalformedResponse { what, .. } => self.bad_answer(what),
            HFError::Json(error) => self.bad_answer(error.to_string()),
            HFError::RateLimited { .. } => {
                self.transfer_error(what, "the hub answered 429 (too many requests); wait, or set HF_TOKEN".into())
            }
            other => self.transfer_error(what, with_causes(&other)),
        }
    }

    fn transfer_error(&self, what: &str, message: String) -> HubError {
        HubError::Transfer {
            endpoint: self.options.endpoint.clone(),
            repo: self.repo.clone(),
            what: what.into(),
            message,
        }
    }

    fn not_found(&self, detail: String) -> HubError {
        HubError::NotFound {
            endpoint: self.options.endpoint.clone(),
            repo: self.repo.clone(),
            revision: self.options.revision().into(),
            detail,
        }
    }

    fn bad_answer(&self, message: String) -> HubError {
        HubError::BadAnswer { endpoint: self.options.endpoint.clone(), repo: self.repo.clone(), message }
    }

    /// Removes what arrived, so that no later run resumes it.
    fn damaged(&self, file: &Announced, partial: &Path, message: String) -> HubError {
        let _ = fs::remove_file(partial);
        HubError::Damaged { repo: self.repo.clone(), file: file.path.clone(), message }
    }
}

/// A file that is still arriving, with the hash of what has arrived.
struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    written: u64,
}

impl Partial {
    /// Keeps the first `keep` bytes of what is there.
    fn open(path: &Path, keep: u64) -> Result<Self, HubError> {
        let options = || File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = options().map_err(HubError::io(path))?;
        let mut partial = Self { path: path.into(), file, hash: Sha256::new(), written: 0 };
        partial.rewind_to(keep)?;
        Ok(partial)
    }

    fn restart(&mut self) -> Result<(), HubError> {
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

    fn append(&mut self, chunk: &[u8]) -> Result<(), HubError> {
        self.file.write_all(chunk).map_err(HubError::io(&self.path))?;
        self.hash.update(chunk);
        self.written += chunk.len() as u64;
        Ok(())
    }

    /// Brings it to the disk; returns its length and sha256.
    fn finish(self) -> Result<(u64, String), HubError> {
        self.file.sync_all().map_err(HubError::io(&self.path))?;
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((self.written, sha256))
    }
}

/// The configuration, tokenizer and template files, and the index of sharded weights.
fn is_small_file(path: &str) -> bool {
    if let Some(name) = path.strip_prefix("additional_chat_templates/") {
        return is_plain_name(name) && name.ends_with(".jinja");
    }
    const NAMES: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        INDEX,
    ];
    let of_tokenizer = (path.starts_with("tokenizer") || path.starts_with("chat_template"))
        && [".json", ".jinja", ".model"].iter().any(|end| path.ends_with(end));
    is_plain_name(path) && (NAMES.contains(&path) || of_tokenizer)
}

/// Makes `pointer` a link to the blob (a relative one, so that the cache can be moved), or a copy where links are not to be had.
fn link(blob: &Path, pointer: &Path) -> Result<(), HubError> {
    let Some(parent) = pointer.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(HubError::io(parent))?;
    let _ = fs::remove_file(pointer);
    #[cfg(unix)]
    {
        // From snapshots/<commit>[/<folder>] up to the repository's folder.
        let root = blob.parent().and_then(Path::parent);
        let depth = root.and_then(|root| parent.strip_prefix(root).ok()).map(|below| below.components().count());
        if let (Some(depth), Some(name)) = (depth, blob.file_name()) {
            let target: PathBuf = std::iter::repeat_n("..", depth).collect();
            let target = target.join("blobs").join(name);
            return std::os::unix::fs::symlink(target, pointer).map_err(HubError::io(pointer));
        }
    }
    fs::copy(blob, pointer).map(|_| ()).map_err(HubError::io(pointer))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn said(message: Option<&str>) -> String {
    message.filter(|m| !m.is_empty()).map(|m| format!(" (the hub says: {m})")).unwrap_or_default()
}

/// The error and what caused it: reqwest's own message does not say why.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}

fn progress_bar(total: u64) -> ProgressBar {
    let style = "{bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta} {msg}";
    ProgressBar::new(total).with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
