//! Which device runs a plan: the one that was asked for, or, if that is left open, the CPU, for as long as the CUDA kernels have
//! not run on hardware (decision 9). What stands in the way of a CUDA device is one line.

use std::path::PathBuf;

use kernels::cuda::{self, Cuda, CudaError, EmulatedOptions};
use plugin_api::Graph;

use super::load::{Blueprint, about};
use super::settings::{DeviceChoice, ExecutorKind, LlmOptions, LoadError};
use crate::config::cache_folder;
use crate::exec::cpu::Plan;
use crate::exec::cuda::{CudaExecutor, CudaOptions, NO_INT8_CACHE, unsupported};
use crate::exec::{ExecError, Executor, KvCacheDtype};

/// An executor on a device.
pub(super) struct Placed {
    pub(super) executor: Box<dyn Executor>,
    pub(super) name: &'static str,
    /// Bytes of the device's memory that are free, and all.
    pub(super) memory: Option<(u64, u64)>,
}

/// To be taken out when they have been, and `auto` takes the device: docs/cuda.md.
const UNTRIED: &str = "the CUDA kernels were tested on an emulator only, not on hardware";

/// Where compiled kernels are kept if nothing else is said.
pub fn kernel_cache() -> Option<PathBuf> {
    cache_folder("kernels")
}

/// The executor of a plan on a CUDA device; none if the CPU runs it.
pub(super) fn place(
    blueprint: &Blueprint,
    graph: &Graph,
    plan: &Plan,
    options: &LlmOptions,
) -> Result<Option<Placed>, LoadError> {
    let failed = |reason: String| about(&blueprint.checkpoint, ExecError::Failed(reason));
    let refusal = || refused(blueprint, graph, plan).map(|why| failed(format!("{why}; use --device auto or cpu")));
    let wanted = match (options.device, options.executor) {
        (DeviceChoice::Cpu, _) | (DeviceChoice::Auto, ExecutorKind::Cpu) => return Ok(None),
        (device @ (DeviceChoice::Cuda(_) | DeviceChoice::Emulated), ExecutorKind::Cpu) => {
            let why = format!("--executor cpu and --device {} exclude each other", name(device));
            return Err(LoadError::Setting(why));
        }
        (DeviceChoice::Auto, _) => match automatic(options, refused(blueprint, graph, plan)) {
            Ok(cuda) => {
                let name = &cuda.properties().name;
                tracing::warn!(
                    "on the CPU: {name} could run this model, but {UNTRIED}; --device cuda uses it all the same"
                );
                return Ok(None);
            }
            Err(Refused::Absent(why)) => {
                tracing::info!("on the CPU: {why}");
                return Ok(None);
            }
            Err(Refused::Broken(why)) => {
                tracing::warn!("on the CPU, though there is a CUDA driver: {why}");
                return Ok(None);
            }
        },
        (DeviceChoice::Cuda(_) | DeviceChoice::Emulated, _) if let Some(why) = refusal() => return Err(why),
        (DeviceChoice::Cuda(ordinal), _) => (
            cuda::device(ordinal, options.kernel_cache.clone()).map_err(|e| failed(format!("--device cuda: {e}")))?,
            "cuda",
        ),
        (DeviceChoice::Emulated, _) => {
            let emulated = EmulatedOptions { cache: options.kernel_cache.clone(), ..EmulatedOptions::default() };
            (cuda::emulated(&emulated).map_err(|e| failed(format!("--device emulated: {e}")))?, "emulated")
        }
    };
    on(blueprint, graph, plan, options, wanted).map(Some)
}

fn name(device: DeviceChoice) -> String {
    match device {
        DeviceChoice::Auto => "auto".into(),
        DeviceChoice::Cpu => "cpu".into(),
        DeviceChoice::Cuda(n) => format!("cuda:{n}"),
        DeviceChoice::Emulated => "emulated".into(),
    }
}

/// Why no CUDA device is taken, if none was asked for.
enum Refused {
    /// There is none.
    Absent(String),
    /// There should be one, or it cannot run this plan.
    Broken(String),
}

/// Why a device cannot run this model.
fn refused(blueprint: &Blueprint, graph: &Graph, plan: &Plan) -> Option<String> {
    let matrices = blueprint.quantised(graph, plan).matrices;
    if matrices > 0 {
        return Some("the CUDA executor has no kernels for quantised weights".to_owned());
    }
    if blueprint.kv_cache_dtype == KvCacheDtype::Int8 {
        return Some(format!("--kv-cache-dtype int8: {NO_INT8_CACHE}"));
    }
    unsupported(plan)
}

fn automatic(options: &LlmOptions, refused: Option<String>) -> Result<Cuda, Refused> {
    match cuda::driver() {
        Ok(_) => {}
        Err(e @ CudaError::Unavailable(_)) => return Err(Refused::Absent(e.to_string())),
        Err(e) => return Err(Refused::Broken(e.to_string())),
    }
    match refused {
        Some(why) => Err(Refused::Broken(why)),
        None => cuda::device(0, options.kernel_cache.clone()).map_err(|e| Refused::Broken(e.to_string())),
    }
}

fn on(
    blueprint: &Blueprint,
    graph: &Graph,
    plan: &Plan,
    options: &LlmOptions,
    (cuda, name): (Cuda, &'static str),
) -> Result<Placed, LoadError> {
    let cuda_options = CudaOptions {
        dtype: blueprint.dtype,
        kv_cache_dtype: blueprint.kv_cache_dtype,
        max_tokens: options.max_num_batched_tokens,
        max_seqs: options.max_num_seqs,
    };
    tracing::info!(device = cuda.properties().name, architecture = cuda.properties().architecture, "device");
    if name == "cuda" {
        tracing::warn!("{UNTRIED}; --device cpu is the other way");
    }
    let failed = |e: ExecError| about(&blueprint.checkpoint, e);
    let executor =
        CudaExecutor::new(&cuda, graph, plan.clone(), &blueprint.checkpoint.weights, &cuda_options).map_err(failed)?;
    // The emulated device's memory is the machine's.
    let memory = if name == "cuda" { Some(cuda.memory().map_err(|e| failed(e.into()))?) } else { None };
    let memory = memory.map(|(free, total)| (free as u64, total as u64));
    Ok(Placed { executor: Box::new(executor), name, memory })
}
