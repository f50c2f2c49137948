//! Fetches the pinned wheel from a package index, checks it and unpacks it into the cache.
//!
//! The index is not trusted: whatever it sends counts only if its hash is the pinned one. Proxies are those of the
//! environment, as for models.

use std::fs::DirBuilder;
use std::future::Future;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use futures_util::StreamExt;
use reqwest::{Client, Response, Url};

use super::{PackageError, PackageOptions, index, wheel};
use crate::hub::{progress_bar, with_causes};

/// Largest answer of an index: a list of all releases.
const MAX_PAGE: u64 = 64 << 20;

/// Fetches, checks and unpacks. Blocks.
pub(super) fn fetch(cache: &Path, options: &PackageOptions) -> Result<(), PackageError> {
    DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(PackageError::cache(cache))?;
    let file = tempfile::Builder::new().prefix("new-").tempfile_in(cache).map_err(PackageError::cache(cache))?;
    tracing::info!(
        version = options.pin.version,
        index = shown(&options.index),
        "fetching the Python package transformers"
    );
    // A thread of its own: the caller may itself run on an async runtime, where blocking on another one panics.
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(PackageError::cache(cache))?;
            runtime.block_on(Fetch::new(options)?.run(file.as_file()))
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    wheel::install(file.path(), cache, &options.pin).map(|_| ()).map_err(|e| match e {
        // The temporary file's name tells nobody anything.
        PackageError::WrongHash { got, expected, file, .. } => {
            PackageError::WrongHash { what: format!("what {} sent", shown(&options.index)), got, expected, file }
        }
        e => e,
    })
}

/// An address without the password that may be in it.
fn shown(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_password(None);
            let _ = url.set_username("");
            url.to_string()
        }
        Err(_) => url.to_owned(),
    }
}

struct Fetch<'a> {
    options: &'a PackageOptions,
    http: Client,
}

/// Whether another try may help.
struct Failure {
    message: String,
    again: bool,
}

impl<'a> Fetch<'a> {
    fn new(options: &'a PackageOptions) -> Result<Fetch<'a>, PackageError> {
        // Ring is the one provider here; another one may be installed by a program that uses this as a library.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .user_agent(concat!("host/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.timeout)
            .build()
            .map_err(|e| error(options, with_causes(&e)))?;
        Ok(Fetch { options, http })
    }

    async fn run(&self, mut file: &std::fs::File) -> Result<(), PackageError> {
        let mut tries = 0;
        loop {
            let failure = match self.attempt(&mut file).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if !failure.again || tries >= self.options.retries {
                return Err(error(self.options, failure.message));
            }
            tracing::warn!(error = failure.message, "trying again");
            tokio::time::sleep(self.options.retry_delay * 2u32.saturating_pow(tries.min(6))).await;
            tries += 1;
        }
    }

    async fn attempt(&self, file: &mut &std::fs::File) -> Result<(), Failure> {
        let base = format!("{}/transformers/", self.options.index.trim_end_matches('/'));
        let base = Url::parse(&base).map_err(|e| final_failure(format!("`{base}` is not an address: {e}")))?;
        let mut page = Vec::new();
        let answer = self.get(base, true).await?;
        // After redirects: links in the answer are relative to this.
        let base = answer.url().clone();
        self.receive(answer, MAX_PAGE, &mut page, &indicatif::ProgressBar::hidden()).await?;
        let url = index::find(&String::from_utf8_lossy(&page), &base, &self.options.pin.file).map_err(final_failure)?;
        let restart = file.set_len(0).and_then(|()| std::io::Seek::rewind(file));
        restart.map_err(|e| final_failure(e.to_string()))?;
        let answer = self.get(url, false).await?;
        let bar = progress_bar();
        if self.options.progress {
            bar.set_length(answer.content_length().unwrap_or(0));
            bar.set_message(self.options.pin.file.clone());
            bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
        let result = self.receive(answer, wheel::MAX_WHEEL, file, &bar).await;
        bar.finish_and_clear();
        result
    }

    async fn get(&self, url: Url, is_index: bool) -> Result<Response, Failure> {
        let request = self.http.get(url.clone());
        let request = if is_index { request.header("Accept", index::ACCEPT) } else { request };
        let answer = self.timed(request.send()).await?.map_err(|e| failure(with_causes(&e.without_url())))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let message = format!("{} answered HTTP {}", shown(url.as_str()), status.as_u16());
        let again = status.is_server_error() || [408, 429].contains(&status.as_u16());
        Err(Failure { message, again })
    }

    async fn receive(
        &self,
        answer: Response,
        limit: u64,
        out: &mut impl Write,
        bar: &indicatif::ProgressBar,
    ) -> Result<(), Failure> {
        let mut body = answer.bytes_stream();
        let mut received = 0;
        while let Some(chunk) = self.timed(body.next()).await? {
            let chunk = chunk.map_err(|e| failure(with_causes(&e.without_url())))?;
            received += chunk.len() as u64;
            if received > limit {
                return Err(final_failure(format!("more than {} MiB arrived", limit >> 20)));
            }
            out.write_all(&chunk).map_err(|e| final_failure(format!("it cannot be stored: {e}")))?;
            bar.inc(chunk.len() as u64);
        }
        Ok(())
    }

    /// Gives up on a request that stays silent.
    async fn timed<T>(&self, request: impl Future<Output = T>) -> Result<T, Failure> {
        let silent = |_| failure(format!("nothing arrived for {} s", self.options.timeout.as_secs_f64()));
        tokio::time::timeout(self.options.timeout, request).await.map_err(silent)
    }
}

fn failure(message: String) -> Failure {
    Failure { message, again: true }
}

fn final_failure(message: String) -> Failure {
    Failure { message, again: false }
}

fn error(options: &PackageOptions, message: String) -> PackageError {
    let message = message.trim_end().replace('\n', " ");
    PackageError::Fetch { file: options.pin.file.clone(), index: shown(&options.index), message }
}
