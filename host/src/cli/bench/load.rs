//! Load on a server: sends prompts at their times, at most so many at once, and times what comes back. It knows no
//! flags and prints nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::Method;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::{Client, ClientError, Events};

/// One request to be sent.
pub(super) struct Job {
    /// After the beginning.
    pub(super) at: Duration,
    pub(super) body: Bytes,
    /// Tokens of the prompt as far as the sender knows; the server's `usage` wins.
    pub(super) prompt_tokens: usize,
}

/// What became of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) error: Option<String>,
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
    /// Seconds until the first token.
    pub(super) first: f64,
    /// Seconds between pieces of the answer.
    pub(super) gaps: Vec<f64>,
    /// Seconds in all.
    pub(super) latency: f64,
    /// When pieces came, in seconds after the beginning of the run.
    pub(super) times: Vec<f64>,
    /// When it was sent.
    pub(super) start: f64,
}

/// What of a chunk is looked at.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
}

impl Choice {
    fn says_something(&self) -> bool {
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        some(&self.text)
            || self.delta.as_ref().is_some_and(|delta| {
                some(&delta.content)
                    || some(&delta.reasoning_content)
                    || some(&delta.reasoning)
                    || delta.tool_calls.is_some()
            })
    }
}

/// Sends all jobs and waits for all answers, which come in the order of the jobs.
pub(super) async fn run(
    client: &Client,
    path: &'static str,
    jobs: Vec<Job>,
    max_concurrency: Option<usize>,
    done: Arc<AtomicUsize>,
) -> (Vec<Outcome>, f64) {
    let permits = max_concurrency.map(|n| Arc::new(Semaphore::new(n)));
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    let total = jobs.len();
    for (index, job) in jobs.into_iter().enumerate() {
        tokio::time::sleep_until((begin + job.at).into()).await;
        let (client, permits, done) = (client.clone(), permits.clone(), done.clone());
        tasks.spawn(async move {
            let _permit = match permits {
                Some(permits) => permits.acquire_owned().await.ok(),
                None => None,
            };
            let outcome = one(&client, path, job, begin).await;
            done.fetch_add(1, Ordering::Relaxed);
            (index, outcome)
        });
    }
    let mut outcomes: Vec<Outcome> = (0..total).map(|_| Outcome::default()).collect();
    while let Some(joined) = tasks.join_next().await {
        if let Ok((index, outcome)) = joined {
            outcomes[index] = outcome;
        }
    }
    (outcomes, begin.elapsed().as_secs_f64())
}

async fn one(client: &Client, path: &str, job: Job, begin: Instant) -> Outcome {
    let mut outcome = Outcome { prompt_tokens: job.prompt_tokens, ..Outcome::default() };
    outcome.start = begin.elapsed().as_secs_f64();
    if let Err(error) = stream(client, path, job.body, begin, &mut outcome).await {
        outcome.error = Some(error.to_string());
    }
    outcome
}

/// Sends one request and notes when the pieces of its answer come.
async fn stream(
    client: &Client,
    path: &str,
    body: Bytes,
    begin: Instant,
    outcome: &mut Outcome,
) -> Result<(), ClientError> {
    let sent = Instant::now();
    let mut reply = client.send_bytes(Method::POST, path, body).await?.success().await?;
    let mut events = Events::default();
    let (mut last, mut pieces, mut counted, mut ended) = (sent, 0, None, false);
    while let Some(bytes) = reply.chunk().await? {
        events.push(&bytes);
        while let Some(event) = events.next_event() {
            if event == "[DONE]" {
                ended = true;
                continue;
            }
            let chunk: Chunk =
                serde_json::from_str(&event).map_err(|e| ClientError::Answer(format!("{e}: {event}")))?;
            if let Some(error) = chunk.error {
                return Err(ClientError::Answer(error.to_string()));
            }
            if let Some(usage) = chunk.usage {
                outcome.prompt_tokens = usage.prompt_tokens;
                counted = Some(usage.completion_tokens);
            }
            if chunk.choices.iter().any(Choice::says_something) {
                let now = Instant::now();
                match pieces {
                    0 => outcome.first = (now - sent).as_secs_f64(),
                    _ => outcome.gaps.push((now - last).as_secs_f64()),
                }
                outcome.times.push((now - begin).as_secs_f64());
                (last, pieces) = (now, pieces + 1);
            }
        }
    }
    if !ended {
        return Err(ClientError::Answer("the stream broke off".into()));
    }
    outcome.output_tokens = counted.unwrap_or(pieces);
    // A request whose tokens make no text still took its time.
    let end = if pieces == 0 { Instant::now() } else { last };
    outcome.latency = (end - sent).as_secs_f64();
    if pieces == 0 {
        outcome.first = outcome.latency;
    }
    Ok(())
}
