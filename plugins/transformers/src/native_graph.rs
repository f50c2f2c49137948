//! The module `_graph`: how Python code records a graph.
//!
//! A thin cover over [`Recorder`]: values of Python are checked and converted here, errors become `_graph.GraphError`.

use std::cell::RefCell;
use std::rc::Rc;

use plugin_api::{ConstData, DType, Type, Value};
use rustpython_vm::builtins::{PyModule, PyStrRef, PyTypeRef};
use rustpython_vm::{PyObjectRef, PyRef, PyResult, VirtualMachine};

use crate::recorder::{PyDim, Recorder, dims};

/// What Python's functions and the plugin share.
pub(crate) type Shared = Rc<RefCell<Recorder>>;

/// Makes the module.
pub(crate) fn module(recorder: &Shared, vm: &VirtualMachine) -> PyResult<PyRef<PyModule>> {
    let dict = vm.ctx.new_dict();
    let value_error = vm.ctx.exceptions.value_error.to_owned();
    let graph_error = vm.ctx.new_exception_type("_graph", "GraphError", Some(vec![value_error]));
    // A RuntimeError, as what torch raises is: here and not in Python, since the interpreter tells the constructors of two
    // bases apart by the addresses of functions, which a compiler may merge or not.
    let runtime_error = vm.ctx.exceptions.runtime_error.to_owned();
    let trace_error = vm.ctx.new_exception_type("_graph", "TraceError", Some(vec![runtime_error]));
    dict.set_item("GraphError", graph_error.clone().into(), vm)?;
    dict.set_item("TraceError", trace_error.into(), vm)?;
    record(recorder, &graph_error, &dict, vm)?;
    look(recorder, &graph_error, &dict, vm)?;
    Ok(vm.new_module("_graph", dict, None))
}

type Dict = rustpython_vm::builtins::PyDictRef;

/// Functions that change the graph.
fn record(recorder: &Shared, error: &PyTypeRef, dict: &Dict, vm: &VirtualMachine) -> PyResult<()> {
    let (r, e) = (recorder.clone(), error.clone());
    let push =
        vm.new_function("push", move |op: PyStrRef, inputs: PyObjectRef, name: PyStrRef, vm: &VirtualMachine| {
            let inputs = values(&inputs, vm)?;
            let (op, name) = (text(&op, vm)?.to_owned(), text(&name, vm)?.to_owned());
            let mut recorder = r.borrow_mut();
            let value = recorder.push(&op, inputs, &name).map_err(|m| raise(&e, m, vm))?;
            result(&recorder, value, &e, vm)
        });
    dict.set_item("push", push.into(), vm)?;

    let (r, e) = (recorder.clone(), error.clone());
    let constant = vm.new_function(
        "const",
        move |dtype: PyStrRef, shape: PyObjectRef, flat: PyObjectRef, name: PyStrRef, vm: &VirtualMachine| {
            let (dtype, data) = literal(text(&dtype, vm)?, &flat, vm).map_err(|f| f.raise(&e, vm))?;
            let shape = vm.extract_elements_with(&shape, |d| {
                usize::try_from(integer(&d, vm)?).map_err(|_| vm.new_value_error("a dimension is negative"))
            })?;
            let name = text(&name, vm)?.to_owned();
            let mut recorder = r.borrow_mut();
            let value = recorder.constant(dtype, shape, data, &name).map_err(|m| raise(&e, m, vm))?;
            result(&recorder, value, &e, vm)
        },
    );
    dict.set_item("const", constant.into(), vm)?;

    let (r, e) = (recorder.clone(), error.clone());
    let output = vm.new_function("output", move |name: PyStrRef, id: u32, vm: &VirtualMachine| {
        r.borrow_mut().output(text(&name, vm)?.to_owned(), Value(id)).map_err(|m| raise(&e, m, vm))
    });
    dict.set_item("output", output.into(), vm)?;

    let (r, e) = (recorder.clone(), error.clone());
    let truncate = vm.new_function("truncate", move |len: usize, vm: &VirtualMachine| {
        r.borrow_mut().truncate(len).map_err(|m| raise(&e, m, vm))
    });
    dict.set_item("truncate", truncate.into(), vm)?;

    let r = recorder.clone();
    let begin = vm.new_function("begin", move |size: i64| r.borrow_mut().begin(size));
    dict.set_item("begin", begin.into(), vm)?;
    let r = recorder.clone();
    dict.set_item("reset", vm.new_function("reset", move || r.borrow_mut().reset()).into(), vm)?;

    let r = recorder.clone();
    dict.set_item("trust", vm.new_function("trust", move || r.borrow_mut().trust()).into(), vm)?;

    let r = recorder.clone();
    let model = vm.new_function("model", move |architecture: PyStrRef, length: u64, vm: &VirtualMachine| {
        r.borrow_mut().set_model(text(&architecture, vm)?.to_owned(), length);
        Ok::<(), Exception>(())
    });
    dict.set_item("model", model.into(), vm)
}

