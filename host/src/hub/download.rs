//! Fetches a repository's files into the hub cache.
//!
//! Files are streamed into `blobs/*.incomplete`, resumed where they stopped, compared with the announced size and
//! sha256, and only then renamed to their place and linked into the snapshot. A ref is written last: a snapshot that a
//! ref points to is complete. (Crate hf-hub does neither the comparison nor the resuming; see docs/decisions.)
//! Python files are fetched only if the options say so, pickles and other formats never.

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use indicatif::{ProgressBar, ProgressStyle};

use super::listing::Announced;
use super::partial::Partial;
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
pub(super) struct Download {
    pub(super) repo: String,
    pub(super) options: HubOptions,
    pub(super) http: reqwest::Client,
    folder: PathBuf,
    bar: ProgressBar,
}

impl Download {
    fn new(repo: &str, options: &HubOptions) -> Result<Arc<Self>, HubError> {
        let failed = |message: String| HubError::Transfer {
            endpoint: options.endpoint.clone(),
            repo: repo.into(),
            what: "setting up the download".into(),
            message,
        };
        // Ring is the one provider here; another one may be installed by a program that uses this as a library.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("host/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.timeout)
            .build()
            .map_err(|e| failed(with_causes(&e)))?;
        Ok(Arc::new(Self {
            repo: repo.into(),
            options: options.clone(),
            http,
            folder: repo_folder(&options.cache_dir, repo),
            bar: progress_bar(),
        }))
    }

    async fn run(self: Arc<Self>) -> Result<Snapshot, HubError> {
        let (commit, files) = self.list().await?;
        let dir = self.folder.join("snapshots").join(&commit);
        let small: Vec<Announced> = files.iter().filter(|f| self.is_small_file(&f.path)).cloned().collect();
        if !small.iter().any(|f| f.path == "config.json") {
            return Err(self.not_found(": it has no config.json".into()));
        }
        self.fetch_all(&commit, &dir, small).await?;
        let weights = self.weight_files(&files, &dir)?;
        self.fetch_all(&commit, &dir, weights).await?;
        if !is_commit(self.options.revision()) {
            self.write_ref(&commit)?;
        }
        let python_files = files.into_iter().map(|f| f.path).filter(|f| f.ends_with(".py")).collect();
        Ok(Snapshot { dir, commit, python_files })
    }

    fn is_small_file(&self, path: &str) -> bool {
        is_small_file(path) || (self.options.python_files && is_python_file(path))
    }

    /// The safetensors files of the checkpoint: the single one, else those that the index (fetched before) names.
    fn weight_files(&self, files: &[Announced], dir: &Path) -> Result<Vec<Announced>, HubError> {
        let named = |name: &str| files.iter().find(|f| f.path == name);
        if let Some(single) = named(SINGLE) {
            return Ok(vec![single.clone()]);
        }
        if named(INDEX).is_none() {
            let is_weights = |f: &&str| {
                [".bin", ".gguf", ".pt", ".pth", ".safetensors", ".msgpack", ".h5"].iter().any(|end| f.ends_with(end))
            };
            let found: Vec<&str> = files.iter().map(|f| f.path.as_str()).filter(is_weights).take(5).collect();
            let found = if found.is_empty() {
                "it has no weights at all".into()
            } else {
                format!("found {}", found.join(", "))
            };
            return Err(HubError::NoWeights { repo: self.repo.clone(), found });
        }
        let missing = |shard: &str| self.not_found(format!(": its {INDEX} names {shard}, which it does not have"));
        let shards = shards_of_index(&dir.join(INDEX))?;
        shards.iter().map(|shard| named(shard).cloned().ok_or_else(|| missing(shard))).collect()
    }

