//! The generic adapter: traces a model's own modelling code into a graph.

use rustpython_vm as vm;

/// A fresh interpreter.
pub fn interpreter() -> vm::Interpreter {
    let mut settings = vm::Settings::default();
    settings.ignore_environment = true;
    settings.user_site_directory = false;
    settings.allow_external_library = false;
    let builder = vm::Interpreter::builder(settings);
    let defs = rustpython_stdlib::stdlib_module_defs(&builder.ctx);
    builder.add_native_modules(&defs).add_frozen_modules(rustpython_pylib::FROZEN_STDLIB).build()
}
