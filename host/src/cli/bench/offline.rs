//! `host bench latency` and `host bench throughput`: the engine alone, without HTTP.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use super::Random;
use super::figures::Figures;
use crate::cli::args::ModelArgs;
use crate::llm::{Llm, Prompt, RequestParams};

#[derive(clap::Args, Debug)]
pub(super) struct LatencyArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    lengths: Lengths,
    /// Prompts at once
    #[arg(long, default_value_t = 8, value_name = "N", help_heading = "Benchmark")]
    batch_size: usize,
    /// Runs that are not counted
    #[arg(long, default_value_t = 10, value_name = "N", help_heading = "Benchmark")]
    num_iters_warmup: usize,
    /// Runs that are
    #[arg(long, default_value_t = 30, value_name = "N", help_heading = "Benchmark")]
    num_iters: usize,
}

#[derive(clap::Args, Debug)]
pub(super) struct ThroughputArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    lengths: Lengths,
    /// Prompts in all
    #[arg(long, default_value_t = 1000, value_name = "N", help_heading = "Benchmark")]
    num_prompts: usize,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Benchmark")]
struct Lengths {
    /// Tokens of a prompt, random ones
    #[arg(long, default_value_t = 32, value_name = "TOKENS")]
    input_len: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    output_len: usize,
    /// Of the prompts
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

/// A model, and how random prompts are made for it.
struct Bench {
    llm: Llm,
    random: Random,
    params: RequestParams,
    input: usize,
}

impl Bench {
    fn new(model: &ModelArgs, lengths: &Lengths) -> anyhow::Result<Bench> {
        crate::cli::start_log(&model.log, "warn")?;
        let mut options = model.options()?;
        // All prompts are ours; none is turned away.
        options.max_waiting = options.max_waiting.max(1 << 20);
        let llm = Llm::load(&options)?;
        let (input, output) = (lengths.input_len, lengths.output_len);
        ensure!(input >= 1 && output >= 1, "--input-len and --output-len are at least 1");
        let most = llm.engine().max_request_tokens();
        ensure!(
            input + output <= most,
            "--input-len {input} and --output-len {output} are more than the {most} tokens of a request; lower them"
        );
        let params = RequestParams {
            max_tokens: Some(output),
            ignore_eos: true,
            temperature: 1.0,
            detokenize: false,
            ..RequestParams::default()
        };
        Ok(Bench { llm, random: Random(lengths.seed), params, input })
    }

    fn prompts(&mut self, count: usize) -> Vec<Prompt> {
        let vocab = self.llm.info().vocab_size;
        let mut prompt = || Prompt::Tokens((0..self.input).map(|_| self.random.below(vocab) as u32).collect());
        (0..count).map(|_| prompt()).collect()
    }

    /// Seconds for these prompts, and tokens that came.
    fn time(&self, prompts: Vec<Prompt>) -> anyhow::Result<(f64, usize)> {
        let start = Instant::now();
        let completions = self.llm.generate(prompts, &self.params)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok((seconds, completions.iter().map(|completion| completion.token_ids().len()).sum()))
    }
}

fn save(path: Option<&PathBuf>, figures: &serde_json::Value) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, format!("{figures:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn latency(args: LatencyArgs) -> anyhow::Result<()> {
    const PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];
    ensure!(args.num_iters >= 1 && args.batch_size >= 1, "--num-iters and --batch-size are at least 1");
    let mut bench = Bench::new(&args.model, &args.lengths)?;
    let mut latencies = Vec::new();
    for run in 0..args.num_iters_warmup + args.num_iters {
        // New prompts each time: the prefix cache must not help.
        let prompts = bench.prompts(args.batch_size);
        let (seconds, _) = bench.time(prompts)?;
        if run >= args.num_iters_warmup {
            latencies.push(seconds);
        }
    }
    let figures = Figures::new(latencies.clone());
    println!("Avg latency: {} seconds", figures.mean());
    let mut percentiles = serde_json::Map::new();
    for percent in PERCENTILES {
        println!("{percent}% percentile latency: {} seconds", figures.percentile(percent));
        percentiles.insert(format!("{percent}"), json!(figures.percentile(percent)));
    }
    let result = json!({"avg_latency": figures.mean(), "latencies": latencies, "percentiles": percentiles});
    save(args.lengths.output_json.as_ref(), &result)
}

pub(super) fn throughput(args: ThroughputArgs) -> anyhow::Result<()> {
    ensure!(args.num_prompts >= 1, "--num-prompts is at least 1");
    let mut bench = Bench::new(&args.model, &args.lengths)?;
    let prompts = bench.prompts(args.num_prompts);
    let (seconds, output) = bench.time(prompts)?;
    let input = args.num_prompts * args.lengths.input_len;
    let (requests, total) = (args.num_prompts as f64 / seconds, (input + output) as f64 / seconds);
    println!(
        "Throughput: {requests:.2} requests/s, {total:.2} total tokens/s, {:.2} output tokens/s",
        output as f64 / seconds
    );
    println!("Total num prompt tokens:  {input}");
    println!("Total num output tokens:  {output}");
    let result = json!({
        "elapsed_time": seconds,
        "num_requests": args.num_prompts,
        "total_num_tokens": input + output,
        "requests_per_second": requests,
        "tokens_per_second": total,
        "output_tokens_per_second": output as f64 / seconds,
    });
    save(args.lengths.output_json.as_ref(), &result)
}