/// Functions that only look.
fn look(recorder: &Shared, error: &PyTypeRef, dict: &Dict, vm: &VirtualMachine) -> PyResult<()> {
    let (r, e) = (recorder.clone(), error.clone());
    let ty = vm.new_function("type", move |id: u32, vm: &VirtualMachine| -> PyResult {
        let recorder = r.borrow();
        let node = recorder.node(Value(id)).map_err(|m| raise(&e, m, vm))?;
        let parts = vec![dtype_object(node.ty.dtype, vm), dims_object(&node.ty, vm)];
        Ok(vm.ctx.new_tuple(parts).into())
    });
    dict.set_item("type", ty.into(), vm)?;

    let (r, e) = (recorder.clone(), error.clone());
    let node = vm.new_function("node", move |id: u32, vm: &VirtualMachine| -> PyResult {
        let recorder = r.borrow();
        let node = recorder.node(Value(id)).map_err(|m| raise(&e, m, vm))?;
        let inputs = node.inputs.iter().map(|v| vm.ctx.new_int(v.0).into()).collect();
        let parts = vec![
            vm.ctx.new_str(node.op.to_string()).into(),
            vm.ctx.new_tuple(inputs).into(),
            vm.ctx.new_str(node.name.as_str()).into(),
        ];
        Ok(vm.ctx.new_tuple(parts).into())
    });
    dict.set_item("node", node.into(), vm)?;

    let (r, e) = (recorder.clone(), error.clone());
    let len = vm.new_function("len", move |vm: &VirtualMachine| {
        r.borrow_mut().current().map(|g| g.nodes.len()).map_err(|m| raise(&e, m, vm))
    });
    dict.set_item("len", len.into(), vm)?;

    let (r, e) = (recorder.clone(), error.clone());
    let all = vm.new_function("text", move |vm: &VirtualMachine| r.borrow_mut().text().map_err(|m| raise(&e, m, vm)));
    dict.set_item("text", all.into(), vm)
}

type Exception = rustpython_vm::builtins::PyBaseExceptionRef;

fn raise(class: &PyTypeRef, message: String, vm: &VirtualMachine) -> Exception {
    vm.new_exception(class.clone(), vec![vm.ctx.new_str(message).into()])
}

fn text<'a>(s: &'a PyStrRef, vm: &VirtualMachine) -> PyResult<&'a str> {
    s.to_str().ok_or_else(|| vm.new_value_error("the text has lone surrogates"))
}

fn values(list: &PyObjectRef, vm: &VirtualMachine) -> PyResult<Vec<Value>> {
    vm.extract_elements_with(list, |item| Ok(Value(item.try_to_value::<u32>(vm)?)))
}

fn integer(item: &PyObjectRef, vm: &VirtualMachine) -> PyResult<i64> {
    item.try_to_value::<i64>(vm)
}

