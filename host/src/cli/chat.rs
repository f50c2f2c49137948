//! `host chat`: a conversation with a running server, in the terminal. Answers appear as they are generated; Ctrl-C
//! stops an answer, and between answers the program.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use axum::http::Method;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::client::{Client, Events};

const HELP: &str = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer.";

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The server
    #[arg(
        long,
        alias = "base-url",
        env = "HOST_BASE_URL",
        default_value = "http://127.0.0.1:8000",
        value_name = "URL"
    )]
    url: String,
    /// Model to talk to [default: the first that the server names]
    #[arg(long, alias = "model", value_name = "NAME")]
    model_name: Option<String>,
    /// Key of the server
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    /// Ask this, print the answer, and end
    #[arg(short, long, value_name = "TEXT")]
    quick: Option<String>,
    /// The most tokens of an answer
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u64>,
    /// 0: always the most likely token
    #[arg(long)]
    temperature: Option<f64>,
}

/// What Ctrl-C means at the moment.
#[derive(Default)]
struct Interrupt {
    answering: AtomicBool,
    stop: Notify,
}

impl Interrupt {
    /// Takes Ctrl-C from now on: between answers it ends the program, as if nobody took it.
    fn watch(self: Arc<Self>, runtime: &Runtime) {
        runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if !self.answering.load(Ordering::SeqCst) {
                    eprintln!();
                    std::process::exit(130);
                }
                self.stop.notify_one();
            }
        });
    }

    /// Runs `work` as something that Ctrl-C stops; None if it did.
    async fn or_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            result = work => Some(result),
            () = self.stop.notified() => None,
        }
    }

    fn begin(&self) {
        // One that came when the last answer had just ended stops nothing.
        let _ = self.stop.notified().now_or_never();
        self.answering.store(true, Ordering::SeqCst);
    }

    fn end(&self) {
        self.answering.store(false, Ordering::SeqCst);
    }
}

/// How an answer ended.
#[derive(Default)]
struct Answer {
    text: String,
    tokens: u64,
    seconds: f64,
    stopped: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let interrupt = Arc::new(Interrupt::default());
    let client = Client::new(&args.url, args.api_key.clone())?;
    let model = match &args.model_name {
        Some(name) => name.clone(),
        None => runtime.block_on(client.first_model())?,
    };
    let system = args.system_prompt.iter().map(|text| json!({"role": "system", "content": text}));
    let mut messages: Vec<Value> = system.collect();
    if let Some(question) = &args.quick {
        messages.push(json!({"role": "user", "content": question}));
        runtime.block_on(ask(&args, &client, &model, &messages, &interrupt))?;
        return Ok(());
    }
    // Piped input is a script, not a conversation: no prompts, no figures.
    let talking = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if talking {
        eprintln!("{model} at {}. {HELP}", args.url);
        Arc::clone(&interrupt).watch(&runtime);
    }
    let begin = messages.len();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if talking {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        let Some(line) = lines.next().transpose()? else { break };
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => break,
            "/help" => eprintln!("{HELP}"),
            "/clear" => messages.truncate(begin),
            question => {
                messages.push(json!({"role": "user", "content": question}));
                interrupt.begin();
                let answer = runtime.block_on(ask(&args, &client, &model, &messages, &interrupt));
                interrupt.end();
                match answer {
                    Ok(answer) => {
                        if talking {
                            let rate = answer.tokens as f64 / answer.seconds.max(1e-9);
                            let stopped = if answer.stopped { ", stopped" } else { "" };
                            eprintln!("[{} tokens, {rate:.1} a second{stopped}]", answer.tokens);
                        }
                        messages.push(json!({"role": "assistant", "content": answer.text}));
                    }
                    // The question may be asked again; it is not part of the conversation.
                    Err(error) if talking => {
                        eprintln!("error: {}", super::explain(&error));
                        messages.pop();
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

/// Sends the conversation and prints the answer as it comes.
async fn ask(
    args: &Args,
    client: &Client,
    model: &str,
    messages: &[Value],
    interrupt: &Interrupt,
) -> anyhow::Result<Answer> {
    let mut body = json!({
        "model": model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
    });
    if let Some(tokens) = args.max_tokens {
        body["max_tokens"] = json!(tokens);
    }
    if let Some(temperature) = args.temperature {
        body["temperature"] = json!(temperature);
    }
    let start = Instant::now();
    let (mut events, mut out) = (Events::default(), std::io::stdout());
    let mut answer = Answer::default();
    let reply = async { client.send(Method::POST, "/v1/chat/completions", Some(&body)).await?.success().await };
    let mut reply = interrupt.or_stopped(reply).await.transpose()?;
    answer.stopped = reply.is_none();
    while let Some(reply) = &mut reply {
        let Some(bytes) = interrupt.or_stopped(reply.chunk()).await else {
            answer.stopped = true;
            break;
        };
        let Some(bytes) = bytes? else { break };
        events.push(&bytes);
        while let Some(event) = events.next_event() {
            if event == "[DONE]" {
                continue;
            }
            let chunk: Value = serde_json::from_str(&event).with_context(|| format!("not JSON: {event}"))?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                bail!("{message}");
            }
            if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
                answer.tokens = tokens;
            }
            let delta = &chunk["choices"][0]["delta"];
            for text in [&delta["reasoning_content"], &delta["content"]].into_iter().filter_map(Value::as_str) {
                write!(out, "{text}")?;
                out.flush()?;
            }
            // What the model thought is not repeated to it.
            answer.text.push_str(delta["content"].as_str().unwrap_or_default());
        }
    }
    writeln!(out)?;
    answer.seconds = start.elapsed().as_secs_f64();
    Ok(answer)
}
