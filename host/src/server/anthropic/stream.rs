//! Anthropic's events: a message begins, blocks begin, grow and end one after the other, the message ends.

use serde_json::{Value, json};

use super::{error_body, stop, usage};
use crate::llm::Finish;
use crate::server::calls::call_id;
use crate::server::error::ApiError;
use crate::server::parsers::Event;
use crate::server::script::{Script, Stage};
use crate::server::validate::chat::Meaning;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    Tool,
}

pub(super) struct Events {
    id: String,
    model: String,
    prompt: usize,
    meaning: Meaning,
    open: Option<Block>,
    /// Blocks so far.
    count: usize,
    called: bool,
}

impl Events {
    pub(super) fn new(id: String, model: String, prompt: usize, meaning: Meaning) -> Self {
        Self { id, model, prompt, meaning, open: None, count: 0, called: false }
    }

    fn close(&mut self, out: &mut Stage) {
        if self.open.take().is_some() {
            out.send(&json!({"type": "content_block_stop", "index": self.count - 1}));
        }
    }

    /// Makes sure that a block of this kind is open.
    fn open(&mut self, kind: Block, block: Value, out: &mut Stage) {
        if self.open == Some(kind) && kind != Block::Tool {
            return;
        }
        self.close(out);
        out.send(&json!({"type": "content_block_start", "index": self.count, "content_block": block}));
        self.open = Some(kind);
        self.count += 1;
    }

    fn delta(&self, delta: Value, out: &mut Stage) {
        out.send(&json!({"type": "content_block_delta", "index": self.count.saturating_sub(1), "delta": delta}));
    }
}

impl Script for Events {
    const KEEP_ALIVE: &'static [u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";

    fn begin(&mut self, out: &mut Stage) {
        out.send(&json!({"type": "message_start", "message": {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": usage(self.prompt, 0, 0),
        }}));
    }

    fn event(&mut self, event: Event, out: &mut Stage) {
        match event {
            Event::Content(text) => {
                self.open(Block::Text, json!({"type": "text", "text": ""}), out);
                self.delta(json!({"type": "text_delta", "text": text}), out);
            }
            Event::Reasoning(text) => {
                self.open(Block::Thinking, json!({"type": "thinking", "thinking": "", "signature": ""}), out);
                self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Event::Call(name) => {
                self.called = true;
                let id = call_id(&self.meaning.plan);
                self.open(Block::Tool, json!({"type": "tool_use", "id": id, "name": name, "input": {}}), out);
            }
            Event::Arguments(text) => self.delta(json!({"type": "input_json_delta", "partial_json": text}), out),
        }
    }

    fn end(&mut self, finish: &Finish, out: &mut Stage) {
        if self.count == 0 {
            self.open(Block::Text, json!({"type": "text", "text": ""}), out);
        }
        self.close(out);
        let (reason, sequence) = stop(finish, self.called);
        out.send(&json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage(finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens),
        }));
        out.send(&json!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Stage) {
        out.send(&error_body(error));
    }
}
