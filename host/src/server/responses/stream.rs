//! The events that build a response up: it is created, items are added, grow and are done, one after the other, and it is
//! completed. Every event has its number.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Frame, call_item, message_item, reasoning_item, text_part, usage};
use crate::engine::FinishReason;
use crate::llm::Finish;
use crate::server::calls::{Called, call_id};
use crate::server::error::ApiError;
use crate::server::parsers::Event;
use crate::server::script::{Script, Stage};
use crate::server::state::AppState;
use crate::server::validate::chat::Meaning;

/// The item under way.
enum Item {
    Message(String),
    Reasoning(String),
    Call(Called),
}

pub(super) struct Events {
    state: Arc<AppState>,
    frame: Frame,
    meaning: Meaning,
    sequence: usize,
    open: Option<Item>,
    done: Vec<Value>,
    reasoning: String,
}

impl Events {
    pub(super) fn new(state: Arc<AppState>, frame: Frame, meaning: Meaning) -> Self {
        Self { state, frame, meaning, sequence: 0, open: None, done: Vec::new(), reasoning: String::new() }
    }

    fn send(&mut self, mut data: Value, out: &mut Stage) {
        data["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        out.send(&data);
    }

    /// The item as it is, and the place of its text.
    fn item(&self, complete: bool) -> Option<Value> {
        Some(match self.open.as_ref()? {
            Item::Message(text) => message_item(&self.frame.id, text, complete),
            Item::Reasoning(text) => reasoning_item(&self.frame.id, text, complete),
            Item::Call(call) => call_item(call, complete),
        })
    }

    fn begin_item(&mut self, item: Item, out: &mut Stage) {
        self.close(true, out);
        let has_part = matches!(item, Item::Message(_));
        self.open = Some(item);
        let index = self.done.len();
        let mut shown = self.item(true).unwrap_or_default();
        shown["status"] = json!("in_progress");
        if shown.get("content").is_some() {
            shown["content"] = json!([]);
        }
        let id = shown["id"].clone();
        self.send(json!({"type": "response.output_item.added", "output_index": index, "item": shown}), out);
        if has_part {
            let part = text_part("");
            let event = json!({"type": "response.content_part.added", "output_index": index, "content_index": 0,
                               "item_id": id, "part": part});
            self.send(event, out);
        }
    }

    /// Ends the open item.
    fn close(&mut self, complete: bool, out: &mut Stage) {
        let Some(item) = self.item(complete) else { return };
        let (index, id) = (self.done.len(), item["id"].clone());
        let event = |kind: &str| json!({"type": kind, "output_index": index, "item_id": id});
        match self.open.take() {
            Some(Item::Message(text)) => {
                let mut done = event("response.output_text.done");
                (done["content_index"], done["text"], done["logprobs"]) = (json!(0), json!(text), json!([]));
                self.send(done, out);
                let mut done = event("response.content_part.done");
                (done["content_index"], done["part"]) = (json!(0), text_part(&text));
                self.send(done, out);
            }
            Some(Item::Reasoning(text)) => {
                let mut done = event("response.reasoning_text.done");
                (done["content_index"], done["text"]) = (json!(0), json!(text));
                self.send(done, out);
            }
            Some(Item::Call(call)) => {
                let mut done = event("response.function_call_arguments.done");
                (done["name"], done["arguments"]) = (json!(call.name), json!(call.arguments));
                self.send(done, out);
            }
            None => {}
        }
        self.send(json!({"type": "response.output_item.done", "output_index": index, "item": item}), out);
        self.done.push(item);
    }

    fn delta(&mut self, kind: &str, text: &str, in_part: bool, out: &mut Stage) {
        let id = self.item(true).map(|item| item["id"].clone());
        let mut event = json!({"type": kind, "output_index": self.done.len(), "item_id": id, "delta": text});
        if in_part {
            event["content_index"] = json!(0);
        }
        if kind == "response.output_text.delta" {
            event["logprobs"] = json!([]);
        }
        self.send(event, out);
    }
}

impl Script for Events {
    const KEEP_ALIVE: &'static [u8] = b": keep-alive\n\n";

    fn begin(&mut self, out: &mut Stage) {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.frame.response(None, Vec::new(), Value::Null);
            self.send(json!({"type": kind, "response": response}), out);
        }
    }

    fn event(&mut self, event: Event, out: &mut Stage) {
        match event {
            Event::Content(text) => {
                if !matches!(self.open, Some(Item::Message(_))) {
                    self.begin_item(Item::Message(String::new()), out);
                }
                self.delta("response.output_text.delta", &text, true, out);
                if let Some(Item::Message(so_far)) = &mut self.open {
                    so_far.push_str(&text);
                }
            }
            Event::Reasoning(text) => {
                if !matches!(self.open, Some(Item::Reasoning(_))) {
                    self.begin_item(Item::Reasoning(String::new()), out);
                }
                self.delta("response.reasoning_text.delta", &text, true, out);
                self.reasoning.push_str(&text);
                if let Some(Item::Reasoning(so_far)) = &mut self.open {
                    so_far.push_str(&text);
                }
            }
            Event::Call(name) => {
                let id = call_id(&self.meaning.plan);
                self.begin_item(Item::Call(Called { id, name, arguments: String::new() }), out);
            }
            Event::Arguments(text) => {
                self.delta("response.function_call_arguments.delta", &text, false, out);
                if let Some(Item::Call(call)) = &mut self.open {
                    call.arguments.push_str(&text);
                }
            }
        }
    }

    fn end(&mut self, finish: &Finish, out: &mut Stage) {
        let complete = finish.reason != FinishReason::Length;
        if self.open.is_none() && self.done.is_empty() {
            self.begin_item(Item::Message(String::new()), out);
        }
        self.close(complete, out);
        let usage = usage(&self.state, finish, &self.reasoning);
        let response = self.frame.response(Some(finish), self.done.clone(), usage);
        let kind = if complete { "response.completed" } else { "response.incomplete" };
        self.send(json!({"type": kind, "response": response}), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Stage) {
        let mut response = self.frame.response(None, self.done.clone(), Value::Null);
        response["status"] = json!("failed");
        response["error"] = json!({"code": "server_error", "message": error.message});
        self.send(json!({"type": "response.failed", "response": response}), out);
    }
}
