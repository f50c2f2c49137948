//! `host bench serve`: load on a server, and the figures of `vllm bench serve`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use axum::body::Bytes;
use axum::http::Method;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::Random;
use super::figures::Figures;
use super::load::{self, Job, Outcome};
use crate::client::Client;

/// What random prompts are made of.
const WORDS: &str = "the of and to a in is it you that he was for on are with as his they be at one have this from or \
    had by hot but some what there we can out other were all your when up use word how said an each she which do their \
    time if will way about many then them would write like so these her long make thing see him two has look more day";

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Server")]
pub(super) struct Args {
    /// The server
    #[arg(long, env = "HOST_BASE_URL", default_value = "http://127.0.0.1:8000", value_name = "URL")]
    base_url: String,
    /// Model to ask for [default: the first that the server names]
    #[arg(long)]
    model: Option<String>,
    /// Which API: completions (openai, vllm) or chat completions (openai-chat)
    #[arg(long, default_value = "openai", alias = "endpoint-type", value_parser = ["openai", "vllm", "openai-chat"])]
    backend: String,
    /// Key of the server
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    #[command(flatten)]
    prompts: Prompts,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    report: Report,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Prompts")]
struct Prompts {
    /// random, or custom: lines of JSON with `prompt` and perhaps `output_tokens`
    #[arg(long, default_value = "random", value_parser = ["random", "custom"])]
    dataset_name: String,
    /// File of --dataset-name custom
    #[arg(long, value_name = "FILE", required_if_eq("dataset_name", "custom"))]
    dataset_path: Option<PathBuf>,
    /// Requests in all
    #[arg(long, default_value_t = 1000, value_name = "N")]
    num_prompts: usize,
    /// Tokens of a random prompt; words where the server cannot tokenise for us
    #[arg(long, default_value_t = 1024, value_name = "TOKENS", alias = "input-len")]
    random_input_len: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128, value_name = "TOKENS", alias = "output-len")]
    random_output_len: usize,
    /// Lengths vary by this share, up and down
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    random_range_ratio: f64,
    /// Let answers end where the model ends them
    #[arg(long)]
    no_ignore_eos: bool,
    /// Sampling temperature
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Of prompts and arrivals
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Load")]
struct Load {
    /// Requests a second, at random times (Poisson); inf: all at once
    #[arg(long, default_value_t = f64::INFINITY, value_name = "RATE")]
    request_rate: f64,
    /// The most requests at once [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_concurrency: Option<u64>,
    /// Requests before the measured ones
    #[arg(long, default_value_t = 1, value_name = "N")]
    num_warmups: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Report")]
struct Report {
    /// Which latencies to show: ttft, tpot, itl, e2el
    #[arg(long, default_value = "ttft,tpot,itl", value_delimiter = ',', value_name = "NAMES")]
    percentile_metrics: Vec<String>,
    /// Which percentiles
    #[arg(long, default_value = "99", value_delimiter = ',', value_name = "NUMBERS")]
    metric_percentiles: Vec<f64>,
    /// Limits that make a request a good one, as NAME:MILLISECONDS, e.g. ttft:200 tpot:50
    #[arg(long, num_args = 1.., value_name = "NAME:MS")]
    goodput: Vec<String>,
    /// Write the figures as JSON
    #[arg(long)]
    save_result: bool,
    /// Write also what each request took
    #[arg(long, requires = "save_result")]
    save_detailed: bool,
    /// Into this folder
    #[arg(long, value_name = "DIR", requires = "save_result")]
    result_dir: Option<PathBuf>,
    /// Under this name [default: from model and time]
    #[arg(long, value_name = "FILE", requires = "save_result")]
    result_filename: Option<String>,
    /// Name of the run, in the file
    #[arg(long)]
    label: Option<String>,
    /// Show no progress
    #[arg(long)]
    disable_tqdm: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(bench(args))
}

async fn bench(args: Args) -> anyhow::Result<()> {
    let limits = goodput(&args.report.goodput)?;
    for name in &args.report.percentile_metrics {
        ensure!(
            NAMES.iter().any(|(short, ..)| short == name),
            "--percentile-metrics: `{name}` is none of ttft, tpot, itl, e2el"
        );
    }
    ensure!(args.load.request_rate > 0.0, "--request-rate is above 0, or inf");
    ensure!((0.0..1.0).contains(&args.prompts.random_range_ratio), "--random-range-ratio is at least 0 and below 1");
    let client = Client::new(&args.base_url, args.api_key.clone())?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => client.first_model().await?,
    };
    let chat = args.backend == "openai-chat";
    let path = if chat { "/v1/chat/completions" } else { "/v1/completions" };
    let mut random = Random(args.prompts.seed);
    let mut jobs = jobs(&args, &client, &model, &mut random).await?;
    let mut at = 0.0;
    for job in &mut jobs {
        job.at = Duration::from_secs_f64(at);
        if args.load.request_rate.is_finite() {
            at += -random.unit().ln() / args.load.request_rate;
        }
    }
    let copy = |job: &Job| Job { at: Duration::ZERO, body: job.body.clone(), prompt_tokens: job.prompt_tokens };
    let warm: Vec<Job> = jobs.iter().cycle().take(args.load.num_warmups).map(copy).collect();
    let (warmed, _) = load::run(&client, path, warm, None, Arc::default()).await;
    if let Some(error) = warmed.iter().find_map(|outcome| outcome.error.as_ref()) {
        let Prompts { random_input_len: input, random_output_len: output, dataset_path, .. } = &args.prompts;
        let lengths = match dataset_path {
            None => format!(
                " (prompts of {input} tokens and answers of {output}: --random-input-len and --random-output-len set them)"
            ),
            Some(_) => String::new(),
        };
        bail!("the first request failed: {error}{lengths}");
    }
    let done = Arc::new(AtomicUsize::new(0));
    let bar = if args.report.disable_tqdm { ProgressBar::hidden() } else { ProgressBar::new(jobs.len() as u64) };
    let watch = tokio::spawn({
        let (done, bar) = (done.clone(), bar.clone());
        async move {
            loop {
                bar.set_position(done.load(Ordering::Relaxed) as u64);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let most = args.load.max_concurrency.map(|n| n as usize);
    let (outcomes, seconds) = load::run(&client, path, jobs, most, done).await;
    watch.abort();
    bar.finish_and_clear();
    let measured = Measured::new(&outcomes, seconds, &limits);
    measured.print(&args);
    if args.report.save_result {
        save(&args, &model, &measured.json(&args, &model, path))?;
    }
    ensure!(!measured.good.is_empty(), "no request succeeded");
    Ok(())
}

/// The requests, as bytes: nothing but sending is left for the run.
async fn jobs(args: &Args, client: &Client, model: &str, random: &mut Random) -> anyhow::Result<Vec<Job>> {
    let options = &args.prompts;
    let chat = args.backend == "openai-chat";
    let body = |prompt: Value, output: usize, prompt_tokens: usize| {
        let mut body = json!({
            "model": model, "max_tokens": output, "temperature": options.temperature, "stream": true,
            "stream_options": {"include_usage": true},
        });
        if !options.no_ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        if chat {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
        } else {
            body["prompt"] = prompt;
        }
        Job { at: Duration::ZERO, body: Bytes::from(body.to_string()), prompt_tokens }
    };
    if let Some(path) = &options.dataset_path {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("--dataset-path {shown}"))?;
        let mut jobs = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let number = number + 1;
            let entry: Value = serde_json::from_str(line).with_context(|| format!("{shown}, line {number}"))?;
            let prompt = entry["prompt"].as_str().with_context(|| format!("{shown}, line {number}: no `prompt`"))?;
            let output = entry["output_tokens"].as_u64().map_or(options.random_output_len, |n| n as usize);
            jobs.push(body(json!(prompt), output, 0));
        }
        ensure!(!jobs.is_empty(), "{shown} has no prompts");
        jobs.truncate(options.num_prompts);
        return Ok(jobs);
    }
    let ids = if chat { Vec::new() } else { token_ids(client, model).await };
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut job = || {
        let input = random.length(options.random_input_len, options.random_range_ratio);
        let output = random.length(options.random_output_len, options.random_range_ratio);
        let prompt = match ids.len() {
            0 => json!((0..input).map(|_| words[random.below(words.len())]).collect::<Vec<_>>().join(" ")),
            n => json!((0..input).map(|_| ids[random.below(n)]).collect::<Vec<_>>()),
        };
        body(prompt, output, input)
    };
    Ok((0..options.num_prompts).map(|_| job()).collect())
}

/// Ids of common words, if the server tokenises: prompts of exactly so many tokens can be made of them.
async fn token_ids(client: &Client, model: &str) -> Vec<u64> {
    let body = json!({"model": model, "prompt": WORDS, "add_special_tokens": false});
    let answer = client.json(Method::POST, "/tokenize", Some(&body)).await.unwrap_or_default();
    answer["tokens"].as_array().map_or_else(Vec::new, |ids| ids.iter().filter_map(Value::as_u64).collect())
}

/// Short names, titles and what they measure.
const NAMES: [(&str, &str, &str); 4] = [
    ("ttft", "Time to First Token", "TTFT"),
    ("tpot", "Time per Output Token (excl. 1st token)", "TPOT"),
    ("itl", "Inter-token Latency", "ITL"),
    ("e2el", "End-to-end Latency", "E2EL"),
];

fn goodput(given: &[String]) -> anyhow::Result<HashMap<String, f64>> {
    let parse = |text: &String| {
        let (name, limit) = text.split_once(':').context("--goodput: expected NAME:MILLISECONDS, e.g. ttft:200")?;
        ensure!(["ttft", "tpot", "e2el"].contains(&name), "--goodput: `{name}` is none of ttft, tpot, e2el");
        let limit: f64 = limit.parse().with_context(|| format!("--goodput {text}"))?;
        Ok((name.to_owned(), limit / 1e3))
    };
    given.iter().map(parse).collect()
}

impl Outcome {
    /// Seconds for each token after the first.
    fn per_token(&self) -> Option<f64> {
        (self.output_tokens > 1).then(|| (self.latency - self.first) / (self.output_tokens - 1) as f64)
    }

    fn is_good(&self, limits: &HashMap<String, f64>) -> bool {
        let within = |name: &str, value: f64| limits.get(name).is_none_or(|limit| value <= *limit);
        within("ttft", self.first) && within("tpot", self.per_token().unwrap_or(0.0)) && within("e2el", self.latency)
    }
}

/// The most pieces in any second, and the most requests at once.
fn peaks(good: &[&Outcome]) -> (f64, usize) {
    let mut seconds: HashMap<u64, usize> = HashMap::new();
    let mut moments: Vec<(f64, i64)> = Vec::new();
    for outcome in good {
        outcome.times.iter().for_each(|time| *seconds.entry(*time as u64).or_default() += 1);
        moments.extend([(outcome.start, 1), (outcome.start + outcome.latency, -1)]);
    }
    moments.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    let (_, most) =
        moments.iter().fold((0i64, 0i64), |(now, most), (_, change)| (now + change, most.max(now + change)));
    (seconds.values().copied().max().unwrap_or(0) as f64, most.max(0) as usize)
}

/// What was measured.
struct Measured<'a> {
    outcomes: &'a [Outcome],
    good: Vec<&'a Outcome>,
    seconds: f64,
    input: usize,
    output: usize,
    /// Pieces in the best second, requests at once.
    peaks: (f64, usize),
    /// Good requests a second; None if nothing says what is good.
    goodput: Option<f64>,
}

impl<'a> Measured<'a> {
    fn new(outcomes: &'a [Outcome], seconds: f64, limits: &HashMap<String, f64>) -> Self {
        let good: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.error.is_none()).collect();
        let within = good.iter().filter(|outcome| outcome.is_good(limits)).count();
        Self {
            outcomes,
            seconds,
            input: good.iter().map(|outcome| outcome.prompt_tokens).sum(),
            output: good.iter().map(|outcome| outcome.output_tokens).sum(),
            peaks: peaks(&good),
            goodput: (!limits.is_empty()).then_some(within as f64 / seconds),
            good,
        }
    }

