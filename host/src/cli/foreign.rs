//! Flags of `vllm serve` that mean something else here, or nothing: those that ask for what is so anyway are taken, the
//! others are refused with a reason instead of a guess at a typing mistake. `foreign/flags.txt` has all of vLLM 0.33's; a test
//! walks them and writes the table in `docs/compatibility.md`.

use std::ffi::OsString;

use clap::builder::{BoolishValueParser, PossibleValuesParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

/// Switches for what is always so.
const ALWAYS: [&str; 15] = [
    "async-scheduling",
    "disable-log-requests",
    "disable-log-stats",
    "enable-auto-tool-choice",
    "enable-chunked-prefill",
    "enable-prompt-tokens-details",
    "enable-request-id-headers",
    "enable-server-load-tracking",
    "enforce-eager",
    "no-enable-force-include-usage",
    "no-enable-log-requests",
    "no-enable-lora",
    "no-enable-expert-parallel",
    "no-enable-sleep-mode",
    "no-enable-prompt-embeds",
];

/// Flags of which only these values are so: name, short form, values, why others are refused.
const FIXED: [(&str, Option<char>, &[&str], &str); 24] = [
    ("tensor-parallel-size", None, &["1"], ONE_DEVICE),
    ("pipeline-parallel-size", None, &["1"], ONE_DEVICE),
    ("data-parallel-size", None, &["1"], ONE_DEVICE),
    ("decode-context-parallel-size", None, &["1"], ONE_DEVICE),
    ("prefill-context-parallel-size", None, &["1"], ONE_DEVICE),
    ("nnodes", Some('n'), &["1"], ONE_DEVICE),
    ("node-rank", Some('r'), &["0"], ONE_DEVICE),
    ("api-server-count", None, &["1"], "one process serves; it uses all cores"),
    ("load-format", None, &["auto", "safetensors"], "checkpoints are safetensors or GGUF files"),
    ("tokenizer-mode", None, &["auto", "hf"], TOKENIZER),
    ("config-format", None, &["auto", "hf"], "configurations are config.json"),
    ("block-size", None, &["16"], "blocks of the KV cache always have 16 tokens"),
    ("swap-space", None, &["0"], "sequences that lose their blocks are computed again"),
    ("cpu-offload-gb", None, &["0"], "weights are mapped: the system loads what is used"),
    (
        "scheduling-policy",
        None,
        &["fcfs", "priority"],
        "first come, first served, and priorities of requests always count",
    ),
    ("stream-interval", None, &["1"], "every token is sent when it is there"),
    ("logprobs-mode", None, &["raw_logprobs"], "log-probabilities are the model's own"),
    ("response-role", None, &["assistant"], "answers are the assistant's"),
    ("chat-template-content-format", None, &["auto"], "what the template wants is found out"),
    ("structured-outputs-backend", None, &["auto", "guidance"], "grammars are llguidance's"),
    ("prefix-caching-hash-algo", None, &["sha256"], "blocks are known by SHA-256"),
    (
        "max-num-partial-prefills",
        None,
        &["1"],
        "prompts share the tokens of a step in order; see --max-num-batched-tokens",
    ),
    ("mm-processor-cache-gb", None, &["0"], TEXT),
    ("fingerprint-mode", None, &["none"], "system_fingerprint is null"),
];

const ONE_DEVICE: &str = "one process computes on one device; run several servers behind a load balancer";
const NO_LORA: &str = "LoRA adapters are not supported; merge them into the checkpoint";
const NO_DRAFT: &str = "speculative decoding is not supported";
const TOKENIZER: &str = "the tokenizer is the model folder's tokenizer.json";
const TEXT: &str = "only text is supported";
const MOE: &str = "experts are computed where the rest of the model is";
const KERNELS: &str = "there is one set of kernels for a device; host inspect --plan shows what runs";
const NO_CAPTURE: &str = "nothing is captured or compiled at run time";
const NO_TRANSFER: &str = "the KV cache stays in this process";
const NO_PYTHON: &str = "no Python runs in the server";
const NEVER_LOGGED: &str = "prompts and outputs are never logged";
const STATES: &str = "running states are kept in float32, one slot a sequence";

/// The other flags of vLLM that are not here, by beginnings of their names, and why; the longest beginning counts.
const REFUSED: [(&str, &str); 146] = [
    ("--additional-config", "there are no other platforms"),
    ("--aggregate-engine-logging", ONE_DEVICE),
    ("--all2all-backend", ONE_DEVICE),
    ("--allow-deprecated-quantization", "a checkpoint's quantisation is known by its config.json"),
    ("--allowed-local-media-path", TEXT),
    ("--allowed-media-domains", TEXT),
    ("--anthropic-disabled-thinking-effort", "disabled thinking is enable_thinking: false for the template"),
    ("--attention", KERNELS),
    ("--aux-output-config", "answers have no further outputs"),
    ("--code-revision", "a model's code has the model's --revision"),
    ("--cohere", "there is no API of Cohere's but /rerank"),
    ("--collect-detailed-traces", "--otlp-traces-endpoint sends spans of requests only"),
    ("--compilation-config", "nothing is compiled; host inspect --plan shows what runs"),
    ("--cp-kv-cache-interleave-size", ONE_DEVICE),
    ("--cpu-distributed-timeout-seconds", ONE_DEVICE),
    ("--cpu-offload", "weights are mapped: the system loads what is used"),
    ("--cuda", NO_CAPTURE),
    ("--custom-histogram-buckets", "the buckets are vLLM's defaults"),
    ("--data-parallel", ONE_DEVICE),
    ("--dbo", ONE_DEVICE),
    ("--dcp", ONE_DEVICE),
    ("--default-mm-loras", NO_LORA),
    ("--device-ids", "--device cuda:N names one"),
    ("--device-memory-utilization", "write --gpu-memory-utilization"),
    ("--diffusion-config", TEXT),
    ("--disable-cascade-attn", KERNELS),
    ("--disable-chunked-mm-input", TEXT),
    ("--disable-custom-all-reduce", ONE_DEVICE),
    ("--disable-fastapi-docs", "/openapi.json is always there, behind the keys"),
    ("--disable-hybrid-kv-cache-manager", "windows and states are always kept by what they need"),
    ("--disable-nccl", ONE_DEVICE),
    ("--disable-sliding-window", "a model's windows are part of what it computes"),
    ("--distributed", ONE_DEVICE),
    ("--dp-", ONE_DEVICE),
    ("--ec-", NO_TRANSFER),
    ("--elastic-ep", ONE_DEVICE),
    ("--enable-", "this server does not have it"),
    ("--enable-ep", ONE_DEVICE),
    ("--enable-expert-parallel", ONE_DEVICE),
    ("--enable-force-include-usage", "requests ask for it with stream_options.include_usage"),
    ("--enable-log", NEVER_LOGGED),
    ("--enable-lora", NO_LORA),
    ("--enable-mixed-moe-lora-format", NO_LORA),
    ("--enable-moe", NO_LORA),
    ("--enable-prompt-embeds", "prompts are text or token ids"),
    ("--enable-scale-out", ONE_DEVICE),
    ("--enable-ssl-refresh", "restart the server when certificates change; it drains first"),
    ("--enable-tokenizer-info-endpoint", "the template can be seen at /v1/chat/completions/render"),
    ("--enable-tower", NO_LORA),
    ("--engram-config", MOE),
    ("--eplb-config", ONE_DEVICE),
    ("--exclude-tools-when-tool-choice-none", "leave tools out of requests that are not to show them"),
    ("--expert-placement-strategy", ONE_DEVICE),
    ("--fail-on-environ-validation", "an unknown variable has no effect"),
    ("--fault-tolerance-config", ONE_DEVICE),
    ("--fingerprint-value", "system_fingerprint is null"),
    ("--fully-sharded-loras", NO_LORA),
    ("--gdn-prefill-backend", KERNELS),
    ("--grpc", "there is no gRPC server"),
    ("--h11", "--max-body-size bounds requests; headers are bounded by the HTTP library"),
    ("--headless", ONE_DEVICE),
    ("--hf-config-path", "config.json is the model folder's"),
    ("--hf-overrides", "change config.json in the model's folder"),
    ("--hf-token", "set HF_TOKEN or HF_TOKEN_PATH"),
    ("--ignore-patterns", "only what is needed is fetched"),
    ("--interleave-mm-strings", TEXT),
    ("--io-processor-plugin", NO_PYTHON),
    ("--ir-op-priority", KERNELS),
    ("--jit", NO_CAPTURE),
    ("--kda", KERNELS),
    ("--kernel-config", KERNELS),
    ("--kv-", NO_TRANSFER),
    ("--kv-cache-dtype-skip-layers", "all layers keep the same type; see --kv-cache-dtype"),
    ("--kv-cache-metrics", "see the metrics of the prefix cache"),
    ("--language-model-only", TEXT),
    ("--limit-mm-per-prompt", TEXT),
    ("--linear-backend", KERNELS),
    ("--log-config-file", "see --log-level and --log-format"),
    ("--log-error-stack", "see --log-level debug"),
    ("--logging-config", "see --log-level and --log-format"),
    ("--logits-processors", NO_PYTHON),
    ("--long-prefill-token-threshold", "see --max-num-batched-tokens"),
    ("--lora", NO_LORA),
    ("--mamba", STATES),
    ("--master", ONE_DEVICE),
    ("--max-cpu-loras", NO_LORA),
    ("--max-cudagraph-capture-size", NO_CAPTURE),
    ("--max-log-len", NEVER_LOGGED),
    ("--max-lora", NO_LORA),
    ("--max-num-active-seqs", "see --max-num-seqs"),
    ("--max-num-scheduled-tokens", "see --max-num-batched-tokens"),
    ("--max-parallel-loading-workers", "weights are mapped, not read"),
    ("--media-io-kwargs", TEXT),
    ("--middleware", NO_PYTHON),
    ("--mm-", TEXT),
    ("--model", "the model comes without a flag: host serve MODEL"),
    ("--model-class-overrides", "--model-impl chooses the plugin"),
    ("--model-loader-extra-config", "weights are mapped, not read"),
    ("--moe", MOE),
    ("--no-enable-chunked-prefill", "long prompts always take several steps; see --max-num-batched-tokens"),
    ("--num-speculative-tokens", NO_DRAFT),
    ("--numa-bind", "start the server under numactl"),
    ("--offload", "weights are mapped: the system loads what is used"),
    ("--optimization-level", NO_CAPTURE),
    ("--per-request-spec-decode-metrics", NO_DRAFT),
    ("--performance-mode", "see --max-num-seqs and --max-num-batched-tokens"),
    ("--prefill-schedule-interval", "prompts share the tokens of a step in order; see --max-num-batched-tokens"),
    ("--prefix-cache-retention-interval", "cached blocks go when room is needed, the oldest first"),
    ("--prefix-match-unit", "prefixes are found by blocks of 16 tokens"),
    ("--profiler-config", "use perf; host bench measures"),
    ("--pt-load-map-location", "weights are mapped, not read"),
    ("--quantization-config", "a checkpoint's quantisation is known by its config.json"),
    ("--ray", ONE_DEVICE),
    ("--reasoning-config", "thinking budgets are not supported; see --reasoning-parser"),
    ("--reasoning-parser-plugin", NO_PYTHON),
    ("--renderer-num-workers", "prompts are rendered on as many threads as there are cores"),
    ("--replayssm-buffer-len", STATES),
    ("--return-sampling-mask", "answers have no further outputs"),
    ("--return-tokens-as-token-ids", "requests ask for it with the field of that name"),
    ("--root-path", "let the proxy strip the prefix"),
    ("--safetensors", "weights are mapped, not read"),
    ("--scheduler", "the scheduler is part of the program; see --max-num-seqs and --max-num-batched-tokens"),
    ("--show-hidden-metrics-for-version", "no metrics are hidden"),
    ("--skip-mm-profiling", TEXT),
    ("--sleep", "this server does not sleep; stop it"),
    ("--sparse-indexer-topk-backend", KERNELS),
    ("--spec", NO_DRAFT),
    ("--ssl-ciphers", "rustls has safe suites only"),
    ("--structured-outputs-config", "grammars are llguidance's; requests may set disable_any_whitespace"),
    ("--swa-bounded-replay", STATES),
    ("--task", "use --runner generate or --runner pooling"),
    ("--tokenizer", TOKENIZER),
    ("--tokens-only", "all endpoints are always there"),
    ("--tool-parser-plugin", NO_PYTHON),
    ("--tool-server", "tools are the client's to call"),
    ("--tool-strict-level", "forced calls always fit their schemas"),
    ("--trust-request-mm-kwargs", TEXT),
    ("--ubatch-size", ONE_DEVICE),
    ("--use-fp64-gumbel", "sampling does not add noise to logits"),
    ("--use-replayssm", STATES),
    ("--use-tqdm-on-load", "the log shows the phases of the start"),
    ("--video-pruning", TEXT),
    ("--watermark", "texts are not watermarked"),
    ("--weight-transfer-config", "weights are read once"),
    ("--worker", ONE_DEVICE),
    ("-q", "write --quantization int8 or int4"),
];

/// [`ALWAYS`] and [`FIXED`] as hidden arguments: the flags' list is long enough.
#[derive(Debug)]
pub(super) struct AlwaysArgs;

impl clap::Args for AlwaysArgs {
    fn augment_args(command: Command) -> Command {
        let switch = |name: &'static str| {
            Arg::new(name).long(name).hide(true).action(ArgAction::SetTrue).value_parser(BoolishValueParser::new())
        };
        let value = |(name, short, values, _): (&'static str, Option<char>, &'static [&'static str], &str)| {
            let parser = PossibleValuesParser::new(values);
            let arg = Arg::new(name).long(name).hide(true).action(ArgAction::Set).value_parser(parser);
            if let Some(short) = short { arg.short(short) } else { arg }
        };
        command.args(ALWAYS.map(switch)).args(FIXED.map(value))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for AlwaysArgs {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

/// vLLM's short forms of several letters, which clap would read as several switches.
const SHORT: [(&str, &str); 16] = [
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-ep", "--enable-expert-parallel"),
    ("-dcp", "--decode-context-parallel-size"),
    ("-pcp", "--prefill-context-parallel-size"),
    ("-asc", "--api-server-count"),
    ("-dpn", "--data-parallel-rank"),
    ("-dpr", "--data-parallel-start-rank"),
    ("-dpl", "--data-parallel-size-local"),
    ("-dpa", "--data-parallel-address"),
    ("-dpp", "--data-parallel-rpc-port"),
    ("-dpb", "--data-parallel-backend"),
    ("-dph", "--data-parallel-hybrid-lb"),
    ("-dpe", "--data-parallel-external-lb"),
    ("-dpm", "--data-parallel-multi-port-external-lb"),
];

/// The command line with [`SHORT`] forms spelt out.
pub(super) fn spelt_out(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let long = |arg: OsString| {
        let text = arg.to_str().unwrap_or_default();
        let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
        let found = SHORT.iter().find(|(short, _)| *short == name);
        found.map_or(arg.clone(), |(_, long)| format!("{long}{value}").into())
    };
    args.map(long).collect()
}

/// What to say about a command line that clap refused, if it is one of these flags.
pub(super) fn reason(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    // vLLM takes underscores for hyphens; so does this, for an answer about the flag and not about the hyphens.
    let flag = given.split(['=', ' ']).next().unwrap_or(given).replace('_', "-");
    match error.kind() {
        ErrorKind::InvalidValue => {
            let (_, _, values, why) = FIXED.iter().find(|(name, ..)| flag.strip_prefix("--") == Some(name))?;
            Some(format!("{flag} can only be {} here: {why}", values.join(" or ")))
        }
        ErrorKind::UnknownArgument => unsupported(&flag, given),
        _ => None,
    }
}

/// What to say about a key of a configuration file that no flag here has, if it is one of vLLM's.
pub(super) fn key_reason(key: &str) -> Option<String> {
    unsupported(&format!("--{}", key.replace('_', "-")), key)
}

fn unsupported(flag: &str, given: &str) -> Option<String> {
    refused(flag).map(|why| match why {
        "" => format!("{given} asks for what is so anyway; leave it out"),
        _ => format!("{given} is a flag of vLLM that host does not have: {why}"),
    })
}

/// Why this flag is refused, if it is one of vLLM's; empty if it only says that something is off that does not exist.
fn refused(flag: &str) -> Option<&'static str> {
    let known = include_str!("foreign/flags.txt").split_whitespace();
    let named = |flag: &str| {
        let beginnings = REFUSED.iter().filter(|(name, _)| flag.starts_with(name));
        beginnings.max_by_key(|(name, _)| name.len()).map(|(_, why)| *why)
    };
    if known.clone().any(|name| name == flag) || REFUSED.iter().any(|(name, _)| *name == flag) {
        return Some(named(flag).unwrap_or("it has no meaning for this server"));
    }
    let positive = flag.replacen("--no-", "--", 1);
    known.clone().any(|name| flag != positive && name == positive).then_some("")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;
    use crate::test_pages;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(spelt_out(["host", "serve"].iter().chain(words).map(OsString::from)))
    }

    fn own(flag: &str) -> bool {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("the command");
        let long = flag.strip_prefix("--");
        serve.get_arguments().any(|arg| {
            arg.get_long().is_some_and(|name| Some(name) == long)
                || arg.get_all_aliases().into_iter().flatten().any(|name| Some(name) == long)
                || flag
                    .strip_prefix('-')
                    .is_some_and(|short| arg.get_short().map(String::from).as_deref() == Some(short))
        })
    }

    #[test]
    fn every_flag_of_vllm_is_known_or_refused_with_a_reason() {
        let (mut supported, mut taken, mut rest) = (Vec::new(), Vec::new(), String::new());
        for flag in include_str!("foreign/flags.txt").split_whitespace() {
            let name = flag.trim_start_matches('-');
            // What a short form of several letters stands for.
            let name = SHORT.iter().find(|(short, _)| *short == flag).map_or(name, |(_, long)| &long[2..]);
            if let Some((_, _, values, _)) = FIXED
                .iter()
                .find(|(fixed, short, ..)| *fixed == name || short.is_some_and(|short| flag == format!("-{short}")))
            {
                assert!(parse(&[flag, values[0]]).is_ok(), "{flag}");
                let error = parse(&[flag, "another"]).expect_err(flag);
                assert!(reason(&error).is_some_and(|text| text.contains(values[0])), "{flag}: {error}");
                taken.push(format!("`{flag} {}`", values.join("|")));
            } else if ALWAYS.contains(&name) {
                assert!(parse(&[flag]).is_ok(), "{flag}");
                taken.push(format!("`{flag}`"));
            } else if own(flag) {
                supported.push(format!("`{flag}`"));
            } else {
                let error = parse(&[flag]).expect_err(flag);
                let text = reason(&error).unwrap_or_else(|| panic!("{flag}: {error}"));
                assert!(text.contains(name), "{text}");
                let long = if name == flag.trim_start_matches('-') { flag.to_owned() } else { format!("--{name}") };
                writeln!(rest, "| `{flag}` | {} |", refused(&long).expect("a reason")).expect("writes");
            }
        }
        let (supported, taken) = (supported.join(", "), taken.join(", "));
        let text = format!(
            "Supported: {supported}.\n\nTaken, since it is so anyway: {taken}.\n\n| refused | because |\n|---|---|\n{rest}"
        );
        test_pages::holds("docs/compatibility.md", "flags", &text);
    }

    #[test]
    fn what_is_off_anyway_can_be_left_out() {
        let error = parse(&["--no-enable-eplb"]).expect_err("is refused");
        assert!(reason(&error).expect("a reason").contains("leave it out"), "{error}");
    }
}
