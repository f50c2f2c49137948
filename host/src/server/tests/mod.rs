//! The server as a client sees it: a real listener on loopback, a real engine and tokenizer, and a model that
//! copies its prompt ([`CopyModel`]), so that every answer is known in advance.

mod anthropic;
mod chat;
mod compatibility;
mod completions;
mod guard;
mod http;
mod operate;
mod page;
mod pooling;
mod refuse;
mod responses;
mod scrape;
mod structured;
mod tools;
#[cfg(feature = "otlp")]
mod traces;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::config::ServerConfig;
use super::serve::{ServerError, serve};
use crate::engine::{Engine, EngineConfig, Runner};
use crate::exec::{ExecError, ExecSpec, Executor, Gives, LogitRows, MAX_PROMPT_ROWS, PrefixCaching, Step};
use crate::llm::{Llm, ModelInfo, Pooler};
use crate::text::{GenerationConfig, Tokenizer};

const VOCAB: usize = 258;
const EOS: u32 = 257;
const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}{% if shout %}!{% endif %}";

/// Continues a prompt with a copy of it, then ends. Token ids are bytes.
struct CopyModel {
    spec: ExecSpec,
    /// Length of the prompt, by sequence.
    prompts: HashMap<u64, usize>,
    logits: Vec<f32>,
    delay: Duration,
    trouble: Trouble,
    steps: usize,
}

/// What goes wrong in the fifth step.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Error,
    Panic,
}

impl CopyModel {
    fn row(&mut self, tokens: &[u32], position: usize, prompt_len: usize) {
        if self.spec.gives == Gives::HiddenStates {
            return self.logits.extend([tokens[position] as f32, position as f32, 1.0]);
        }
        let favourite = match (position + 1).checked_sub(prompt_len) {
            Some(at) if at < prompt_len => tokens[at],
            Some(_) => EOS,
            // Inside the prompt: something else than what comes.
            None => (tokens[position] + 1) % 256,
        };
        let start = self.logits.len();
        self.logits.extend((0..VOCAB).map(|id| (id * 31 % 17) as f32 / 17.0));
        self.logits[start + favourite as usize] = 8.0;
    }
}

impl Executor for CopyModel {
    fn spec(&self) -> &ExecSpec {
        &self.spec
    }

    fn allocate_cache(&mut self, _: usize) -> Result<(), ExecError> {
        Ok(())
    }

    fn execute(&mut self, step: &Step<'_>) -> Result<&[f32], ExecError> {
        std::thread::sleep(self.delay);
        self.steps += 1;
        match self.trouble {
            Trouble::Error if self.steps == 5 => {
                return Err(ExecError::Failed("the device is gone".into()));
            }
            Trouble::Panic if self.steps == 5 => panic!("a bug in the model"),
            _ => {}
        }
        self.logits.clear();
        for seq in step.seqs {
            let end = seq.tokens.len();
            let first = match seq.logits {
                LogitRows::None => end,
                LogitRows::Last => end - 1,
                LogitRows::From(position) => position.max(seq.computed),
            };
            // Nothing is generated yet when a sequence is seen first.
            let prompt_len = *self.prompts.entry(seq.id).or_insert(seq.context_len);
            for position in first..end {
                self.row(seq.tokens, position, prompt_len);
            }
        }
        Ok(&self.logits)
    }
}

/// A tokenizer whose tokens are the bytes, plus begin (256) and end (257).
fn tokenizer(template: Option<&str>) -> Tokenizer {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut vocab = serde_json::Map::new();
    let mut next = 256;
    for byte in 0..256 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|begin|>"), special(EOS, "<|end|>")],
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                  "byte_fallback": false, "ignore_merges": false},
    });
    Tokenizer::from_bytes(file.to_string().as_bytes(), None, template).unwrap()
}

/// What a test wants to be different.
struct Setup {
    delay: Duration,
    tokenizer: Option<Tokenizer>,
    generation_config: GenerationConfig,
    max_model_len: usize,
    max_waiting: usize,
    max_waiting_tokens: Option<usize>,
    max_num_seqs: usize,
    trouble: Trouble,
    /// The model pools; a token's hidden state is its id, its position and 1.
    pooler: Option<Pooler>,
    config: ServerConfig,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            tokenizer: Some(tokenizer(Some(TEMPLATE))),
            generation_config: GenerationConfig { eos_token_ids: vec![EOS], ..GenerationConfig::default() },
            max_model_len: 256,
            max_waiting: 64,
            max_waiting_tokens: None,
            max_num_seqs: 8,
            trouble: Trouble::None,
            pooler: None,
            config: ServerConfig { read_timeout: Duration::from_secs(5), ..ServerConfig::default() },
        }
    }
}

