//! `POST /v1/chat/completions`: what the handler does, and what a choice looks like.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::response::Response;

use super::answer::{self, Answer, Names, Slot, finish, push_json};
use super::body;
use super::calls::{Called, Message, Reader, call_id};
use super::error::ApiError;
use super::logprobs::{self, TokenNames};
use super::middleware::RequestId;
use super::parsers::{Event, Tools};
use super::protocol::chat::{
    ChatChoice, ChatDeltaChoice, ChatLogprobs, ChatMessage, ChatRequest, Delta, FunctionCall, ToolCall,
};
use super::protocol::common::{PromptLogprobs, StopCause};
use super::run::Running;
use super::state::AppState;
use super::traces::Origin;
use super::validate::chat::{Chat, Meaning, chat};
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
    // A grammar takes its time to compile, however short it is.
    let work = if raw.is_structured() || raw.tool_choice.is_some() { usize::MAX } else { size };
    let shared = state.clone();
    let Chat { model, request, echo, meaning, logprobs, form, request_id } =
        validate::off_loop(work, move || chat(&shared, raw)).await?;
    let names = Names { id: validate::request_id(&id, request_id)?, model };
    let origin = Origin::new(arrival, format!("{}{}", Chats::ID, names.id), &id);
    let running = Running::start(&state, vec![request], origin)?;
    let prompt_token_ids = form.return_token_ids.then(|| running.prompts.concat());
    let answer = Chats {
        readers: (0..running.n).map(|_| Reader::new(&meaning)).collect(),
        calls: vec![0; running.n],
        started: vec![false; running.n],
        meaning,
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
    meaning: Meaning,
    /// One a choice.
    readers: Vec<Reader>,
    /// How many calls of each choice a stream has shown.
    calls: Vec<usize>,
    /// Which choices have said something.
    started: Vec<bool>,
}

impl Chats {
    fn logprobs(&self, output: &Output) -> Option<ChatLogprobs> {
        let top = self.logprobs?;
        let names = TokenNames::new(self.state.llm.tokenizer().map(Arc::as_ref), self.form.tokens_as_ids);
        Some(ChatLogprobs { content: output.logprobs.iter().map(|entry| logprobs::chat(names, entry, top)).collect() })
    }

    /// What an output says, with the echo in front of a choice's first.
    fn read(&mut self, slot: Slot, output: &Output) -> Vec<Event> {
        let first = !std::mem::replace(&mut self.started[slot.choice], true);
        let mut events = self.readers[slot.choice].read(output);
        if let Some(echo) = self.echo.as_ref().filter(|_| first) {
            events.insert(0, Event::Content(echo.clone()));
        }
        events
    }

    /// How a choice ended: one that calls a tool says so, unless it was told to.
    fn finish(&self, slot: Slot, output: &Output) -> (Option<&'static str>, Option<StopCause>) {
        let (reason, cause) = finish(output.finish.as_ref());
        let called = self.readers[slot.choice].has_called() && !matches!(self.meaning.plan.tools, Tools::Named(_));
        (reason.map(|reason| if called && reason == "stop" { "tool_calls" } else { reason }), cause)
    }

    /// What is new, as a stream shows it: events of one kind added up, calls with their places.
    fn news(&mut self, slot: Slot, events: Vec<Event>) -> (String, String, Vec<ToolCall>) {
        let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), Vec::<ToolCall>::new());
        for event in events {
            match event {
                Event::Content(text) => content += &text,
                Event::Reasoning(text) => reasoning += &text,
                Event::Call(name) => {
                    let index = self.calls[slot.choice];
                    self.calls[slot.choice] += 1;
                    let function = FunctionCall { name: Some(name), arguments: String::new() };
                    let id = Some(call_id(&self.meaning.plan));
                    calls.push(ToolCall { index: Some(index), id, kind: Some("function"), function });
                }
                Event::Arguments(text) => match calls.last_mut() {
                    Some(call) => call.function.arguments += &text,
                    None => {
                        let index = Some(self.calls[slot.choice].saturating_sub(1));
                        let function = FunctionCall { name: None, arguments: text };
                        calls.push(ToolCall { index, function, ..ToolCall::default() });
                    }
                },
            }
        }
        (content, reasoning, calls)
    }
}

impl Answer for Chats {
    const ID: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn opening(&mut self, out: &mut Vec<u8>, slot: Slot) -> bool {
        let choice = ChatDeltaChoice {
            index: slot.choice,
            delta: Delta { role: Some("assistant"), content: Some(""), ..Delta::default() },
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        push_json(out, &choice);
        true
    }

    fn delta(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) -> bool {
        let events = self.read(slot, output);
        let (text, reasoning, calls) = self.news(slot, events);
        let ids = self.form.return_token_ids;
        let nothing = text.is_empty() && reasoning.is_empty() && calls.is_empty();
        let silent = nothing && output.logprobs.is_empty() && (!ids || output.token_ids.is_empty());
        if silent && output.finish.is_none() {
            return false;
        }
        let lists = self.logprobs(output).filter(|lists| !lists.content.is_empty());
        let (finish_reason, stop_reason) = self.finish(slot, output);
        let content = (!text.is_empty() || (reasoning.is_empty() && calls.is_empty())).then_some(text.as_str());
        let reasoning = (!reasoning.is_empty()).then_some(reasoning.as_str());
        let choice = ChatDeltaChoice {
            index: slot.choice,
            delta: Delta { role: None, content, reasoning, reasoning_content: reasoning, tool_calls: &calls },
            logprobs: lists.as_ref(),
            finish_reason,
            stop_reason: stop_reason.as_ref(),
            token_ids: ids.then_some(output.token_ids.as_slice()),
        };
        push_json(out, &choice);
        true
    }

    fn whole(&mut self, out: &mut Vec<u8>, slot: Slot, output: &Output) {
        let mut message = Message::default();
        message.add(self.read(slot, output), || call_id(&self.meaning.plan));
        if let Some(entries) = output.prompt_logprobs.as_deref().filter(|_| self.form.prompt_logprobs) {
            self.prompt_logprobs = Some(logprobs::prompt(self.state.llm.tokenizer().map(Arc::as_ref), entries));
        }
        let lists = self.logprobs(output);
        let (finish_reason, stop_reason) = self.finish(slot, output);
        let called = |Called { id, name, arguments }: Called| ToolCall {
            index: None,
            id: Some(id),
            kind: Some("function"),
            function: FunctionCall { name: Some(name), arguments },
        };
        let calls: Vec<ToolCall> = message.calls.into_iter().map(called).collect();
        let content = (!message.content.is_empty() || calls.is_empty()).then_some(message.content.as_str());
        let reasoning = (!message.reasoning.is_empty()).then_some(message.reasoning.as_str());
        let choice = ChatChoice {
            index: slot.choice,
            message: ChatMessage::assistant(content, reasoning, &calls),
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