/// Why a literal is none.
enum Wrong {
    Python(Exception),
    Message(String),
}

impl Wrong {
    fn raise(self, class: &PyTypeRef, vm: &VirtualMachine) -> Exception {
        match self {
            Wrong::Python(e) => e,
            Wrong::Message(m) => raise(class, m, vm),
        }
    }
}

impl From<Exception> for Wrong {
    fn from(e: Exception) -> Wrong {
        Wrong::Python(e)
    }
}

fn literal(dtype: &str, flat: &PyObjectRef, vm: &VirtualMachine) -> Result<(DType, ConstData), Wrong> {
    let floats = || vm.extract_elements_with(flat, |x| Ok(x.try_float(vm)?.to_f64() as f32));
    Ok(match dtype {
        "float" => (DType::Float, ConstData::F32(floats()?)),
        "f32" => (DType::F32, ConstData::F32(floats()?)),
        "i64" => (DType::I64, ConstData::I64(vm.extract_elements_with(flat, |x| integer(&x, vm))?)),
        "bool" => (DType::Bool, ConstData::Bool(vm.extract_elements_with(flat, |x| x.try_to_bool(vm))?)),
        other => return Err(Wrong::Message(format!("`{other}` is not an element type: float, f32, i64 or bool"))),
    })
}

/// `(id, dtype, dims)`
fn result(recorder: &Recorder, value: Value, error: &PyTypeRef, vm: &VirtualMachine) -> PyResult {
    let node = recorder.node(value).map_err(|m| raise(error, m, vm))?;
    let parts = vec![vm.ctx.new_int(value.0).into(), dtype_object(node.ty.dtype, vm), dims_object(&node.ty, vm)];
    Ok(vm.ctx.new_tuple(parts).into())
}

fn dtype_object(dtype: DType, vm: &VirtualMachine) -> PyObjectRef {
    let name = match dtype {
        DType::Float => "float",
        DType::F32 => "f32",
        DType::I64 => "i64",
        DType::Bool => "bool",
    };
    vm.ctx.intern_str(name).to_object()
}

fn dims_object(ty: &Type, vm: &VirtualMachine) -> PyObjectRef {
    let dims = dims(ty)
        .into_iter()
        .map(|dim| match dim {
            PyDim::Number(n) => vm.ctx.new_int(n).into(),
            PyDim::Text(text) => vm.ctx.new_str(text).into(),
            PyDim::Tokens(terms) => {
                let terms = terms.into_iter().map(|(power, coefficient)| {
                    let pair = vec![vm.ctx.new_int(power).into(), vm.ctx.new_int(coefficient).into()];
                    vm.ctx.new_tuple(pair).into()
                });
                vm.ctx.new_tuple(terms.collect()).into()
            }
        })
        .collect();
    vm.ctx.new_tuple(dims).into()
}

/// The object of a JSON value.
pub(crate) fn from_json(value: &serde_json::Value, vm: &VirtualMachine) -> PyResult {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Null => vm.ctx.none(),
        Json::Bool(b) => vm.ctx.new_bool(*b).into(),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => vm.ctx.new_int(i).into(),
            (None, Some(u)) => vm.ctx.new_int(u).into(),
            (None, None) => vm.ctx.new_float(n.as_f64().unwrap_or(f64::NAN)).into(),
        },
        Json::String(s) => vm.ctx.new_str(s.as_str()).into(),
        Json::Array(items) => {
            let items = items.iter().map(|v| from_json(v, vm)).collect::<PyResult<Vec<_>>>()?;
            vm.ctx.new_list(items).into()
        }
        Json::Object(fields) => {
            let dict = vm.ctx.new_dict();
            for (key, v) in fields {
                dict.set_item(key.as_str(), from_json(v, vm)?, vm)?;
            }
            dict.into()
        }
    })
}
