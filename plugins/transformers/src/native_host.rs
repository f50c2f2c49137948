//! The module `_host`: what Python code may ask of the plugin: the request, its source files, the log.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use rustpython_vm::builtins::{PyCode, PyModule, PyStrRef};
use rustpython_vm::{PyRef, PyResult, VirtualMachine, compiler};

use crate::bytecode::Cache;
use crate::files::{Files, Kind};
use crate::native_graph::from_json;

/// Most bytes of log from one build: what models print is of little use, and the log is the user's.
const MAX_LOG: usize = 64 << 10;

/// Makes the module.
pub(crate) fn module(
    request: Rc<serde_json::Value>,
    files: &Rc<Files>,
    cache: Cache,
    vm: &VirtualMachine,
) -> PyResult<PyRef<PyModule>> {
    let dict = vm.ctx.new_dict();
    let asked = request.clone();
    let get = vm.new_function("request", move |vm: &VirtualMachine| from_json(&asked, vm));
    dict.set_item("request", get.into(), vm)?;
    let cache = Rc::new(cache);
    notes(&dict, &request, &cache, vm)?;

    let log = Log::default();
    let write = vm.new_function("log", move |text: PyStrRef| log.write(&text.to_string_lossy()));
    dict.set_item("log", write.into(), vm)?;

    let start = Instant::now();
    let clock = vm.new_function("clock", move || start.elapsed().as_secs_f64());
    dict.set_item("clock", clock.into(), vm)?;

    let f = files.clone();
    let exists = vm.new_function("exists", move |kind: PyStrRef, path: PyStrRef, vm: &VirtualMachine| {
        let (kind, path) = names(&kind, &path, vm)?;
        Ok::<bool, Exception>(f.exists(kind, path))
    });
    dict.set_item("exists", exists.into(), vm)?;

    let f = files.clone();
    let read = vm.new_function("read", move |kind: PyStrRef, path: PyStrRef, vm: &VirtualMachine| {
        let (kind, path) = names(&kind, &path, vm)?;
        let text = f.read(kind, path).map_err(|m| vm.new_value_error(m))?;
        Ok::<_, Exception>(text.map(|t| t.into_owned()))
    });
    dict.set_item("read", read.into(), vm)?;

    let f = files.clone();
    let code = vm.new_function("code", move |kind: PyStrRef, path: PyStrRef, vm: &VirtualMachine| {
        let (kind, path) = names(&kind, &path, vm)?;
        code(&f, &cache, kind, path, vm)
    });
    dict.set_item("code", code.into(), vm)?;

    let f = files.clone();
    let list = vm.new_function("model_files", move |vm: &VirtualMachine| {
        let names = f.model_files().iter().map(|n| vm.ctx.new_str(n.as_str()).into()).collect();
        vm.ctx.new_list(names)
    });
    dict.set_item("model_files", list.into(), vm)?;
    Ok(vm.new_module("_host", dict, None))
}

type Exception = rustpython_vm::builtins::PyBaseExceptionRef;

fn names<'a>(kind: &'a PyStrRef, path: &'a PyStrRef, vm: &VirtualMachine) -> PyResult<(Kind, &'a str)> {
    let kind = kind.to_str().and_then(Kind::parse).ok_or_else(|| vm.new_value_error("no such kind of files"))?;
    let path = path.to_str().ok_or_else(|| vm.new_value_error("the path has lone surrogates"))?;
    Ok((kind, path))
}

/// What was found out about a model and its code, for the next load: `inputs() -> name`, `recall(name)`, `remember(name, note)`.
fn notes(
    dict: &rustpython_vm::builtins::PyDictRef,
    request: &serde_json::Value,
    cache: &Rc<Cache>,
    vm: &VirtualMachine,
) -> PyResult<()> {
    // Where files are does not matter, only what is in them.
    let model = format!("{} {}", request["config"], request["tensors"]);
    let c = cache.clone();
    let inputs = vm.new_function("inputs", move || c.inputs(&model));
    dict.set_item("inputs", inputs.into(), vm)?;
    let c = cache.clone();
    let recall = vm.new_function("recall", move |name: PyStrRef| name.to_str().and_then(|name| c.recall(name)));
    dict.set_item("recall", recall.into(), vm)?;
    let c = cache.clone();
    let remember = vm.new_function("remember", move |name: PyStrRef, note: PyStrRef| {
        if let (Some(name), Some(note)) = (name.to_str(), note.to_str()) {
            c.remember(name, note);
        }
    });
    dict.set_item("remember", remember.into(), vm)
}

/// The compiled form of a file; `None` if there is none.
fn code(files: &Files, cache: &Cache, kind: Kind, path: &str, vm: &VirtualMachine) -> PyResult<Option<PyRef<PyCode>>> {
    let Some(source) = files.read(kind, path).map_err(|m| vm.new_value_error(m))? else { return Ok(None) };
    let shown = kind.display(path);
    if let Some(code) = cache.get(&source, &shown, vm) {
        return Ok(Some(code));
    }
    let code = compile(&source, &shown, vm)?;
    cache.put(&source, &shown, &code);
    Ok(Some(vm.ctx.new_code(code)))
}

/// Compiles a module. Warnings about the source are its author's business and are not printed.
pub(crate) fn compile(source: &str, shown: &str, vm: &VirtualMachine) -> PyResult<compiler::CodeObject> {
    let options = compiler::CompileOpts { optimize: 0, debug_ranges: false };
    compiler::compile(source, compiler::Mode::Exec, shown, options).map_err(|e| vm.new_syntax_error(&e, Some(source)))
}

/// Where `print` goes: the worker's stderr, which the host shows as log lines.
#[derive(Default)]
struct Log {
    written: Cell<usize>,
}

impl Log {
    fn write(&self, text: &str) {
        let before = self.written.get();
        if before > MAX_LOG {
            return;
        }
        self.written.set(before.saturating_add(text.len() + 1));
        if self.written.get() > MAX_LOG {
            eprintln!("(the model prints too much: the rest is left out)");
            return;
        }
        for line in text.lines() {
            let line: String = line.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
            eprintln!("{line}");
        }
    }
}
