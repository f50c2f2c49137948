//! Structured output: JSON schemas, regular expressions, choices and grammars become a [`Grammar`], which says before
//! every token which ones may come next. The crate llguidance does the work. Compiling happens where it is asked for
//! (never on the engine's thread), one grammar at a time; masks are computed on one thread of their own, right after
//! a token was chosen, so that they are there when the model's next step is done. Both have limits on what a grammar
//! may cost. `server` and users of the library ask [`super::Llm::grammar`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::engine::{Guide, GuideError, Restriction};
use crate::text::Tokenizer;

/// The longest description of a grammar, in bytes.
const MAX_SOURCE: usize = 256 << 10;
/// The deepest nesting of brackets in one: parsers of grammars recurse.
const MAX_DEPTH: usize = 200;
/// For threads on which grammars are parsed and run, which recurse over them.
const STACK: usize = 64 << 20;

/// What a text must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Structure {
    /// JSON that this schema admits.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// All of it matches this regular expression.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

/// A structure that cannot be followed, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrammarError(pub String);

/// A compiled structure, for [`super::RequestParams::grammar`]. Cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Inner>,
    /// It holds from behind these tokens on; empty: from the beginning.
    after: Arc<[u32]>,
}

struct Inner {
    /// As it is at the beginning; every sequence starts with a copy.
    matcher: Mutex<Matcher>,
    first: SimpleVob,
    jobs: Sender<Job>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("after", &self.after).finish_non_exhaustive()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) && self.after == other.after
    }
}

impl Grammar {
    /// The same, but the text is free until these tokens have come, one after the other: the end of its reasoning.
    #[must_use]
    pub fn after(&self, tokens: &[u32]) -> Self {
        Self { after: tokens.into(), ..self.clone() }
    }
}

impl Restriction for Grammar {
    fn guide(&self) -> Box<dyn Guide> {
        // Deep: what one sequence has computed must not count against another's limits.
        let matcher = self.inner.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Box::new(GrammarGuide {
            state: State::Ready(Box::new(matcher), Ok(self.inner.first.clone())),
            jobs: self.inner.jobs.clone(),
            after: Arc::clone(&self.after),
            tail: Vec::new(),
            waiting: !self.after.is_empty(),
        })
    }
}

/// A matcher whose next mask is wanted.
struct Job {
    matcher: Box<Matcher>,
    answer: Sender<(Box<Matcher>, Result<SimpleVob, String>)>,
}

enum State {
    Ready(Box<Matcher>, Result<SimpleVob, String>),
    Computing(Receiver<(Box<Matcher>, Result<SimpleVob, String>)>),
    /// Between two others, and after a failure.
    Lost,
}

struct GrammarGuide {
    state: State,
    jobs: Sender<Job>,
    after: Arc<[u32]>,
    /// The last tokens, while it waits.
    tail: Vec<u32>,
    waiting: bool,
}

fn lost() -> GuideError {
    GuideError("the thread that computes masks has ended; see the log".into())
}

impl GrammarGuide {
    /// Waits for the mask.
    fn settle(&mut self) -> Result<(), GuideError> {
        if let State::Computing(answer) = &self.state {
            let (matcher, mask) = answer.recv().map_err(|_| lost())?;
            self.state = State::Ready(matcher, mask);
        }
        Ok(())
    }
}

impl Guide for GrammarGuide {
    fn is_ready(&mut self) -> bool {
        let State::Computing(answer) = &self.state else {
            return true;
        };
        match answer.try_recv() {
            Ok((matcher, mask)) => self.state = State::Ready(matcher, mask),
            Err(TryRecvError::Empty) => return false,
            // Asking for the mask says what is wrong.
            Err(TryRecvError::Disconnected) => {}
        }
        true
    }

    fn allowed(&mut self) -> Result<Option<&[u32]>, GuideError> {
        if self.waiting {
            return Ok(None);
        }
        self.settle()?;
        match &self.state {
            State::Ready(_, Ok(mask)) => Ok(Some(mask.as_slice())),
            State::Ready(_, Err(message)) => Err(GuideError(message.clone())),
            State::Computing(_) | State::Lost => Err(lost()),
        }
    }

    fn push(&mut self, token: u32) -> Result<bool, GuideError> {
        if self.waiting {
            self.tail.push(token);
            let excess = self.tail.len().saturating_sub(self.after.len());
            self.tail.drain(..excess);
            self.waiting = self.tail != *self.after;
            return Ok(false);
        }
        self.settle()?;
        let State::Ready(mut matcher, _) = std::mem::replace(&mut self.state, State::Lost) else {
            return Err(lost());
        };
        matcher.consume_token(token).map_err(|error| GuideError(one_line(&error.to_string())))?;
        if matcher.is_stopped() {
            return Ok(true);
        }
        let (answer, result) = channel();
        self.jobs.send(Job { matcher, answer }).map_err(|_| lost())?;
        self.state = State::Computing(result);
        Ok(false)
    }
}

/// Compiles grammars for one vocabulary.
pub(super) struct Compiler {
    /// Made when first needed: it takes a second for a large vocabulary.
    factory: OnceLock<Result<Made, GrammarError>>,
    /// One at a time, so that a flood of grammars takes one core and no more.
    turn: Mutex<()>,
}

