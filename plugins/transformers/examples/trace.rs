//! Traces models and prints their graphs: the tool for working on the Python files of this plugin, without a host.
//!
//! `trace --transformers DIR MODEL` prints the graph, or the error with the calls that led to it; with several models, one
//! line each. A MODEL is a folder with config.json and either safetensors files or a recipe `weights.json`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use host_plugin_transformers::{Failure, Options, STACK, trace};
use plugin_api::{BuildRequest, Model, ModelCode, Sources, TensorInfo, spec};
use serde_json::Value;

/// Traces models of Hugging Face and prints their graphs.
#[derive(Parser, Clone)]
struct Args {
    /// The folder of the Python package transformers.
    #[arg(long)]
    transformers: Option<PathBuf>,
    /// Our Python files, instead of those in the library.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Run this Python file instead of the driver.
    #[arg(long = "run")]
    script: Option<PathBuf>,
    /// A folder for compiled Python files.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Let models run their own code.
    #[arg(long)]
    trust_remote_code: bool,
    /// Write the graph into a file.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Say how long it took.
    #[arg(short, long)]
    verbose: bool,
    /// Print the number of nodes and the time instead of the graph.
    #[arg(long)]
    summary: bool,
    /// Folders of models.
    models: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.models.len() > 1 {
        return many(&args);
    }
    let folder = args.models.first().cloned();
    let start = Instant::now();
    match in_thread(args.clone(), folder) {
        Ok(model) => {
            if args.verbose {
                eprintln!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3);
            }
            if args.summary {
                let nodes: usize = model.graphs.values().map(|g| g.nodes.len()).sum();
                println!("{nodes} nodes {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
                return ExitCode::SUCCESS;
            }
            let text = model.to_text();
            match &args.output {
                Some(file) => fs::write(file, text).expect("the output file"),
                None if args.script.is_none() => print!("{text}"),
                None => {}
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            for frame in &failure.frames {
                eprintln!("  {frame}");
            }
            eprintln!("error: {}", failure.message.replace('\n', " | "));
            ExitCode::FAILURE
        }
    }
}

/// One line for each model, each traced in a process of its own: one that crashes, or takes much memory, is only its own
/// loss.
fn many(args: &Args) -> ExitCode {
    let program = std::env::current_exe().expect("the path of this program");
    let flags: Vec<_> = std::env::args_os().skip(1).filter(|a| !args.models.iter().any(|m| m == a)).collect();
    let mut failed = 0;
    for folder in &args.models {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let output = Command::new(&program).args(&flags).arg("--summary").arg(folder).output().expect("a process");
        let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
        let last = said.lines().last().unwrap_or("nothing said").trim_start_matches("error: ");
        failed += usize::from(!output.status.success());
        println!("{} {name} {last}", if output.status.success() { "OK   " } else { "ERROR" });
    }
    println!("{} of {} traced", args.models.len() - failed, args.models.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The interpreter needs a large stack.
fn in_thread(args: Args, folder: Option<PathBuf>) -> Result<Model, Failure> {
    let run = move || {
        let request = request(&args, folder.as_deref()).map_err(plain)?;
        let options = Options { python: args.python, script: args.script.clone() };
        let model = trace(&request, &options)?;
        if args.script.is_none() {
            spec::verify(&model).map_err(|e| plain(format!("the graph is wrong: {e}")))?;
        }
        Ok(model)
    };
    let thread = std::thread::Builder::new().name("plugin".to_owned()).stack_size(STACK).spawn(run);
    thread.expect("a thread").join().unwrap_or_else(|_| Err(plain("the plugin panicked".to_owned())))
}

fn plain(message: String) -> Failure {
    Failure { message, frames: Vec::new() }
}

fn request(args: &Args, folder: Option<&Path>) -> Result<BuildRequest, String> {
    let (config, tensors) = match folder {
        Some(folder) if folder.is_file() => (json(folder)?, Vec::new()),
        Some(folder) => (json(&folder.join("config.json"))?, tensors(folder)?),
        None => (Value::Object(Default::default()), Vec::new()),
    };
    let mut request = BuildRequest::new(config, tensors);
    let model_code = match folder {
        Some(folder) if args.trust_remote_code && folder.is_dir() => {
            let files = python_files(folder);
            (!files.is_empty()).then(|| ModelCode { dir: folder.to_owned(), files })
        }
        _ => None,
    };
    let cache = if model_code.is_none() { args.cache.clone() } else { None };
    let transformers = args.transformers.clone();
    request.sources = Sources { transformers, transformers_version: None, model_code, cache };
    Ok(request)
}

fn json(file: &Path) -> Result<Value, String> {
    let text = fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", file.display()))
}

fn tensors(folder: &Path) -> Result<Vec<TensorInfo>, String> {
    let recipe = folder.join("weights.json");
    if recipe.exists() {
        let recipe = json(&recipe)?;
        let files = recipe["files"].as_object().ok_or("weights.json has no files")?;
        return files.values().flat_map(|list| list.as_array().into_iter().flatten()).map(tensor).collect();
    }
    let mut out = Vec::new();
    let mut files: Vec<_> = fs::read_dir(folder).map_err(|e| e.to_string())?.flatten().map(|e| e.path()).collect();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "safetensors")) {
        out.extend(header(file).map_err(|e| format!("{}: {e}", file.display()))?);
    }
    Ok(out)
}

fn header(file: &Path) -> std::io::Result<Vec<TensorInfo>> {
    let mut reader = fs::File::open(file)?;
    let mut length = [0; 8];
    reader.read_exact(&mut length)?;
    let mut text = Vec::new();
    reader.take(u64::from_le_bytes(length)).read_to_end(&mut text)?;
    let fields: serde_json::Map<String, Value> = serde_json::from_slice(&text)?;
    let entries = fields.into_iter().filter(|(name, _)| name != "__metadata__");
    entries
        .map(|(name, mut entry)| {
            entry["name"] = Value::String(name);
            tensor(&entry).map_err(std::io::Error::other)
        })
        .collect()
}

fn tensor(entry: &Value) -> Result<TensorInfo, String> {
    serde_json::from_value(entry.clone()).map_err(|e| e.to_string())
}

fn python_files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        for entry in fs::read_dir(folder.join(&relative)).into_iter().flatten().flatten() {
            let path = relative.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "py") {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}
