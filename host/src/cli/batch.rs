//! `host run-batch`: answers a file of requests in the form of OpenAI's batch API. The requests go through the same
//! server as all others: one that runs already, or one that is started for them on a private address.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::http::Method;
use futures_util::StreamExt;
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::args::ModelArgs;
use crate::client::Client;
use crate::llm::Llm;
use crate::server::{self, ServerConfig};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    batch: BatchArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Batch")]
struct BatchArgs {
    /// File with one request a line: custom_id, method, url, body
    #[arg(short, long, value_name = "FILE")]
    input_file: PathBuf,
    /// File for one answer a line, in the order of the requests
    #[arg(short, long, value_name = "FILE")]
    output_file: PathBuf,
    /// Send them to this server instead of loading a model
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    url: Option<String>,
    /// Key of that server
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// The most requests at once
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_concurrency: usize,
}

/// A line of the input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    custom_id: String,
    method: String,
    url: String,
    body: Value,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    super::start_log(&args.model.log, "warn")?;
    ensure!(args.batch.max_concurrency >= 1, "--max-concurrency is at least 1");
    let requests = read(&args.batch.input_file)?;
    // Before the work: a path that cannot be written should not cost hours.
    let shown = args.batch.output_file.display();
    let output = std::fs::File::create(&args.batch.output_file).with_context(|| format!("cannot write {shown}"))?;
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(answer(args, requests, output))
}

/// All requests. A line that is none is named, before anything is sent.
fn read(path: &PathBuf) -> anyhow::Result<Vec<Request>> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut requests = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let (number, line) = (number + 1, line.with_context(|| format!("cannot read {shown}"))?);
        if line.trim().is_empty() {
            continue;
        }
        let request: Request = serde_json::from_str(&line).with_context(|| {
            format!("{shown}, line {number}: expected {{\"custom_id\", \"method\", \"url\", \"body\"}}")
        })?;
        ensure!(request.method == "POST", "{shown}, line {number}: method is {}; only POST is known", request.method);
        ensure!(
            request.url.starts_with('/'),
            "{shown}, line {number}: url is {}; expected a path such as /v1/chat/completions",
            request.url
        );
        let streams = request.body["stream"].as_bool() == Some(true);
        ensure!(!streams, "{shown}, line {number}: `stream` has no place in a batch; leave it out");
        requests.push(request);
    }
    ensure!(!requests.is_empty(), "{shown} has no requests");
    Ok(requests)
}

async fn answer(args: Args, requests: Vec<Request>, output: std::fs::File) -> anyhow::Result<()> {
    let own = match &args.batch.url {
        Some(_) => None,
        None => Some(Private::start(&args).await?),
    };
    let client = match (&own, &args.batch.url) {
        (Some(own), _) => own.client.clone(),
        (None, url) => Client::new(url.as_deref().unwrap_or_default(), args.batch.api_key.clone())?,
    };
    let bar = ProgressBar::new(requests.len() as u64);
    let mut answers =
        futures_util::stream::iter(requests).map(|request| one(&client, request)).buffered(args.batch.max_concurrency);
    let (mut out, mut failed, mut total) = (std::io::BufWriter::new(output), 0, 0);
    while let Some((line, ok)) = answers.next().await {
        writeln!(out, "{line}").context("cannot write the answers")?;
        total += 1;
        failed += usize::from(!ok);
        bar.inc(1);
    }
    out.flush().context("cannot write the answers")?;
    bar.finish_and_clear();
    println!("{total} requests, {failed} failed; the answers are in {}", args.batch.output_file.display());
    drop(answers);
    if let Some(own) = own {
        own.stop().await?;
    }
    Ok(())
}

/// The line that answers a request, and whether it succeeded. A server that is full is asked again.
async fn one(client: &Client, request: Request) -> (Value, bool) {
    let mut patience = Duration::from_millis(100);
    let (status, id, body) = loop {
        let reply = match client.send(Method::POST, &request.url, Some(&request.body)).await {
            Ok(reply) => reply,
            Err(error) => break (None, None, json!(error.to_string())),
        };
        let (status, id) = (reply.status, reply.id.clone());
        match reply.bytes().await {
            Ok(_) if status == 429 => {
                tokio::time::sleep(patience).await;
                patience = (patience * 2).min(Duration::from_secs(5));
            }
            Ok(bytes) => {
                let text = || json!(String::from_utf8_lossy(&bytes));
                break (Some(status), id, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()));
            }
            Err(error) => break (None, id, json!(error.to_string())),
        }
    };
    let ok = status.is_some_and(|status| status.is_success());
    let id = id.unwrap_or_default();
    let response = status.map(|status| json!({"status_code": status.as_u16(), "request_id": id, "body": body}));
    let error = (!ok).then(|| match status {
        Some(_) => body["error"].clone(),
        None => json!({"code": "connection", "message": body}),
    });
    (json!({"id": format!("batch-{id}"), "custom_id": request.custom_id, "response": response, "error": error}), ok)
}

/// A server for this process alone.
struct Private {
    client: Client,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), server::ServerError>>,
    llm: Llm,
}

impl Private {
    async fn start(args: &Args) -> anyhow::Result<Private> {
        let mut options = args.model.options()?;
        options.max_waiting = options.max_waiting.max(args.batch.max_concurrency.saturating_mul(16));
        let llm =
            tokio::task::spawn_blocking(move || Llm::load(&options)).await.context("loading the model panicked")??;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen on loopback")?;
        // Other users of the machine can reach loopback too.
        let key = server::random_key();
        let client = Client::new(&format!("http://{}", listener.local_addr()?), Some(key.clone()))?;
        let config =
            ServerConfig { api_keys: vec![key], access_log: false, max_body_size: 1 << 30, ..ServerConfig::default() };
        let (stop, stopped) = oneshot::channel::<()>();
        let served = llm.clone();
        let task = tokio::spawn(async move {
            let until = async {
                let _ = stopped.await;
            };
            server::serve(listener, served, config, until).await
        });
        Ok(Private { client, stop, task, llm })
    }

    async fn stop(self) -> anyhow::Result<()> {
        let Private { client, stop, task, llm } = self;
        drop(client);
        let _ = stop.send(());
        task.await.context("the server panicked")??;
        llm.engine().shutdown();
        let engine = llm.engine().clone();
        let _ = tokio::task::spawn_blocking(move || engine.wait_stopped(Duration::from_secs(10))).await;
        Ok(())
    }
}
