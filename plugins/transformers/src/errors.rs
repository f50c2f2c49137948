//! From a Python exception to one message that a user can act on.
//!
//! What our shims refuse is a `TraceError`: its text is complete. Anything else is shown with the innermost line of
//! modelling code, since that is the code that the reader knows.

use rustpython_vm::builtins::PyBaseExceptionRef;
use rustpython_vm::{AsObject, VirtualMachine};

/// Longest message, in characters.
const MAX_MESSAGE: usize = 900;
/// Most frames in a traceback.
const MAX_FRAMES: usize = 24;

/// What a model's author should know about a module that is missing.
const ADVICE: &str = "; a model is traced with transformers itself, stand-ins of torch, numpy and einops, and the part of \
    Python's library that reaches no files, processes or network: guard other imports with `try`";

/// What an exception says.
#[derive(Debug, Clone)]
pub struct Failure {
    /// One line for users.
    pub message: String,
    /// Where it came from, outermost call first: `file:line in function`.
    pub frames: Vec<String>,
}

/// Reads an exception. Runs no Python code but the exception's own `__str__`.
pub(crate) fn read(error: &PyBaseExceptionRef, vm: &VirtualMachine) -> Failure {
    let class = error.class();
    let frames = frames(error);
    let text = error.as_object().str(vm).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = class.name().to_string();
    let is_trace_error = class.mro_map_collect(|c| c.name().to_string()).iter().any(|n| n == "TraceError");
    let message = if is_trace_error { text } else { describe(&name, &text, &frames) };
    let shown = frames.iter().map(|f| format!("{}:{} in {}", f.file, f.line, f.function)).collect::<Vec<_>>();
    Failure { message: clip(&message), frames: trim(shown) }
}

struct Frame {
    file: String,
    line: usize,
    function: String,
}

impl Frame {
    fn is_model_code(&self) -> bool {
        self.file.starts_with("transformers/models/") || self.file.starts_with("model/")
    }
}

fn frames(error: &PyBaseExceptionRef) -> Vec<Frame> {
    let Some(first) = error.__traceback__() else { return Vec::new() };
    first
        .iter()
        .map(|entry| Frame {
            file: entry.frame.code.source_path().as_str().to_owned(),
            line: entry.lineno.get(),
            function: entry.frame.code.obj_name.as_str().to_owned(),
        })
        .filter(|frame| frame.file != "_frozen_importlib" && frame.file != "host/boot.py")
        .collect()
}

fn describe(name: &str, text: &str, frames: &[Frame]) -> String {
    let mut what = if text.is_empty() { name.to_owned() } else { format!("{name}: {text}") };
    if name == "ModuleNotFoundError" {
        what.push_str(ADVICE);
    }
    let inner = frames.last();
    match frames.iter().rev().find(|f| f.is_model_code()) {
        Some(f) => {
            let place = format!("{}:{} in {}", f.file, f.line, f.function);
            match inner {
                Some(i) if !i.is_model_code() => format!("{place}: {what} (raised at {}:{})", i.file, i.line),
                _ => format!("{place}: {what}"),
            }
        }
        None => match inner {
            Some(i) => format!("{}:{} in {}: {what}", i.file, i.line, i.function),
            None => what,
        },
    }
}

fn trim(mut frames: Vec<String>) -> Vec<String> {
    if frames.len() > MAX_FRAMES {
        let left_out = frames.len() - MAX_FRAMES;
        frames.splice(MAX_FRAMES / 2..MAX_FRAMES / 2 + left_out, [format!("… {left_out} more …")]);
    }
    frames
}

fn clip(message: &str) -> String {
    let message = message.trim();
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}
