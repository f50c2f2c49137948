//! `host inspect`: what a model is made of, without running it.

use std::io::Write;

use super::args::ModelArgs;
use crate::exec::BLOCK_SIZE;
use crate::exec::cpu::{Call, LowerError, Plan, QuantSummary};
use crate::graph::PASSES;
use crate::llm::Blueprint;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Show")]
struct ShowArgs {
    /// The graph as the plugin built it
    #[arg(long)]
    graph: bool,
    /// The graph after the passes
    #[arg(long)]
    optimised: bool,
    /// The kernel calls of a step
    #[arg(long)]
    plan: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    super::start_log(&args.model.log, "warn")?;
    let options = args.model.options()?;
    let blueprint = Blueprint::draw(&options)?;
    let mut out = std::io::stdout().lock();
    summary(&blueprint, &mut out)?;
    if args.show.graph {
        writeln!(out, "\n{}", blueprint.model.to_text())?;
    }
    if args.show.optimised {
        let passes: Vec<&str> = PASSES.iter().map(|p| p.name).collect();
        writeln!(out, "\n# after {}\n{}", passes.join(", "), blueprint.graph.to_text())?;
    }
    if args.show.plan {
        let (_, plan) = blueprint.plan()?;
        writeln!(out, "\n{plan}")?;
    }
    Ok(())
}

fn summary(b: &Blueprint, out: &mut dyn Write) -> anyhow::Result<()> {
    let weights = &b.checkpoint.weights;
    let parameters: usize = weights.describe().map(|(_, _, shape)| shape.iter().product::<usize>()).sum();
    let decode = b.model.graphs.get("decode");
    writeln!(out, "model           {}", b.checkpoint.name)?;
    writeln!(out, "architecture    {}", b.model.architecture)?;
    writeln!(
        out,
        "plugin          {} {} ({}), {}",
        b.plugin.description.name,
        b.plugin.description.version,
        b.plugin.kind(),
        b.plugin.path.display()
    )?;
    if let (Some(dir), Some(version)) = (&b.sources.transformers, &b.sources.transformers_version) {
        writeln!(out, "transformers    {version}, {}", dir.display())?;
    }
    if let Some(code) = &b.sources.model_code {
        writeln!(out, "model's code    {} files of {}", code.files.len(), code.dir.display())?;
    }
    writeln!(
        out,
        "parameters      {:.1} M in {} tensors, {}",
        parameters as f64 / 1e6,
        weights.len(),
        bytes(weights.total_bytes())
    )?;
    writeln!(out, "dtype           {}, KV cache {}", b.dtype.name(), b.kv_cache_dtype.name())?;
    writeln!(out, "context length  {} tokens", b.model.context_length)?;
    writeln!(
        out,
        "tokenizer       {}",
        b.checkpoint.tokenizer.as_ref().map_or("none".into(), |t| format!("{} tokens", t.vocab_size()))
    )?;
    writeln!(
        out,
        "graph           {} nodes, {} after {} passes",
        decode.map_or(0, |g| g.nodes.len()),
        b.graph.nodes.len(),
        PASSES.len()
    )?;
    match b.plan() {
        Ok((graph, plan)) => {
            let QuantSummary { matrices, plain_bytes, bytes: taken } = b.quantised(&graph, &plan);
            if matrices > 0 {
                let (taken, plain) = (bytes(taken), bytes(plain_bytes));
                writeln!(out, "quantised       {matrices} matrices of linear layers, {taken} instead of {plain}")?;
            }
            planned(b, &plan, out)
        }
        Err(reason @ LowerError::NotBatchable { .. }) => {
            Ok(writeln!(out, "plan            none, it runs on the reference executor, slowly: {reason}")?)
        }
        Err(other) => Err(other.into()),
    }
}

fn planned(b: &Blueprint, plan: &Plan, out: &mut dyn Write) -> anyhow::Result<()> {
    let kv_bytes: usize = plan.states.iter().map(|s| b.kv_cache_dtype.bytes_per_token(s)).sum();
    let fallbacks = plan.calls.iter().filter(|c| matches!(c, Call::Reference { .. })).count();
    writeln!(
        out,
        "plan            {} kernel calls over {} buffers, {fallbacks} by the reference executor",
        plan.calls.len(),
        plan.buffers.len()
    )?;
    writeln!(
        out,
        "KV cache        {} attention states, {} a token, {} a block of {BLOCK_SIZE}, {} at the full context",
        plan.states.len(),
        bytes(kv_bytes as u64),
        bytes((kv_bytes * BLOCK_SIZE) as u64),
        bytes((kv_bytes as u64).saturating_mul(b.model.context_length)),
    )?;
    if !plan.slots.is_empty() {
        let elements = plan.slots.iter().fold(0usize, |sum, n| sum.saturating_add(*n));
        let each = bytes((elements as u64).saturating_mul(4));
        writeln!(out, "running state   {} states, {each} a sequence; no prefix caching", plan.slots.len())?;
    }
    Ok(())
}

fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}
