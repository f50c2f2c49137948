//! `POST /v1/chat/completions`: what the handler does, and what a choice looks like.

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
use super::protocol::chat::{ChatChoice, ChatDeltaChoice, ChatLogprobs, ChatMessage, ChatRequest, Delta};
use super::protocol::common::PromptLogprobs;
use super::run::Running;
use super::state::AppState;
use super::validate::chat::{Chat, chat};
use super::validate::{self, sampling::Form};
use crate::llm::Output;

/// Handles one request.
pub(crate) async fn handle(
    State(state): State<Arc<AppState>>,
    Extension(id): Extension<RequestId>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let (raw, size) = body::read::<ChatRequest>(request, state.config.max_body_size, state.config.read_timeout).await?;
    let shared = state.clone();
    let Chat { model, request, echo, logprobs, form, request_id } =
        validate::off_loop(size, move || chat(&shared, raw)).await?;
    let names = Names { id: validate::request_id(id, request_id)?, model };
    let running = Running::start(&state, vec![request], arrival)?;
    let prompt_token_ids = form.return_token_ids.then(|| running.prompts.concat());
    let answer = Chats {
        started: vec![false; running.n],
        prompt_token_ids,
        prompt_logprobs: None,
        echo,
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

struct Chats {
    state: Arc<AppState>,
    prompt_token_ids: Option<Vec<u32>>,
    prompt_logprobs: Option<PromptLogprobs>,
    echo: Option<String>,
    logprobs: Option<usize>,
    form: Form,
    /// Which choices have said something.
    started: Vec<bool>,
}

impl Chats {
    fn logprobs(&self, output: &Output) -> Option<ChatLogprobs> {
        let top = self.logprobs?;
        let names = TokenNames::new(self.state.llm.tokenizer().map(Arc::as_ref), self.form.tokens_as_ids);
        Some(ChatLogprobs { content: output.logprobs.iter().map(|entry| logprobs::chat(names, entry, top)).collect() })
    }

    /// The text of an output, with the echo in front of a choice's first.
    fn text<'a>(&mut self, slot: Slot, output: &'a Output) -> std::borrow::Cow<'a, str> {
        let first = !std::mem::replace(&mut self.started[slot.choice], true);
        match &self.echo {
            Some(echo) if first => format!("{echo}{}", output.text).into(),
            _ => output.text.as_str().into(),
        }
    }
}

impl Answer for Chats {
    const ID: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn opening(&mut self, out: &mut Vec<u8>, slot: Slot) -> bool {
        let choice = ChatDeltaChoice {
            index: slot.choice,
            delta: Delta { role: Some("assistant"), content: Some("") },
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        push_json(out, &choice);
        true
    }

    fn delta(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) -> bool {
        let text = self.text(slot, output);
        let ids = self.form.return_token_ids;
        let silent = text.is_empty() && output.logprobs.is_empty() && (!ids || output.token_ids.is_empty());
        if silent && output.finish.is_none() {
            return false;
        }
        let lists = self.logprobs(output).filter(|lists| !lists.content.is_empty());
        let (finish_reason, stop_reason) = finish(output.finish.as_ref());
        let choice = ChatDeltaChoice {
            index: slot.choice,
            delta: Delta { role: None, content: Some(&text) },
            logprobs: lists.as_ref(),
            finish_reason,
            stop_reason: stop_reason.as_ref(),
            token_ids: ids.then_some(output.token_ids.as_slice()),
        };
        push_json(out, &choice);
        true
    }

    fn whole(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) {
        let text = self.text(slot, output);
        if let Some(entries) = output.prompt_logprobs.as_deref().filter(|_| self.form.prompt_logprobs) {
            self.prompt_logprobs = Some(logprobs::prompt(self.state.llm.tokenizer().map(Arc::as_ref), entries));
        }
        let lists = self.logprobs(output);
        let (finish_reason, stop_reason) = finish(output.finish.as_ref());
        let choice = ChatChoice {
            index: slot.choice,
            message: ChatMessage::assistant(&text),
            logprobs: lists.as_ref(),
            finish_reason,
            stop_reason: stop_reason.as_ref(),
            token_ids: self.form.return_token_ids.then_some(output.token_ids.as_slice()),
        };
        push_json(out, &choice);
    }

    fn prompt_token_ids(&self) -> Option<&[u32]> {
        self.prompt_token_ids.as_deref()
    }

    fn trailer(&self, out: &mut Vec<u8>) {
        if let Some(entries) = &self.prompt_logprobs {
            out.extend_from_slice(b",\"prompt_logprobs\":");
            push_json(out, entries);
        }
        if let Some(ids) = &self.prompt_token_ids {
            out.extend_from_slice(b",\"prompt_token_ids\":");
            push_json(out, ids);
        }
    }
}