    /// Fetches those of the files that the snapshot lacks.
    async fn fetch_all(self: &Arc<Self>, commit: &str, dir: &Path, mut files: Vec<Announced>) -> Result<(), HubError> {
        files.retain(|file| !dir.join(&file.path).is_file());
        if files.is_empty() {
            return Ok(());
        }
        let total: u64 = files.iter().map(|file| file.size).sum();
        tracing::info!(repo = self.repo, files = files.len(), bytes = total, "downloading");
        if self.options.progress {
            self.bar.reset();
            self.bar.set_length(total);
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        let tasks = files.into_iter().map(|file| {
            let (this, commit, dir) = (self.clone(), commit.to_owned(), dir.to_owned());
            // A task of its own, so that hashing one file does not hold up the others.
            async move {
                let task = tokio::spawn(async move { this.fetch(&commit, &dir, &file).await });
                task.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()))
            }
        });
        let mut results = stream::iter(tasks).buffer_unordered(PARALLEL);
        while let Some(result) = results.next().await {
            result?;
        }
        self.bar.finish_and_clear();
        Ok(())
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
            self.wait(tries).await;
            tries += 1;
        }
    }

    /// One try: appends what is missing from `from` on, then checks size and sha256.
    async fn attempt(&self, commit: &str, file: &Announced, partial: &Path, from: u64) -> Result<(), HubError> {
        let mut out = Partial::open(partial, from)?;
        self.bar.set_message(file.path.clone());
        self.bar.inc(from);
        let received = if from < file.size { self.receive(commit, file, &mut out).await } else { Ok(()) };
        let shown = out.written;
        let result = received.and_then(|()| self.verify(file, out));
        if result.is_err() {
            self.bar.dec(shown);
        }
        if matches!(result, Err(HubError::Damaged { .. })) {
            // No later run may resume it.
            let _ = fs::remove_file(partial);
        }
        result
    }

    /// Streams the rest of the file to the end of `out`.
    async fn receive(&self, commit: &str, file: &Announced, out: &mut Partial) -> Result<(), HubError> {
        let what = format!("downloading {}", file.path);
        let from = out.written;
        let path = file.path.split('/').map(encoded).collect::<Vec<_>>().join("/");
        let url = format!("{}/{}/resolve/{commit}/{path}", self.options.endpoint, self.repo);
        let answer = self.get(&what, url, (from > 0).then_some(from)).await?;
        if from > 0 && answer.status() != reqwest::StatusCode::PARTIAL_CONTENT {
            // The server ignores ranges and sends all of it.
            self.bar.dec(from);
            out.restart()?;
        }
        let mut body = answer.bytes_stream();
        while let Some(chunk) = self.timed(&what, body.next()).await? {
            let chunk = chunk.map_err(|e| self.transfer_error(&what, with_causes(&e)))?;
            out.append(&chunk)?;
            self.bar.inc(chunk.len() as u64);
            if out.written > file.size {
                return Err(self.damaged(file, format!("more than the announced {} bytes arrived", file.size)));
            }
        }
        Ok(())
    }

    fn verify(&self, file: &Announced, out: Partial) -> Result<(), HubError> {
        let (written, sha256) = out.finish()?;
        if written < file.size {
            let message = format!("the transfer was cut off after {written} of {} bytes", file.size);
            return Err(self.transfer_error(&format!("downloading {}", file.path), message));
        }
        match &file.sha256 {
            Some(expected) if *expected != sha256 => {
                Err(self.damaged(file, format!("its sha256 is {sha256}, the hub announced {expected}")))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn wait(&self, tries: u32) {
        tokio::time::sleep(self.options.retry_delay * 2u32.saturating_pow(tries.min(6))).await;
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
                        tracing::info!(
                            repo = self.repo,
                            "another process is downloading the same file: waiting for it"
                        );
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
    pub(super) async fn timed<T>(&self, what: &str, request: impl Future<Output = T>) -> Result<T, HubError> {
        tokio::time::timeout(self.options.timeout, request).await.map_err(|_| HubError::Timeout {
            endpoint: self.options.endpoint.clone(),
            repo: self.repo.clone(),
            what: what.into(),
            seconds: self.options.timeout.as_secs(),
        })
    }

    /// A request with the user's token (which is not sent on to other servers that the hub redirects to), from byte
    /// `from` on. An answer that is not a success becomes the error that it means.
    pub(super) async fn get(&self, what: &str, url: String, from: Option<u64>) -> Result<reqwest::Response, HubError> {
        let mut request = self.http.get(url);
        if let Some(token) = &self.options.token {
            request = request.bearer_auth(token);
        }
        if let Some(from) = from {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let answer = self.timed(what, request.send()).await?.map_err(|e| self.transfer_error(what, with_causes(&e)))?;
        let header = answer.headers().get("x-error-message").and_then(|v| v.to_str().ok());
        let detail = said(header);
        let (endpoint, repo) = (self.options.endpoint.clone(), self.repo.clone());
        match answer.status().as_u16() {
            200..300 => Ok(answer),
            401 => Err(HubError::Unauthorized { endpoint, repo, detail }),
            403 => Err(HubError::Forbidden { endpoint, repo, detail }),
            404 => Err(self.not_found(detail)),
            429 => {
                Err(self.transfer_error(what, "the hub answered 429 (too many requests); wait, or set HF_TOKEN".into()))
            }
            status @ 400..500 if status != 408 => Err(self.bad_answer(format!("HTTP {status}{detail}"))),
            status => Err(self.transfer_error(what, format!("HTTP {status}{detail}"))),
        }
    }

    pub(super) fn transfer_error(&self, what: &str, message: String) -> HubError {
        HubError::Transfer {
            endpoint: self.options.endpoint.clone(),
            repo: self.repo.clone(),
            what: what.into(),
            message,
        }
    }

    pub(super) fn not_found(&self, detail: String) -> HubError {
        HubError::NotFound {
            endpoint: self.options.endpoint.clone(),
            repo: self.repo.clone(),
            revision: self.options.revision().into(),
            detail,
        }
    }

    pub(super) fn bad_answer(&self, message: String) -> HubError {
        HubError::BadAnswer { endpoint: self.options.endpoint.clone(), repo: self.repo.clone(), message }
    }

    fn damaged(&self, file: &Announced, message: String) -> HubError {
        HubError::Damaged { repo: self.repo.clone(), file: file.path.clone(), message }
    }
}

/// The configuration, tokenizer and template files, and the index of sharded weights.
fn is_small_file(path: &str) -> bool {
    if let Some(name) = path.strip_prefix("additional_chat_templates/") {
        return is_plain_name(name) && name.ends_with(".jinja");
    }
    // How sentence-transformers says what an embedding model pools.
    if let Some(folder) = path.strip_suffix("_Pooling/config.json") {
        return folder.chars().all(|c| c.is_ascii_digit());
    }
    const NAMES: [&str; 9] = [
        "config.json",
        "generation_config.json",
        "modules.json",
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

/// A Python file, in subfolders too, none of them hidden.
fn is_python_file(path: &str) -> bool {
    path.ends_with(".py") && path.split('/').all(|part| is_plain_name(part) && !part.starts_with('.'))
}

/// Makes `pointer` a link to the blob (a relative one, so that the cache can be moved), or a copy where links are not to be had.
fn link(blob: &Path, pointer: &Path) -> Result<(), HubError> {
    let Some(parent) = pointer.parent() else {
        return Ok(());
    };
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

/// One segment of a path in a URL.
pub(super) fn encoded(segment: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    segment.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

pub(super) fn said(message: Option<&str>) -> String {
    message.filter(|m| !m.is_empty()).map(|m| format!(" (the hub says: {m})")).unwrap_or_default()
}

/// The error and what caused it: reqwest's own message does not say why.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
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

/// Hidden until there is something to show.
pub(crate) fn progress_bar() -> ProgressBar {
    let style = "{bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta} {msg}";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::hidden().with_style(style)
}
