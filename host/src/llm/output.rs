//! A generation in progress: reads the engine's events of all choices, makes text of tokens, finds stop
//! strings. Runs in the task of whoever reads it, never on the engine's thread.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use super::LlmError;
use super::stop::StopFinder;
use crate::engine::{EngineEvent, EventStream, FinishReason, SamplingParams, Timings, TokenLogprobs};
use crate::text::Detokenizer;

/// What ended a generation with [`FinishReason::Stop`] (nothing for the model's own eos tokens, as in vLLM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// How a choice ended.
#[derive(Debug, Clone)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// What exactly.
    pub stop_reason: Option<StopReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, stop token included.
    pub completion_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
    /// When things happened.
    pub timings: Timings,
}

/// What is new of one choice.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Which of `n`.
    pub index: usize,
    /// More text; may be empty where a character or a possible stop string is not complete.
    pub text: String,
    /// More tokens.
    pub token_ids: Vec<u32>,
    /// For each of `token_ids`, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set in the last output of a choice.
    pub finish: Option<Finish>,
    /// In the first output of choice 0, if asked for; one entry a prompt token.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

/// One of `n`.
pub(super) struct Choice {
    index: usize,
    /// None once it ended, which tells the engine to stop.
    events: Option<EventStream>,
    detokenizer: Option<Detokenizer>,
    stops: Vec<String>,
    finder: StopFinder,
    params: SamplingParams,
    include_stop: bool,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    arrival: Instant,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
}

/// What a choice needs to know of its request.
pub(super) struct ChoiceSetup {
    pub(super) index: usize,
    pub(super) events: EventStream,
    pub(super) detokenizer: Option<Detokenizer>,
    pub(super) stops: Vec<String>,
    pub(super) include_stop: bool,
    pub(super) params: SamplingParams,
    pub(super) prompt_tokens: usize,
    pub(super) arrival: Instant,
}

impl Choice {
    pub(super) fn new(setup: ChoiceSetup) -> Self {
        let ChoiceSetup { index, events, detokenizer, stops, include_stop, params, prompt_tokens, arrival } = setup;
        Self {
            index,
            events: Some(events),
            detokenizer,
            finder: StopFinder::new(stops.clone(), include_stop),
            stops,
            params,
            include_stop,
            prompt_tokens,
            completion_tokens: 0,
            cached_tokens: 0,
            arrival,
            first_scheduled: None,
            first_token: None,
        }
    }

    /// Everything that is there by now, as one output.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Output, LlmError>>> {
        let mut output = Output { index: self.index, ..Output::default() };
        while let Some(events) = &mut self.events {
            let Poll::Ready(event) = events.poll_next(context) else {
                break;
            };
            let event =
                event.unwrap_or_else(|| EngineEvent::Failed("the engine ended the request without a reason".into()));
            if let Err(error) = self.take(event, &mut output) {
                self.events = None;
                return Poll::Ready(Some(Err(error)));
            }
        }
        if !output.token_ids.is_empty() || output.finish.is_some() || output.prompt_logprobs.is_some() {
            return Poll::Ready(Some(Ok(output)));
        }
        if self.events.is_some() { Poll::Pending } else { Poll::Ready(None) }
    }

    fn take(&mut self, event: EngineEvent, output: &mut Output) -> Result<(), LlmError> {
        match event {
            EngineEvent::Started { cached_tokens, at } => {
                self.cached_tokens = cached_tokens;
                self.first_scheduled = Some(at);
            }
            EngineEvent::PromptLogprobs(logprobs) => output.prompt_logprobs = Some(logprobs),
            EngineEvent::Token { token, logprobs } => {
                self.first_token.get_or_insert_with(Instant::now);
                self.completion_tokens += 1;
                output.token_ids.push(token);
                output.logprobs.extend(logprobs);
                // The engine ends here too; its last event comes next.
                let last = self.completion_tokens >= self.params.min_tokens && self.params.is_stop(token);
                if let Some(detokenizer) = &mut self.detokenizer
                    && (!last || self.include_stop)
                {
                    let text = detokenizer.push(token)?;
                    self.take_text(&text, output);
                }
            }
            EngineEvent::Finished { reason, stop_token, timings, .. } => {
                if let Some(detokenizer) = &mut self.detokenizer {
                    let text = detokenizer.finish()?;
                    self.take_text(&text, output);
                }
                if self.events.is_some() {
                    output.text.push_str(&self.finder.finish());
                    let stop = stop_token.filter(|token| self.params.stop_token_ids.contains(token));
                    self.finish(output, reason, stop.map(StopReason::Token), timings);
                }
            }
            EngineEvent::Pooled(_) => {} // not of a generation
            EngineEvent::Failed(message) => return Err(LlmError::Failed(message)),
        }
        Ok(())
    }

    fn take_text(&mut self, text: &str, output: &mut Output) {
        let counts = self.completion_tokens > self.params.min_tokens || self.params.min_tokens == 0;
        let (text, found) = self.finder.push(text, counts);
        output.text.push_str(&text);
        if let Some(place) = found {
            let Self { arrival, first_scheduled, first_token, .. } = *self;
            let timings = Timings { arrival, first_scheduled, first_token, finished: Instant::now() };
            let stop = StopReason::Text(self.stops[place].clone());
            self.finish(output, FinishReason::Stop, Some(stop), timings);
        }
    }

    fn finish(&mut self, output: &mut Output, reason: FinishReason, stop_reason: Option<StopReason>, timings: Timings) {
        self.events = None;
        output.finish = Some(Finish {
            reason,
            stop_reason,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            cached_tokens: self.cached_tokens,
            timings,
        });
    }
}

/// The answer to a [`super::GenerateRequest`] as it comes. Dropping it aborts all choices.
pub struct Generation {
    prompt: Vec<u32>,
    choices: Vec<Choice>,
    /// Where to look first, so that no choice is kept waiting by the others.
    turn: usize,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (prompt_tokens, choices) = (self.prompt.len(), self.choices.len());
        f.debug_struct("Generation")
            .field("prompt_tokens", &prompt_tokens)
            .field("choices", &choices)
            .finish_non_exhaustive()
    }
}

impl Generation {
    pub(super) fn new(prompt: Vec<u32>, choices: Vec<Choice>) -> Self {
        Self { prompt, choices, turn: 0 }
    }

    /// The prompt in tokens.
    pub fn prompt_token_ids(&self) -> &[u32] {
        &self.prompt
    }

    /// What is new of some choice; None when all have ended. An error ends the choice that it belongs to;
    /// there is no reason to read on.
    pub async fn next(&mut self) -> Option<Result<Output, LlmError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same for code that polls.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Output, LlmError>>> {
        let count = self.choices.len();
        let mut ended = true;
        for offset in 0..count {
            let at = (self.turn + offset) % count;
            match self.choices[at].poll(context) {
                Poll::Ready(Some(output)) => {
                    self.turn = at + 1;
                    return Poll::Ready(Some(output));
                }
                Poll::Ready(None) => {}
                Poll::Pending => ended = false,
            }
        }
        if ended { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The same, blocking: not for async code.
    pub fn blocking_next(&mut self) -> Option<Result<Output, LlmError>> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match self.poll_next(&mut context) {
                Poll::Ready(output) => return output,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