    fn rate(&self, count: usize) -> f64 {
        count as f64 / self.seconds
    }

    fn failed(&self) -> usize {
        self.outcomes.len() - self.good.len()
    }

    fn figures(&self, name: &str) -> Figures {
        let good = self.good.iter();
        Figures::new(match name {
            "ttft" => good.map(|outcome| outcome.first).collect(),
            "tpot" => good.filter_map(|outcome| outcome.per_token()).collect(),
            "itl" => good.flat_map(|outcome| outcome.gaps.iter().copied()).collect(),
            _ => good.map(|outcome| outcome.latency).collect(),
        })
    }

    fn print(&self, args: &Args) {
        let line = |name: &str, value: String| println!("{name:<40} {value:<10}");
        println!("{:=^50}", " Serving Benchmark Result ");
        line("Successful requests:", self.good.len().to_string());
        line("Failed requests:", self.failed().to_string());
        if let Some(most) = args.load.max_concurrency {
            line("Maximum request concurrency:", most.to_string());
        }
        if args.load.request_rate.is_finite() {
            line("Request rate configured (RPS):", format!("{:.2}", args.load.request_rate));
        }
        line("Benchmark duration (s):", format!("{:.2}", self.seconds));
        line("Total input tokens:", self.input.to_string());
        line("Total generated tokens:", self.output.to_string());
        line("Request throughput (req/s):", format!("{:.2}", self.rate(self.good.len())));
        if let Some(goodput) = self.goodput {
            line("Request goodput (req/s):", format!("{goodput:.2}"));
        }
        line("Output token throughput (tok/s):", format!("{:.2}", self.rate(self.output)));
        line("Peak output token throughput (tok/s):", format!("{:.2}", self.peaks.0));
        line("Peak concurrent requests:", self.peaks.1.to_string());
        line("Total token throughput (tok/s):", format!("{:.2}", self.rate(self.input + self.output)));
        let wanted = |name: &str| args.report.percentile_metrics.iter().any(|other| other == name);
        for (name, title, short) in NAMES.iter().filter(|(name, ..)| wanted(name)) {
            print!("{}", self.figures(name).lines(title, short, &args.report.metric_percentiles));
        }
        println!("{}", "=".repeat(50));
        if let Some(first) = self.outcomes.iter().find_map(|outcome| outcome.error.as_ref()) {
            println!("The first of {} errors: {first}", self.failed());
        }
    }

