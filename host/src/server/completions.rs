//! `POST /v1/completions`: what the handler does, and what a choice looks like.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::response::Response;

use super::answer::{self, Answer, Names, Slot, finish, push_json};
use super::body;
use super::error::ApiError;
use super::logprobs::{self, TokenNames};
use super::middleware::RequestId;
use super::protocol::completion::{CompletionChoice, CompletionLogprobs, CompletionRequest};
use super::run::Running;
use super::state::AppState;
use super::traces::Origin;
use super::validate::completion::{Completion, completion};
use super::validate::{self, sampling::Form};
use crate::engine::TokenLogprobs;
use crate::llm::Output;

/// Handles one request.
pub(crate) async fn handle(
    State(state): State<Arc<AppState>>,
    Extension(id): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let (raw, size) =
        body::read::<CompletionRequest>(request, state.config.max_body_size, state.config.read_timeout).await?;
    // A grammar takes its time to compile, however short it is.
    let work = if raw.is_structured() { usize::MAX } else { size };
    let shared = state.clone();
    let work = validate::off_loop(work, move || completion(&shared, raw)).await?;
    let Completion { model, requests, echo, echo_only, logprobs, form, request_id } = work;
    let names = Names { id: validate::request_id(&id, request_id)?, model };
    let origin = Origin::new(arrival, format!("{}{}", Completions::ID, names.id), &id);
    let running = Running::start(&state, requests, origin)?;
    let answer = Completions {
        offsets: vec![None; running.prompts.len() * running.n],
        prompt_entries: vec![Vec::new(); running.prompts.len()],
        prompts: running.prompts.clone(),
        echo,
        echo_only,
        logprobs,
        form,
        state: state.clone(),
    };
    if form.stream {
        Ok(answer::stream(running, answer, &names, form, state.config.keep_alive))
    } else {
        answer::whole(running, answer, &names).await
    }
}

struct Completions {
    state: Arc<AppState>,
    prompts: Vec<Vec<u32>>,
    echo: Option<Vec<String>>,
    echo_only: bool,
    logprobs: bool,
    form: Form,
    /// Log-probabilities of the prompts; the first choice of each brings them.
    prompt_entries: Vec<Vec<Option<TokenLogprobs>>>,
    /// For each choice, where its next token's text begins; None before its first output.
    offsets: Vec<Option<usize>>,
}

impl Completions {
    fn logprobs(&mut self, slot: Slot, output: &Output, first: bool) -> Option<CompletionLogprobs> {
        if !self.logprobs {
            return None;
        }
        let names = TokenNames::new(self.state.llm.tokenizer().map(Arc::as_ref), self.form.tokens_as_ids);
        let mut lists = CompletionLogprobs::default();
        let mut offset = self.offsets[slot.choice].unwrap_or(0);
        if first && self.echo.is_some() {
            let entries = self.prompt_entries[slot.prompt].as_slice();
            for (i, &token) in self.prompts[slot.prompt].iter().enumerate() {
                let entry = entries.get(i).and_then(Option::as_ref);
                logprobs::push_completion(&mut lists, names, token, entry, &mut offset);
            }
        }
        if !self.echo_only {
            for entry in &output.logprobs {
                logprobs::push_completion(&mut lists, names, entry.token, Some(entry), &mut offset);
            }
        }
        self.offsets[slot.choice] = Some(offset);
        Some(lists)
    }
}

impl Answer for Completions {
    const ID: &'static str = "cmpl-";
    const OBJECT: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";

    fn hides_output(&self) -> bool {
        self.echo_only
    }

    fn delta(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) -> bool {
        let first = self.offsets[slot.choice].is_none();
        let silent = output.text.is_empty()
            && output.logprobs.is_empty()
            && (!self.form.return_token_ids || output.token_ids.is_empty());
        let echoes = first && self.echo.is_some();
        if (silent || self.echo_only) && !echoes && output.finish.is_none() {
            return false;
        }
        self.whole(out, slot, output);
        true
    }

    fn whole(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) {
        let first = self.offsets[slot.choice].is_none();
        if let Some(entries) = &output.prompt_logprobs {
            self.prompt_entries[slot.prompt].clone_from(entries);
        }
        let lists = self.logprobs(slot, output, first);
        self.offsets[slot.choice].get_or_insert(0);
        let mut text = String::new();
        let text = match &self.echo {
            Some(prompts) if self.echo_only && first => prompts[slot.prompt].as_str(),
            Some(prompts) if first => {
                text.reserve(prompts[slot.prompt].len() + output.text.len());
                text.push_str(&prompts[slot.prompt]);
                text.push_str(&output.text);
                text.as_str()
            }
            Some(_) if self.echo_only => "",
            _ => output.text.as_str(),
        };
        let (finish_reason, stop_reason) = finish(output.finish.as_ref());
        let ids = self.form.return_token_ids;
        let tokens: &[u32] = if self.echo_only { &[] } else { &output.token_ids };
        let entries = &self.prompt_entries[slot.prompt];
        let prompt_logprobs =
            self.form.prompt_logprobs.then(|| logprobs::prompt(self.state.llm.tokenizer().map(Arc::as_ref), entries));
        let choice = CompletionChoice {
            index: slot.choice,
            text,
            logprobs: lists.as_ref(),
            finish_reason,
            stop_reason: stop_reason.as_ref(),
            prompt_token_ids: (ids && first).then_some(self.prompts[slot.prompt].as_slice()),
            token_ids: ids.then_some(tokens),
            prompt_logprobs: prompt_logprobs.as_ref(),
        };
        push_json(out, &choice);
    }
}