struct Made {
    factory: ParserFactory,
    jobs: Sender<Job>,
}

impl Compiler {
    pub(super) fn new() -> Self {
        Self { factory: OnceLock::new(), turn: Mutex::new(()) }
    }

    /// `rows` is the length of the model's logits.
    pub(super) fn compile(
        &self,
        structure: &Structure,
        tokenizer: &Tokenizer,
        rows: usize,
        eos: &[u32],
    ) -> Result<Grammar, GrammarError> {
        let grammar = source(structure)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.factory.get_or_init(|| make(tokenizer, rows, eos)).as_ref().map_err(Clone::clone)?;
        let work = || {
            catch_unwind(AssertUnwindSafe(|| {
                let mut matcher = Matcher::new(made.factory.create_parser(grammar));
                let first = matcher.compute_mask_or_eos();
                (matcher, first)
            }))
        };
        let spawned = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK);
            thread.spawn_scoped(scope, work).map(|thread| thread.join())
        });
        let failed = |message: String| GrammarError(one_line(&message));
        match spawned {
            Ok(Ok(Ok((matcher, Ok(first))))) => Ok(Grammar {
                inner: Arc::new(Inner { matcher: Mutex::new(matcher), first, jobs: made.jobs.clone() }),
                after: Arc::new([]),
            }),
            Ok(Ok(Ok((_, Err(error))))) => Err(failed(error.to_string())),
            Ok(_) => Err(failed("the grammar's compiler failed on it".into())),
            Err(error) => Err(failed(format!("no thread to compile it on: {error}"))),
        }
    }
}

/// The vocabulary in llguidance's form, and the thread that computes masks.
fn make(tokenizer: &Tokenizer, rows: usize, eos: &[u32]) -> Result<Made, GrammarError> {
    let failed = |error: &dyn std::fmt::Display| GrammarError(format!("the vocabulary cannot be guided: {error}"));
    let mut words: Vec<Vec<u8>> = (0..rows as u32).map(|id| word(tokenizer, id)).collect();
    let mut eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < rows).collect();
    if eos.is_empty() {
        // A model without an end: one that it can never choose.
        eos.push(rows as u32);
        words.push(b"\xff<end>".to_vec());
    }
    let size = words.len() as u32;
    let trie = catch_unwind(|| TokTrie::from(&TokRxInfo::new(size, eos[0]), &words).with_eos_tokens(&eos))
        .map_err(|_| failed(&"its tokens have no common form"))?;
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|error| failed(&error))?;
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    let (jobs, received) = channel::<Job>();
    let compute = move || {
        while let Ok(Job { mut matcher, answer }) = received.recv() {
            let mask = matcher.compute_mask_or_eos().map_err(|error| one_line(&error.to_string()));
            // The sequence may be gone.
            let _ = answer.send((matcher, mask));
        }
    };
    let thread = std::thread::Builder::new().name("guides".into()).stack_size(STACK);
    thread.spawn(compute).map_err(|error| failed(&error))?;
    Ok(Made { factory, jobs })
}

/// The bytes of a token; special ones are marked, so that no text is mistaken for them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_special(id) { [&[TokTrie::SPECIAL_TOKEN_MARKER][..], &bytes].concat() } else { bytes }
}

/// A structure in llguidance's terms, within limits.
fn source(structure: &Structure) -> Result<TopLevelGrammar, GrammarError> {
    let limited = |text: &str| {
        if text.len() > MAX_SOURCE {
            let message = format!("it has {} bytes, the limit is {MAX_SOURCE}; make it smaller", text.len());
            return Err(GrammarError(message));
        }
        let mut depth = 0usize;
        for byte in text.bytes() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(GrammarError(format!("its brackets are nested deeper than {MAX_DEPTH}; make it flatter")));
            }
        }
        Ok(())
    };
    match structure {
        Structure::JsonSchema(schema) => {
            limited(&schema.to_string())?;
            Ok(TopLevelGrammar::from_json_schema(schema.clone()))
        }
        Structure::JsonObject => Ok(TopLevelGrammar::from_json_schema(json!({"type": "object"}))),
        Structure::Regex(regex) => {
            limited(regex)?;
            Ok(TopLevelGrammar::from_regex(regex))
        }
        Structure::Choice(choices) => {
            if choices.is_empty() || choices.iter().any(String::is_empty) {
                return Err(GrammarError("expected at least one choice, and none that is empty".into()));
            }
            // Strings of the grammar are written as in JSON.
            let quoted: Vec<String> = choices.iter().map(|choice| Value::String(choice.clone()).to_string()).collect();
            let grammar = format!("start: {}", quoted.join(" | "));
            if grammar.len() > MAX_SOURCE {
                limited(&grammar)?;
            }
            Ok(TopLevelGrammar::from_lark(grammar))
        }
        Structure::Lark(grammar) => {
            limited(grammar)?;
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
    }
}

/// An error as one line of bounded length.
fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(500) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
#[path = "guide_tests.rs"]
mod tests;
