//! From outputs to bytes: one JSON object, or server-sent events. What completions and chat have in common (ids,
//! usage, framing, errors in mid-stream, keep-alive) is here; what a choice looks like is the [`Answer`]'s. The
//! unchanging start of every chunk is written once. It generates nothing and checks nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::stream::unfold;
use serde::Serialize;

use super::error::ApiError;
use super::protocol::common::{StopCause, Usage};
use super::run::Running;
use super::validate::sampling::Form;
use crate::llm::{Finish, Output, StopReason};

/// Ready chunks go out in one write until a frame has this size.
const FRAME: usize = 16 << 10;

/// Which choice an output belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// The prompt's index.
    pub(crate) prompt: usize,
    /// The choice's index in the answer.
    pub(crate) choice: usize,
}

/// What a choice of an API looks like.
pub(crate) trait Answer: Send + 'static {
    /// In front of the request's id.
    const ID: &'static str;
    /// `object` of a whole answer.
    const OBJECT: &'static str;
    /// `object` of a chunk.
    const CHUNK: &'static str;

    /// Whether generated tokens are neither shown nor counted (an echo alone).
    fn hides_output(&self) -> bool {
        false
    }
    /// Writes the choice of a chunk that comes before anything else of this choice; false if there is none.
    fn opening(&mut self, _out: &mut Vec<u8>, _slot: Slot) -> bool {
        false
    }
    /// Writes what is new of a choice; false if there is nothing to say.
    fn delta(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) -> bool;
    /// Writes a whole choice.
    fn whole(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output);
    /// Token ids of the prompt, where they belong to the answer and not to a choice.
    fn prompt_token_ids(&self) -> Option<&[u32]> {
        None
    }
    /// Writes further fields of a whole answer, each with a comma in front.
    fn trailer(&self, _out: &mut Vec<u8>) {}
}

/// Counts tokens of choices and prompts.
struct Ledger {
    prompts: Vec<usize>,
    generated: Vec<usize>,
    cached: Vec<usize>,
    n: usize,
    hidden: bool,
}

impl Ledger {
    fn new(running: &Running, hidden: bool) -> Self {
        let prompts: Vec<usize> = running.prompts.iter().map(Vec::len).collect();
        let (generated, cached) = (vec![0; prompts.len() * running.n], vec![0; prompts.len()]);
        Self { prompts, generated, cached, n: running.n, hidden }
    }

    /// The choice that an output belongs to.
    fn note(&mut self, prompt: usize, output: &Output) -> Slot {
        let slot = Slot { prompt, choice: prompt * self.n + output.index };
        if !self.hidden {
            self.generated[slot.choice] += output.token_ids.len();
        }
        if let Some(finish) = &output.finish {
            // Choices of one prompt share it; the best-served one says what the cache held.
            self.cached[prompt] = self.cached[prompt].max(finish.cached_tokens);
        }
        slot
    }

    fn total(&self) -> Usage {
        Usage::new(self.prompts.iter().sum(), self.generated.iter().sum(), self.cached.iter().sum())
    }

    fn of(&self, slot: Slot) -> Usage {
        Usage::new(self.prompts[slot.prompt], self.generated[slot.choice], self.cached[slot.prompt])
    }
}

/// Appends a value as JSON.
pub(crate) fn push_json(out: &mut Vec<u8>, value: &impl Serialize) {
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        tracing::error!(%error, "a value cannot be written as JSON; this is a bug");
        out.extend_from_slice(b"null");
    }
}

/// `{"id":…,"object":…,"created":…,"model":…,"choices":[`
fn head(id: &str, object: &str, model: &str) -> Vec<u8> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut out = Vec::with_capacity(160);
    for (key, value) in [("{\"id\":", id), (",\"object\":", object)] {
        out.extend_from_slice(key.as_bytes());
        push_json(&mut out, &value);
    }
    out.extend_from_slice(b",\"created\":");
    push_json(&mut out, &created);
    out.extend_from_slice(b",\"model\":");
    push_json(&mut out, &model);
    out.extend_from_slice(b",\"choices\":[");
    out
}

/// How `finish` appears in a choice.
pub(crate) fn finish(finish: Option<&Finish>) -> (Option<&'static str>, Option<StopCause>) {
    let cause = finish.and_then(|finish| finish.stop_reason.as_ref()).map(|reason| match reason {
        StopReason::Token(id) => StopCause::Token(*id),
        StopReason::Text(text) => StopCause::Text(text.clone()),
    });
    (finish.map(|finish| finish.reason.as_str()), cause)
}

/// Adds a later output of the same choice to an earlier one.
fn merge(into: &mut Output, later: Output) {
    into.text.push_str(&later.text);
    into.token_ids.extend(later.token_ids);
    into.logprobs.extend(later.logprobs);
    into.prompt_logprobs = into.prompt_logprobs.take().or(later.prompt_logprobs);
    into.finish = later.finish.or(into.finish.take());
}

/// Names of an answer.
pub(crate) struct Names {
    /// The request's id.
    pub(crate) id: Arc<str>,
    /// The model as the client knows it.
    pub(crate) model: String,
}

