//! Answers to one generation with one choice that are not of OpenAI's older form: whole, or as named server-sent
//! events. What the events are is the [`Script`]'s; reading, keeping alive and ending are here. Used by `anthropic` and
//! `responses`.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::stream::unfold;
use serde_json::Value;

use super::answer::push_json;
use super::calls::{Message, Reader};
use super::error::ApiError;
use super::parsers::Event;
use super::run::Running;
use crate::llm::Finish;

/// The events of one API.
pub(crate) trait Script: Send + 'static {
    /// What is sent when nothing has been for a while.
    const KEEP_ALIVE: &'static [u8];

    /// The first events.
    fn begin(&mut self, out: &mut Stage);
    /// Something that the model did.
    fn event(&mut self, event: Event, out: &mut Stage);
    /// It has ended.
    fn end(&mut self, finish: &Finish, out: &mut Stage);
    /// It could not go on.
    fn fail(&mut self, error: &ApiError, out: &mut Stage);
}

/// Bytes on their way.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    bytes: Vec<u8>,
}

impl Stage {
    /// One event: its name is its data's type.
    pub(crate) fn send(&mut self, data: &Value) {
        self.bytes.extend_from_slice(b"event: ");
        self.bytes.extend_from_slice(data["type"].as_str().unwrap_or_default().as_bytes());
        self.bytes.extend_from_slice(b"\ndata: ");
        push_json(&mut self.bytes, data);
        self.bytes.extend_from_slice(b"\n\n");
    }
}

/// Runs to the end: the message, and how it ended.
pub(crate) async fn whole(
    mut running: Running,
    mut reader: Reader,
    id: impl Fn() -> String,
) -> Result<(Message, Finish), ApiError> {
    let mut message = Message::default();
    let mut finish = None;
    while let Some(next) = running.next().await {
        let (_, output) = next?;
        message.add(reader.read(&output), &id);
        finish = output.finish.or(finish);
    }
    finish.map(|finish| (message, finish)).ok_or_else(|| ApiError::internal("the generation ended without a word"))
}

struct Play<S> {
    running: Running,
    reader: Reader,
    script: S,
    keep_alive: Duration,
    stage: Stage,
}

/// Answers with events.
pub(crate) fn play<S: Script>(running: Running, reader: Reader, mut script: S, keep_alive: Duration) -> Response {
    let mut stage = Stage::default();
    script.begin(&mut stage);
    let play = Play { running, reader, script, keep_alive, stage };
    let frames = unfold(Some(play), |play| async {
        let mut play = play?;
        let more = play.frame().await;
        let frame = std::mem::take(&mut play.stage.bytes);
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(frame)), more.then_some(play)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

impl<S: Script> Play<S> {
    /// Fills the stage; whether more will follow.
    async fn frame(&mut self) -> bool {
        // The first events do not wait for the first token.
        while self.stage.bytes.is_empty() {
            let Ok(mut next) = tokio::time::timeout(self.keep_alive, self.running.next()).await else {
                self.stage.bytes.extend_from_slice(S::KEEP_ALIVE);
                return true;
            };
            loop {
                match next {
                    Some(Ok((_, output))) => {
                        for event in self.reader.read(&output) {
                            self.script.event(event, &mut self.stage);
                        }
                        if let Some(finish) = &output.finish {
                            self.script.end(finish, &mut self.stage);
                        }
                    }
                    Some(Err(error)) => {
                        self.script.fail(&error, &mut self.stage);
                        return false;
                    }
                    None => return false,
                }
                match self.running.next().now_or_never() {
                    Some(ready) => next = ready,
                    None => break,
                }
            }
        }
        true
    }
}
