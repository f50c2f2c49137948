//! `host generate`: prompts in, text out, in one batch; the counterpart of vLLM's `LLM.generate`.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::ModelArgs;
use crate::llm::{Completion, Llm, Prompt, RequestParams};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Prompts")]
struct InputArgs {
    /// A prompt; may be repeated
    #[arg(short, long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file with one prompt a line; `-` is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A prompt as token ids, e.g. 1,2,3; may be repeated
    #[arg(long, value_name = "IDS", value_parser = token_ids)]
    prompt_token_ids: Vec<Tokens>,
    /// Take prompts as messages of a user and apply the model's chat template
    #[arg(long, conflicts_with = "prompt_token_ids")]
    chat: bool,
    /// System message for --chat
    #[arg(long, requires = "chat", value_name = "TEXT")]
    system: Option<String>,
    /// Print one JSON object a prompt, with token ids and finish reasons
    #[arg(long)]
    json: bool,
}

/// The same names and meanings as in requests; without a flag, generation_config.json decides.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// The most tokens to generate [default: 16; with --chat what fits]
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<usize>,
    /// Tokens before which the text does not end
    #[arg(long, value_name = "TOKENS")]
    min_tokens: Option<usize>,
    /// 0: always the most likely token
    #[arg(long)]
    temperature: Option<f32>,
    /// Sample from the most likely tokens that have this much probability together
    #[arg(long)]
    top_p: Option<f32>,
    /// Sample from this many tokens; 0: all
    #[arg(long, allow_hyphen_values = true)]
    top_k: Option<i64>,
    /// Leave out tokens below this share of the best one's probability
    #[arg(long)]
    min_p: Option<f32>,
    /// Lowers tokens that were generated before
    #[arg(long, allow_hyphen_values = true)]
    presence_penalty: Option<f32>,
    /// Lowers tokens by how often they were generated
    #[arg(long, allow_hyphen_values = true)]
    frequency_penalty: Option<f32>,
    /// Divides the logits of tokens in prompt and output
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// Makes sampling repeatable
    #[arg(long, allow_hyphen_values = true)]
    seed: Option<i64>,
    /// Ends the text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after end-of-sequence tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Completions a prompt
    #[arg(short, default_value_t = 1)]
    n: usize,
}

/// Token ids of one prompt; a type of its own, since clap reads a `Vec` as a repeated flag.
#[derive(Debug, Clone)]
struct Tokens(Vec<u32>);

fn token_ids(text: &str) -> Result<Tokens, String> {
    let id = |word: &str| word.trim().parse().map_err(|_| format!("`{word}` is not a token id"));
    text.split(',').map(id).collect::<Result<Vec<u32>, _>>().map(Tokens)
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    // The text is what was asked for.
    super::start_log(&args.model.log, "warn")?;
    let texts = texts(&args.input)?;
    let llm = Llm::load(&args.model.options()?)?;
    let params = params(&args, &llm);
    let prompts = prompts(&args.input, &llm, &texts)?;
    let bar = ProgressBar::new(prompts.len() as u64).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} prompts {elapsed}").unwrap_or(ProgressStyle::default_bar()),
    );
    if prompts.len() < 2 || !std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let answers = llm.generate_with(prompts, &params, &mut |done, _| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    print(&args.input, &texts, &answers, llm.tokenizer().is_none())
}

/// The prompts that are text, in order.
fn texts(input: &InputArgs) -> anyhow::Result<Vec<String>> {
    let mut texts = input.prompt.clone();
    if let Some(path) = &input.prompt_file {
        let content = if path.as_os_str() == "-" {
            let mut content = String::new();
            std::io::stdin().read_to_string(&mut content).context("cannot read standard input")?;
            content
        } else {
            std::fs::read_to_string(path).with_context(|| format!("--prompt-file {}", path.display()))?
        };
        texts.extend(content.lines().filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if texts.is_empty() && input.prompt_token_ids.is_empty() {
        bail!("there is no prompt: give one with -p, --prompt-file or --prompt-token-ids");
    }
    Ok(texts)
}

fn params(args: &Args, llm: &Llm) -> RequestParams {
    let s = &args.sampling;
    let base = llm.default_params();
    RequestParams {
        max_tokens: s.max_tokens.or(base.max_tokens).or((!args.input.chat).then_some(16)),
        min_tokens: s.min_tokens.unwrap_or(base.min_tokens),
        temperature: s.temperature.unwrap_or(base.temperature),
        top_p: s.top_p.unwrap_or(base.top_p),
        top_k: s.top_k.unwrap_or(base.top_k),
        min_p: s.min_p.unwrap_or(base.min_p),
        presence_penalty: s.presence_penalty.unwrap_or(base.presence_penalty),
        frequency_penalty: s.frequency_penalty.unwrap_or(base.frequency_penalty),
        repetition_penalty: s.repetition_penalty.unwrap_or(base.repetition_penalty),
        seed: s.seed,
        stop: s.stop.clone(),
        ignore_eos: s.ignore_eos,
        n: s.n,
        // A chat template writes the special tokens itself.
        add_special_tokens: !args.input.chat,
        ..base
    }
}

fn prompts(input: &InputArgs, llm: &Llm, texts: &[String]) -> anyhow::Result<Vec<Prompt>> {
    let mut prompts = Vec::with_capacity(texts.len());
    for text in texts {
        prompts.push(Prompt::Text(if input.chat { chat(input, llm, text)? } else { text.clone() }));
    }
    prompts.extend(input.prompt_token_ids.iter().map(|ids| Prompt::Tokens(ids.0.clone())));
    Ok(prompts)
}

fn chat(input: &InputArgs, llm: &Llm, text: &str) -> anyhow::Result<String> {
    let template = llm
        .tokenizer()
        .and_then(|t| t.chat_template())
        .context("--chat: the model has no chat template; give one with --chat-template")?;
    let system = input.system.iter().map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> = system.chain([json!({"role": "user", "content": text})]).collect();
    Ok(template.render(&messages, true, None, &serde_json::Map::new())?)
}

fn print(input: &InputArgs, texts: &[String], answers: &[Completion], as_ids: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (i, answer) in answers.iter().enumerate() {
        let prompt = texts.get(i);
        for choice in &answer.choices {
            let reason = choice.finish.as_ref().map(|f| f.reason.as_str());
            if input.json {
                let line = json!({
                    "prompt": prompt, "prompt_token_ids": answer.prompt_token_ids, "index": choice.index,
                    "text": choice.text, "token_ids": choice.token_ids, "finish_reason": reason,
                });
                writeln!(out, "{line}")?;
            } else if as_ids {
                let ids: Vec<String> = choice.token_ids.iter().map(u32::to_string).collect();
                writeln!(out, "{}", ids.join(","))?;
            } else if input.chat || answers.len() == 1 {
                writeln!(out, "{}", choice.text.trim_start_matches('\n'))?;
            } else {
                writeln!(out, "{}{}", prompt.map_or("", String::as_str), choice.text)?;
            }
        }
    }
    Ok(())
}