    /// The figures under vLLM's names.
    fn json(&self, args: &Args, model: &str, path: &str) -> Value {
        let finite = args.load.request_rate.is_finite();
        let mut result = Map::new();
        for (key, value) in [
            ("date", json!(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))),
            ("endpoint_type", json!(args.backend)),
            ("backend", json!(args.backend)),
            ("endpoint", json!(path)),
            ("label", json!(args.report.label)),
            ("model_id", json!(model)),
            ("num_prompts", json!(self.outcomes.len())),
            ("request_rate", if finite { json!(args.load.request_rate) } else { json!("inf") }),
            ("max_concurrency", json!(args.load.max_concurrency)),
            ("duration", json!(self.seconds)),
            ("completed", json!(self.good.len())),
            ("failed", json!(self.failed())),
            ("total_input_tokens", json!(self.input)),
            ("total_output_tokens", json!(self.output)),
            ("request_throughput", json!(self.rate(self.good.len()))),
            ("request_goodput", json!(self.goodput)),
            ("output_throughput", json!(self.rate(self.output))),
            ("total_token_throughput", json!(self.rate(self.input + self.output))),
            ("max_output_tokens_per_s", json!(self.peaks.0)),
            ("max_concurrent_requests", json!(self.peaks.1)),
        ] {
            result.insert(key.to_owned(), value);
        }
        for (name, ..) in NAMES {
            self.figures(name).add_to(&mut result, name, &args.report.metric_percentiles);
        }
        if args.report.save_detailed {
            let all = self.outcomes;
            result.insert("input_lens".into(), all.iter().map(|outcome| outcome.prompt_tokens).collect());
            result.insert("output_lens".into(), all.iter().map(|outcome| outcome.output_tokens).collect());
            result.insert("ttfts".into(), all.iter().map(|outcome| outcome.first).collect());
            result.insert("itls".into(), json!(all.iter().map(|outcome| &outcome.gaps).collect::<Vec<_>>()));
            result.insert("errors".into(), json!(all.iter().map(|outcome| &outcome.error).collect::<Vec<_>>()));
        }
        Value::Object(result)
    }
}

fn save(args: &Args, model: &str, result: &Value) -> anyhow::Result<()> {
    let report = &args.report;
    let name = report
        .result_filename
        .clone()
        .unwrap_or_else(|| format!("{}-{}-{}.json", args.backend, model.replace('/', "-"), result["date"]));
    let path = report.result_dir.clone().unwrap_or_default().join(name);
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    std::fs::write(&path, format!("{result:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    println!("The figures are in {}", path.display());
    Ok(())
}