/// A server under test.
struct Server {
    address: SocketAddr,
    llm: Llm,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServerError>>,
}

impl Setup {
    async fn start(self) -> Server {
        let spec = ExecSpec {
            gives: if self.pooler.is_some() { Gives::HiddenStates } else { Gives::Logits },
            row_width: if self.pooler.is_some() { 3 } else { VOCAB },
            input_vocab_size: VOCAB,
            extra_rows: if self.pooler.is_some() { 512 } else { MAX_PROMPT_ROWS },
            kv_bytes_per_block: 1,
            window: None,
            prefix_cache: PrefixCaching::Shared,
            state_bytes_per_seq: 0,
            by_length: None,
            max_tokens: 512,
            max_seqs: self.max_num_seqs,
        };
        let model = CopyModel {
            spec,
            logits: Vec::new(),
            prompts: HashMap::new(),
            delay: self.delay,
            trouble: self.trouble,
            steps: 0,
        };
        let mut limits = EngineConfig::new(self.max_model_len, 256);
        limits.max_num_seqs = self.max_num_seqs;
        limits.max_num_batched_tokens = 512;
        limits.max_waiting = self.max_waiting;
        limits.max_waiting_tokens = self.max_waiting_tokens;
        if self.pooler.is_some() {
            limits.runner = Runner::Pooling;
        }
        let engine = Engine::start(Box::new(model), limits).unwrap();
        let info = ModelInfo {
            name: "copy".into(),
            served_names: vec!["copy".into(), "org/alias".into()],
            max_model_len: self.max_model_len,
            vocab_size: VOCAB,
            input_vocab_size: VOCAB,
            plugin: "test".into(),
            plugin_version: "1.2.3".into(),
            model_impl: "native".into(),
            architecture: "CopyForCausalLM".into(),
            dtype: "float32".into(),
            created: 1,
            pooler: self.pooler,
            ..ModelInfo::default()
        };
        let llm = Llm::from_parts(engine, self.tokenizer.map(Arc::new), info, self.generation_config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(listener, llm.clone(), self.config, shutdown));
        Server { address, llm, stop: Some(stop), task }
    }
}

impl Server {
    async fn start() -> Self {
        Setup::default().start().await
    }

    async fn post(&self, path: &str, body: Value) -> http::Reply {
        self.post_raw(path, body.to_string().as_bytes()).await
    }

    async fn post_raw(&self, path: &str, body: &[u8]) -> http::Reply {
        http::request(self.address, "POST", path, &[("content-type", "application/json")], body).await
    }

    async fn get(&self, path: &str) -> http::Reply {
        http::request(self.address, "GET", path, &[], b"").await
    }

    /// A request that must succeed.
    async fn ok(&self, path: &str, body: Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    /// A request that must fail with this status and name this field.
    async fn refused(&self, path: &str, body: Value, status: u16, param: Option<&str>) -> String {
        let reply = self.post(path, body.clone()).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        let error = &reply.json()["error"];
        assert_eq!(error["param"].as_str(), param, "{body}: {error}");
        assert_eq!(error["code"], status);
        assert!(error["type"].is_string());
        error["message"].as_str().unwrap().to_owned()
    }

    /// A stream that must succeed; its events without the last, which must be `[DONE]`.
    async fn events(&self, path: &str, body: Value) -> Vec<Value> {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.header("content-type").unwrap().starts_with("text/event-stream"));
        let text = reply.text();
        let mut events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let parse = |event: &&str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.iter().map(parse).collect()
    }

    /// A stream of named events that must succeed: every event's name is its data's type.
    async fn named_events(&self, path: &str, body: Value) -> Vec<Value> {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let text = reply.text();
        let parse = |event: &str| {
            let (name, data) = event.split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        };
        text.split("\n\n").filter(|event| !event.is_empty()).map(parse).collect()
    }

    /// Waits until the engine is idle and holds no blocks.
    async fn idle(&self) {
        for _ in 0..500 {
            let stats = self.llm.engine().stats();
            if stats.running == 0 && stats.waiting == 0 && stats.kv_blocks_used == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine does not come to rest: {:?}", self.llm.engine().stats());
    }
}