/// Runs to the end and answers with one object.
pub(crate) async fn whole<A: Answer>(mut running: Running, mut answer: A, names: &Names) -> Result<Response, ApiError> {
    let mut ledger = Ledger::new(&running, answer.hides_output());
    let mut choices: Vec<Option<(Slot, Output)>> = (0..ledger.generated.len()).map(|_| None).collect();
    while let Some(next) = running.next().await {
        let (prompt, output) = next?;
        let slot = ledger.note(prompt, &output);
        match &mut choices[slot.choice] {
            Some((_, so_far)) => merge(so_far, output),
            empty => *empty = Some((slot, output)),
        }
    }
    let id = format!("{}{}", A::ID, names.id);
    let mut out = head(&id, A::OBJECT, &names.model);
    for (slot, output) in choices.iter().flatten() {
        if slot.choice > 0 {
            out.push(b',');
        }
        answer.whole(&mut out, *slot, output);
    }
    out.extend_from_slice(b"],\"service_tier\":null,\"system_fingerprint\":null,\"usage\":");
    push_json(&mut out, &ledger.total());
    answer.trailer(&mut out);
    out.push(b'}');
    Ok(([(header::CONTENT_TYPE, "application/json")], out).into_response())
}

/// A stream under way.
struct Events<A> {
    running: Running,
    answer: A,
    ledger: Ledger,
    opened: Vec<bool>,
    /// `data: ` and the start of every chunk.
    head: Vec<u8>,
    form: Form,
    keep_alive: Duration,
}

/// Answers with server-sent events.
pub(crate) fn stream<A: Answer>(
    running: Running,
    answer: A,
    names: &Names,
    form: Form,
    keep_alive: Duration,
) -> Response {
    let id = format!("{}{}", A::ID, names.id);
    let mut start = b"data: ".to_vec();
    start.extend(head(&id, A::CHUNK, &names.model));
    let ledger = Ledger::new(&running, answer.hides_output());
    let opened = vec![false; ledger.generated.len()];
    let events = Events { running, answer, ledger, opened, head: start, form, keep_alive };
    // The state goes with the body: a client that leaves drops it, and with it the generations.
    let frames = unfold(Some(events), |events| async {
        let mut events = events?;
        let (frame, more) = events.frame().await;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(frame)), more.then_some(events)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would hold the stream back otherwise.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

impl<A: Answer> Events<A> {
    /// The next bytes to send, and whether more will follow.
    async fn frame(&mut self) -> (Vec<u8>, bool) {
        let mut frame = Vec::with_capacity(512);
        loop {
            let Ok(mut next) = tokio::time::timeout(self.keep_alive, self.running.next()).await else {
                return (b": keep-alive\n\n".to_vec(), true);
            };
            // What else is ready goes out in the same write: cheap when many tokens wait for a slow client.
            loop {
                match next {
                    Some(Ok((prompt, output))) => self.chunks(&mut frame, prompt, &output),
                    end => {
                        self.end(&mut frame, end.and_then(Result::err));
                        return (frame, false);
                    }
                }
                if frame.len() >= FRAME {
                    break;
                }
                match self.running.next().now_or_never() {
                    Some(ready) => next = ready,
                    None => break,
                }
            }
            if !frame.is_empty() {
                return (frame, true);
            }
        }
    }

    /// The chunks that one output makes.
    fn chunks(&mut self, frame: &mut Vec<u8>, prompt: usize, output: &Output) {
        let slot = self.ledger.note(prompt, output);
        let usage = self.form.continuous_usage.then(|| self.ledger.of(slot));
        if !std::mem::replace(&mut self.opened[slot.choice], true) {
            let usage = usage.map(|usage| Usage::new(usage.prompt_tokens, 0, 0));
            self.chunk(frame, usage, true, |answer, out| answer.opening(out, slot));
        }
        self.chunk(frame, usage, false, |answer, out| answer.delta(out, slot, output));
    }

    /// One chunk, unless its choice has nothing to say.
    fn chunk(
        &mut self,
        frame: &mut Vec<u8>,
        usage: Option<Usage>,
        first: bool,
        write: impl FnOnce(&mut A, &mut Vec<u8>) -> bool,
    ) {
        let start = frame.len();
        frame.extend_from_slice(&self.head);
        if !write(&mut self.answer, frame) {
            frame.truncate(start);
            return;
        }
        frame.push(b']');
        if let Some(ids) = self.answer.prompt_token_ids().filter(|_| first) {
            frame.extend_from_slice(b",\"prompt_token_ids\":");
            push_json(frame, &ids);
        }
        if let Some(usage) = usage {
            frame.extend_from_slice(b",\"usage\":");
            push_json(frame, &usage);
        }
        frame.extend_from_slice(b"}\n\n");
    }

    /// The last events.
    fn end(&self, frame: &mut Vec<u8>, error: Option<ApiError>) {
        match error {
            Some(error) => {
                frame.extend_from_slice(b"event: error\ndata: ");
                frame.extend_from_slice(error.to_json().as_bytes());
                frame.extend_from_slice(b"\n\n");
            }
            None if self.form.include_usage => {
                frame.extend_from_slice(&self.head);
                frame.extend_from_slice(b"],\"usage\":");
                push_json(frame, &self.ledger.total());
                frame.extend_from_slice(b"}\n\n");
            }
            None => {}
        }
        frame.extend_from_slice(b"data: [DONE]\n\n");
    }
}
