//! Flags of `vllm serve` that mean something else here, or nothing: those that say what is so anyway are taken, the
//! others are refused with a reason instead of a guess at a typing mistake.

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Switches for what is always so. They are hidden: the flags' list is long enough.
#[derive(clap::Args, Debug)]
pub(super) struct AlwaysArgs {
    /// Long prompts take several steps
    #[arg(long, hide = true, value_parser = BoolishValueParser::new())]
    enable_chunked_prefill: bool,
    /// Answers carry X-Request-Id
    #[arg(long, hide = true, value_parser = BoolishValueParser::new())]
    enable_request_id_headers: bool,
    /// GET /load counts
    #[arg(long, hide = true, value_parser = BoolishValueParser::new())]
    enable_server_load_tracking: bool,
    /// usage has prompt_tokens_details
    #[arg(long, hide = true, value_parser = BoolishValueParser::new())]
    enable_prompt_tokens_details: bool,
    /// Prompts are never logged
    #[arg(long, hide = true, alias = "disable-log-requests", value_parser = BoolishValueParser::new())]
    no_enable_log_requests: bool,
    /// No statistics are logged
    #[arg(long, hide = true, value_parser = BoolishValueParser::new())]
    disable_log_stats: bool,
    /// Nothing is captured or compiled
    #[arg(long, hide = true, value_parser = BoolishValueParser::new())]
    enforce_eager: bool,
}

const ONE_DEVICE: &str = "one process computes on one device; run several servers behind a load balancer";
const NO_LORA: &str = "LoRA adapters are not supported; merge them into the checkpoint";
const NO_DRAFT: &str = "speculative decoding is not supported";

/// vLLM's flags that are not here, and why.
const REFUSED: [(&str, &str); 30] = [
    ("--tensor-parallel-size", ONE_DEVICE),
    ("-tp", ONE_DEVICE),
    ("--pipeline-parallel-size", ONE_DEVICE),
    ("--data-parallel-size", ONE_DEVICE),
    ("--enable-expert-parallel", ONE_DEVICE),
    ("--distributed-executor-backend", ONE_DEVICE),
    ("--api-server-count", "one process serves; it uses all cores"),
    ("--enable-lora", NO_LORA),
    ("--lora-modules", NO_LORA),
    ("--max-loras", NO_LORA),
    ("--max-lora-rank", NO_LORA),
    ("--speculative-config", NO_DRAFT),
    ("--spec-model", NO_DRAFT),
    ("-q", "write --quantization int8 or int4"),
    ("--task", "use --runner generate or --runner pooling"),
    ("--load-format", "checkpoints are safetensors files"),
    ("--model", "the model comes without a flag: host serve MODEL"),
    ("--tokenizer", "the tokenizer is the model folder's tokenizer.json"),
    ("--tokenizer-mode", "the tokenizer is the model folder's tokenizer.json"),
    ("--block-size", "blocks of the KV cache always have 16 tokens"),
    ("--swap-space", "sequences that lose their blocks are computed again"),
    ("--cpu-offload-gb", "weights are mapped: the system loads what is used"),
    ("--enable-log-requests", "prompts and outputs are never logged"),
    ("--no-enable-chunked-prefill", "long prompts always take several steps; see --max-num-batched-tokens"),
    ("--root-path", "let the proxy strip the prefix"),
    ("--middleware", "no Python runs in the server"),
    ("--ssl-ciphers", "rustls has safe suites only"),
    ("--enable-ssl-refresh", "restart the server when certificates change; it drains first"),
    ("--limit-mm-per-prompt", "only text is supported"),
    ("--compilation-config", "nothing is compiled; host inspect --plan shows what runs"),
];

/// What to say about a command line that clap refused, if it is one of these flags.
pub(super) fn reason(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    // vLLM takes underscores for hyphens; so does this, for an answer about the flag and not about the hyphens.
    let flag = given.split('=').next().unwrap_or(given).replace('_', "-");
    let (_, reason) = REFUSED.iter().find(|(name, _)| *name == flag)?;
    Some(format!("{given} is a flag of vLLM that host does not have: {reason}"))
}
