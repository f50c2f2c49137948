//! Metrics that the engine counts itself, read when scraped, and those of the process that Prometheus' clients give.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::engine::{STEP_BUCKETS, Stats};
use crate::exec::BLOCK_SIZE;
use crate::llm::Llm;

/// Reads the engine's own counters.
pub(super) struct EngineCollector(pub(super) Llm);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCollector")
    }
}

type Labels<'a> = &'a [(&'a str, &'a str)];

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[(Labels<'_>, f64)]) -> fmt::Result {
    let name = format!("vllm:{name}");
    let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[(Labels<'_>, u64)]) -> fmt::Result {
    let name = format!("vllm:{name}");
    let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
    for (labels, value) in rows {
        ConstCounter::new(*value).encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let engine = self.0.engine();
        let stats = engine.stats();
        let out = &mut encoder;
        gauges(out, &stats)?;
        counters(out, &stats)?;
        let config = engine.config();
        // vLLM's labels, with vLLM's spelling of values; its `gpu` blocks are the blocks of the device that computes.
        let (blocks, block_size) = (config.kv_blocks.to_string(), BLOCK_SIZE.to_string());
        let caching = if config.enable_prefix_caching { "True" } else { "False" };
        let labels: Labels<'_> = &[
            ("block_size", &block_size),
            ("cache_dtype", &self.0.info().kv_cache_dtype),
            ("enable_prefix_caching", caching),
            ("num_gpu_blocks", &blocks),
            ("num_cpu_blocks", "None"),
        ];
        gauge(out, "cache_config_info", "How the KV cache is set up", &[(labels, 1.0)])?;
        let buckets: Vec<(f64, u64)> =
            STEP_BUCKETS.iter().map(|&bound| bound as f64).chain([f64::INFINITY]).zip(stats.step_tokens).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let mut metric = out.encode_descriptor(
            "vllm:iteration_tokens_total",
            "Tokens of an engine step",
            None,
            MetricType::Histogram,
        )?;
        metric.encode_histogram::<NoLabelSet>(stats.step_tokens_sum as f64, count, &buckets, None)
    }
}

fn gauges(out: &mut DescriptorEncoder<'_>, stats: &Stats) -> fmt::Result {
    let usage = stats.kv_blocks_used as f64 / (stats.kv_blocks_total.max(1)) as f64;
    let waiting = stats.waiting as f64;
    gauge(out, "num_requests_running", "Requests in the batch", &[(&[], stats.running as f64)])?;
    gauge(out, "num_requests_waiting", "Requests waiting for a place in the batch", &[(&[], waiting)])?;
    gauge(
        out,
        "num_requests_waiting_by_reason",
        "The same by what they wait for; here it is always room",
        &[(&[("reason", "capacity")], waiting), (&[("reason", "deferred")], 0.0)],
    )?;
    gauge(out, "kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it", &[(&[], usage)])
}

fn counters(out: &mut DescriptorEncoder<'_>, stats: &Stats) -> fmt::Result {
    let rows: [(&str, &str, u64); 6] = [
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
        ("prompt_tokens", "Prompt tokens of admitted requests", stats.prompt_tokens),
        ("prompt_tokens_cached", "Of these, those that came from the prefix cache", stats.prompt_cached),
        ("generation_tokens", "Tokens generated", stats.generation_tokens),
        ("num_preemptions", "Times a request lost its KV blocks", stats.preemptions),
    ];
    for (name, help, value) in rows {
        counter(out, name, help, &[(&[], value)])?;
    }
    let computed = stats.prompt_tokens.saturating_sub(stats.prompt_cached);
    counter(
        out,
        "prompt_tokens_by_source",
        "Prompt tokens by where their keys and values came from",
        &[
            (&[("source", "local_compute")], computed),
            (&[("source", "local_cache_hit")], stats.prompt_cached),
            (&[("source", "external_kv_transfer")], 0),
        ],
    )
}

/// Memory, processor time and open files, under the names of Prometheus' own client libraries.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    started: f64,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()) }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        gauge("process_start_time_seconds", "When the server started, in seconds since 1970", self.started)?;
        #[cfg(target_os = "linux")]
        {
            let page = rustix::param::page_size() as f64;
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
            let mut pages = pages.split(' ').map(|n| n.parse::<f64>().unwrap_or(0.0) * page);
            if let (Some(all), Some(resident)) = (pages.next(), pages.next()) {
                gauge("process_virtual_memory_bytes", "Address space", all)?;
                gauge("process_resident_memory_bytes", "Memory, mapped weights that are in use included", resident)?;
            }
            let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            gauge("process_open_fds", "Open files and connections", files as f64)?;
        }
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let seconds = ConstCounter::new(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9);
        seconds.encode(encoder.encode_descriptor("process_cpu_seconds", "Processor time", None, MetricType::Counter)?)
    }
}
