//! Generations under way for one HTTP request: started together, read as one stream, dropped together. Dropping a
//! [`Running`] (the client left, an error occurred) ends all of them and frees their KV blocks. It knows no JSON.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{BoxStream, SelectAll, StreamExt, unfold};

use super::error::ApiError;
use super::metrics::Tracker;
use super::state::{AppState, LoadGuard, Phase};
use super::traces::Origin;
use crate::engine::{FinishReason, SubmitError};
use crate::llm::{GenerateRequest, LlmError, Output};

/// The generations of one HTTP request.
pub(crate) struct Running {
    outputs: SelectAll<BoxStream<'static, (usize, Result<Output, LlmError>)>>,
    aborted: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// One for each choice, in the order of the answer.
    trackers: Vec<Tracker>,
    /// Counts in `/load` as long as it lives.
    _load: LoadGuard,
    /// For each prompt, how many choices run and how long the longest of the others was.
    longest: Vec<(usize, usize)>,
    state: Arc<AppState>,
    /// Token ids of the prompts.
    pub(crate) prompts: Vec<Vec<u32>>,
    /// Choices for each prompt.
    pub(crate) n: usize,
}

impl Running {
    /// Submits all requests, or none.
    pub(crate) fn start(
        state: &Arc<AppState>,
        requests: Vec<GenerateRequest>,
        origin: Origin,
    ) -> Result<Self, ApiError> {
        if state.phase() != Phase::Serving {
            return Err(ApiError::unavailable("the server is shutting down and takes no more requests"));
        }
        let origin = origin.with(requests.first());
        let n = requests.first().map_or(1, |request| request.params.n);
        let mut outputs = SelectAll::new();
        let mut prompts = Vec::with_capacity(requests.len());
        for (index, request) in requests.into_iter().enumerate() {
            let max_tokens = request.params.max_tokens;
            let generation = state.llm.submit(request).map_err(|error| {
                if let LlmError::Submit(error) = &error {
                    state.metrics.rejected(error);
                }
                from_llm(error)
            })?;
            state.metrics.taken(n, max_tokens);
            prompts.push(generation.prompt_token_ids().to_vec());
            let stream = unfold(generation, |mut generation| async {
                let output = generation.next().await?;
                Some((output, generation))
            });
            outputs.push(stream.map(move |output| (index, output)).boxed());
        }
        let trackers = (0..prompts.len() * n).map(|_| Tracker::new(state, &origin)).collect();
        let (aborted, _load) = (Box::pin(state.aborted()), state.load.enter());
        let (longest, state) = (vec![(n, 0); prompts.len()], state.clone());
        Ok(Self { outputs, aborted, trackers, _load, longest, state, prompts, n })
    }

    /// What is new of which prompt; None when all is said. Nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Result<(usize, Output), ApiError>> {
        let (prompt, output) = tokio::select! {
            biased;
            item = self.outputs.next() => item?,
            () = &mut self.aborted => return Some(Err(shutting_down())),
        };
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                self.trackers.iter_mut().for_each(Tracker::fail);
                return Some(Err(from_llm(error)));
            }
        };
        if let Some(tracker) = self.trackers.get_mut(prompt * self.n + output.index) {
            tracker.tokens(output.token_ids.len());
            if let Some(finish) = &output.finish {
                tracker.finish(finish);
                let (left, longest) = &mut self.longest[prompt];
                *longest = finish.completion_tokens.max(*longest);
                *left -= 1;
                if *left == 0 {
                    self.state.metrics.longest(*longest);
                }
                if finish.reason == FinishReason::Abort {
                    return Some(Err(shutting_down()));
                }
            }
        }
        Some(Ok((prompt, output)))
    }
}

fn shutting_down() -> ApiError {
    ApiError::unavailable("the server is shutting down and ended this request")
}

/// How an engine's refusal or failure looks from outside.
pub(crate) fn from_llm(error: LlmError) -> ApiError {
    let message = error.to_string();
    match error {
        LlmError::Submit(SubmitError::QueueFull { .. } | SubmitError::TokensQueued { .. }) => {
            ApiError::overloaded(message)
        }
        LlmError::Submit(SubmitError::Draining | SubmitError::Stopped) => ApiError::unavailable(message),
        LlmError::Submit(SubmitError::TokenOutOfRange { field, .. }) => ApiError::field(field, message),
        LlmError::Submit(SubmitError::OnlyGenerates | SubmitError::OnlyPools) => ApiError::bad_request(message),
        LlmError::Submit(SubmitError::InputTooLong { .. }) => ApiError::field("input", message),
        LlmError::Submit(SubmitError::EmptyPrompt | SubmitError::PromptTooLong { .. }) => {
            ApiError::field("prompt", message)
        }
        LlmError::Submit(SubmitError::ExceedsCache { .. }) | LlmError::ContextLength { .. } => {
            ApiError::field("max_tokens", message)
        }
        LlmError::Param(error) => ApiError::field(error.field, error.message),
        LlmError::NoTokenizer { field, .. } => ApiError::field(field, message),
        LlmError::Grammar(_) => ApiError::field("structured_outputs", message),
        LlmError::Text(_) => ApiError::bad_request(message),
        LlmError::Failed(_) => {
            tracing::error!(error = message, "a generation failed");
            ApiError::internal(message)
        }
    }
}
