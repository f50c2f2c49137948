//! The embedded Python interpreter: made, furnished and asked once.
//!
//! Called by `lib.rs` for a build and by the example `trace`. Runs in the caller's thread, whose stack must be large
//! ([`STACK`]): modelling code nests deeply.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use plugin_api::{BuildRequest, Model};
use rustpython_vm::builtins::PyModule;
use rustpython_vm::gc_state::gc_state;
use rustpython_vm::{Interpreter, PyRef, PyResult, Settings, VirtualMachine};

use crate::bytecode::Cache;
use crate::errors::{self, Failure};
use crate::files::{Files, Kind};
use crate::{native_graph, native_host, whitelist};

/// Stack that the interpreter's thread should have; the worker process gives it that.
pub const STACK: usize = 256 << 20;
/// Deepest nesting of Python calls: more than any model needs, and less than fills the stack.
const MAX_DEPTH: usize = 1000;
/// Every process gives sets of strings the same order.
const HASH_SEED: u32 = 0;

/// How a trace is made, beside the request.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A folder with our Python files, instead of those in the library: for working on them.
    pub python: Option<PathBuf>,
    /// A Python file that runs instead of the driver: for testing them.
    pub script: Option<PathBuf>,
}

/// Traces a model.
pub fn trace(request: &BuildRequest, options: &Options) -> Result<Model, Failure> {
    let failed = |message: String| Failure { message, frames: Vec::new() };
    let json = Rc::new(serde_json::to_value(request).map_err(|e| failed(e.to_string()))?);
    let files = Rc::new(Files::new(&request.sources, options.python.clone()));
    let cache = match &request.sources.model_code {
        None => request.sources.cache.clone(),
        Some(_) => None, // what a model's code writes must not be run for another model
    };
    let own_code = request.sources.model_code.is_some();
    let recorder: native_graph::Shared = Rc::default();
    let interpreter = make();
    interpreter.enter(|vm| {
        let run = || -> PyResult<()> {
            vm.recursion_limit.set(MAX_DEPTH);
            forbid_forged_code(vm);
            // One model, then the process ends: looking for garbage would cost more than the garbage.
            gc_state().disable();
            install(native_graph::module(&recorder, vm)?, "_graph", vm)?;
            install(native_host::module(json.clone(), &files, Cache::new(cache), vm)?, "_host", vm)?;
            boot(&files, vm)?;
            match &options.script {
                None => {
                    let request = native_graph::from_json(&json, vm)?;
                    vm.import("driver", 0)?.get_attr("build", vm)?.call((request,), vm)?;
                }
                Some(script) => run_script(script, vm)?,
            }
            Ok(())
        };
        run().map_err(|e| errors::read(&e, vm))
    })?;
    let recorder = RefCell::take(&recorder);
    match recorder.finish(!own_code) {
        // A script that tests our files need not trace a model.
        Err(_) if options.script.is_some() => {
            Ok(Model { architecture: "script".to_owned(), context_length: 1, graphs: Default::default() })
        }
        result => result.map_err(failed),
    }
}

/// A fresh interpreter with nothing in it that could reach the system.
fn make() -> Interpreter {
    let mut settings = Settings::default();
    settings.ignore_environment = true;
    settings.user_site_directory = false;
    settings.allow_external_library = false;
    settings.import_site = false;
    settings.install_signal_handlers = false;
    settings.write_bytecode = false;
    settings.isolated = true;
    settings.hash_seed = Some(HASH_SEED);
    let builder = Interpreter::builder(settings);
    let defs = rustpython_stdlib::stdlib_module_defs(&builder.ctx);
    builder
        .add_native_modules(&defs)
        .add_frozen_modules(rustpython_pylib::FROZEN_STDLIB)
        .init_hook(|vm| {
            // Nobody else holds the state yet: the builder says so of its hooks.
            if let Some(state) = PyRcMut::get_mut(&mut vm.state) {
                state.module_defs.retain(|name, _| whitelist::keeps_native(name));
                state.frozen.retain(|name, _| whitelist::keeps_frozen(name));
            }
        })
        .build()
}

/// Takes away what makes code objects out of bytes: the interpreter trusts its compiler and does not check them.
fn forbid_forged_code(vm: &VirtualMachine) {
    let code = vm.ctx.types.code_type;
    code.slots.new.store(None);
    let names = ["replace", "__replace__", "__new__"].map(|name| vm.ctx.intern_str(name));
    code.attributes.write().retain(|name, _| !names.contains(name));
    code.modified();
}

type PyRcMut<T> = rustpython_vm::common::rc::PyRc<T>;

fn install(module: PyRef<PyModule>, name: &str, vm: &VirtualMachine) -> PyResult<()> {
    vm.sys_module.get_attr("modules", vm)?.set_item(name, module.into(), vm)
}

/// Runs `boot.py`, which sets up imports, as a module.
fn boot(files: &Files, vm: &VirtualMachine) -> PyResult<()> {
    const PATH: &str = "boot.py";
    let source = files.read(Kind::Shim, PATH).map_err(|m| vm.new_runtime_error(m))?.unwrap_or_default();
    execute(&source, Kind::Shim.display(PATH), "boot", vm)
}

fn run_script(script: &std::path::Path, vm: &VirtualMachine) -> PyResult<()> {
    let source =
        std::fs::read_to_string(script).map_err(|e| vm.new_runtime_error(format!("{}: {e}", script.display())))?;
    execute(&source, script.display().to_string(), "__main__", vm)
}

fn execute(source: &str, shown: String, name: &str, vm: &VirtualMachine) -> PyResult<()> {
    let code = vm.ctx.new_code(native_host::compile(source, &shown, vm)?);
    let scope = vm.new_scope_with_builtins();
    scope.globals.set_item("__name__", vm.ctx.new_str(name).into(), vm)?;
    vm.run_code_obj(code, scope).map(drop)
}
