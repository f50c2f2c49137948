//! What Python code finds in the interpreter: the request, modules from their four places, the recorder, the cache.

use std::fs;
use std::path::Path;

use plugin_api::{ModelCode, Sources};

mod support;

use support::{run, run_with};

/// A folder with these files, as a model's code.
fn model(files: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let files = files.iter().map(|(name, _)| name.into()).collect();
    let sources = Sources { model_code: Some(ModelCode { dir: dir.path().into(), files }), ..Sources::default() };
    (dir, sources)
}

/// A package transformers of these files.
fn package(files: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
    let (dir, _) = model(files);
    let sources = Sources { transformers: Some(dir.path().into()), ..Sources::default() };
    (dir, sources)
}

#[test]
fn the_request_is_there_as_python_objects() {
    run("import _host\nassert _host.request()['config'] == {'n': [1, 2.5, None]}").unwrap();
}

#[test]
fn a_models_files_import_each_other_and_stay_in_their_package() {
    let (_dir, sources) = model(&[
        ("modeling.py", "from .configuration import SIZE\nfrom .deep.er.part import twice\nx = twice(SIZE)"),
        ("configuration.py", "SIZE = 21"),
        ("deep/er/part.py", "from ..shared import FACTOR\ndef twice(n): return FACTOR * n"),
        ("deep/shared.py", "FACTOR = 2"),
    ]);
    let code =
        "import transformers_modules.model.modeling as m\nassert m.x == 42\nassert m.__file__ == 'model/modeling.py'";
    run_with(code, sources.clone()).unwrap();
    for name in ["modeling", "transformers_modules.other", "transformers_modules.model.gone"] {
        let error = run_with(&format!("import {name}"), sources.clone()).unwrap_err();
        assert!(error.message.contains("ModuleNotFoundError"), "{}", error.message);
    }
    let error = run("import transformers_modules.model").unwrap_err();
    assert!(error.message.contains("ModuleNotFoundError"), "without the user's trust: {}", error.message);
}

#[test]
fn files_of_transformers_run_as_the_table_says() {
    let (_dir, sources) = package(&[
        ("__init__.py", "raise Exception('never runs')"),
        ("models/__init__.py", "raise Exception('never runs')"),
        ("models/tiny/__init__.py", "raise Exception('never runs')"),
        ("models/tiny/modeling_tiny.py", "from ...nothing_of_ours import Helper\nclass Tiny(Helper): pass"),
        ("models/tiny/tokenization_tiny.py", "raise Exception('never runs')"),
        ("nothing_of_ours.py", "raise Exception('never runs')"),
    ]);
    run_with(
        "from transformers.models.tiny.modeling_tiny import Tiny, Helper\n\
         assert Helper.__module__ == 'transformers.nothing_of_ours'\n\
         from transformers.models.tiny.tokenization_tiny import TinyTokenizer\n\
         try:\n    import transformers.gone_for_good\n    raise SystemError\nexcept ModuleNotFoundError: pass",
        sources,
    )
    .unwrap();
}

#[test]
fn errors_name_the_innermost_line_of_modelling_code() {
    let (_dir, sources) = model(&[("modeling.py", "import json\n\ndef f(text):\n    return json.loads(text)\n")]);
    let call = "from transformers_modules.model.modeling import f\nf('nonsense')";
    let error = run_with(call, sources).unwrap_err();
    assert!(
        error.message.starts_with("model/modeling.py:4 in f: JSONDecodeError: Expecting value"),
        "{}",
        error.message
    );
    assert!(error.frames.iter().any(|f| f.starts_with("model/modeling.py:4 in f")), "{:?}", error.frames);
    let error =
        run("import _graph\nclass Mine(_graph.TraceError): pass\nraise Mine('m.py:3: that; do this')").unwrap_err();
    assert_eq!(error.message, "m.py:3: that; do this");
    let (_dir, sources) = model(&[("broken.py", "x = 1\ndef f(:\n")]);
    let error = run_with("import transformers_modules.model.broken", sources).unwrap_err();
    assert!(error.message.contains("SyntaxError") && error.message.contains("broken.py"), "{}", error.message);
}

#[test]
fn a_recorded_graph_comes_out_and_must_not_depend_on_the_length() {
    let code = |size: &str| {
        format!(
            "import _graph\n\
             for size in 3, 9:\n\
             \x20   _graph.begin(size)\n\
             \x20   x, dtype, dims = _graph.push('input(kind:token_ids)', [], 'm.py:1')\n\
             \x20   assert (dtype, dims) == ('i64', (((1, 1),),))\n\
             \x20   w = _graph.push('weight(name:\"w\",shape:[5,4])', (), 'm.py:1')[0]\n\
             \x20   y = _graph.push('embedding', [x, w], 'm.py:2')[0]\n\
             \x20   c = _graph.const('float', [1, 4], [{size}] * 4, 'm.py:3')[0]\n\
             \x20   y, dtype, dims = _graph.push('mul', [y, c], 'm.py:3')\n\
             \x20   assert dims == (((1, 1),), 4) and _graph.node(y) == ('mul', (2, c), 'm.py:3')\n\
             \x20   r = _graph.push('select_outputs', [y], '')\n\
             \x20   assert r[2] == ('R', 4) and _graph.len() == 6\n\
             \x20   _graph.output('logits', r[0])\n\
             _graph.model('M', 64)"
        )
    };
    let model = run(&code("0.1")).unwrap();
    plugin_api::spec::verify(&model).unwrap();
    assert_eq!((model.architecture.as_str(), model.context_length), ("M", 64));
    assert!(model.to_text().contains("[0.1,0.1,0.1,0.1]"), "{}", model.to_text());
    // As a script it has no model; what the plugin says of the difference is tested in `recorder`.
    assert_eq!(run(&code("size")).unwrap().architecture, "script");
}

#[test]
fn wrong_nodes_are_exceptions_of_python() {
    for (code, words) in [
        ("_graph.push('neg', [0], '')", "no trace was begun"),
        ("_graph.begin(3); _graph.push('neg', [7], '')", "%7 is not a value"),
        ("_graph.begin(3); _graph.push('frobnicate', [], '')", "op `frobnicate`"),
        ("_graph.begin(3); _graph.const('f16', [1], [1.0], '')", "`f16` is not an element type"),
        ("_graph.begin(3); _graph.const('f32', [2], [1.0], '')", "do not fill shape"),
        ("_graph.begin(3); _graph.output('logits', 0)", "%0 does not exist"),
    ] {
        let code = format!("import _graph\ntry:\n    {code}\nexcept ValueError as e: raise SystemError(str(e))");
        let error = run(&code).unwrap_err();
        assert!(error.message.contains(words), "{code}: {}", error.message);
    }
}

#[test]
fn compiled_files_are_kept_and_damaged_ones_ignored() {
    let cache = tempfile::tempdir().unwrap();
    let sources = Sources { cache: Some(cache.path().join("python")), ..Sources::default() };
    let code = "import pathlib\nassert str(pathlib.Path('a') / 'b') == 'a/b'";
    let kept = || files(&cache.path().join("python"));
    run_with(code, sources.clone()).unwrap();
    let first = kept();
    assert!(first.len() >= 3, "{first:?}");
    for (i, (file, bytes)) in first.iter().enumerate() {
        let mut bytes = bytes.clone();
        match i % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.clear(),
            _ => *bytes.last_mut().unwrap() ^= 1,
        }
        fs::write(file, bytes).unwrap();
    }
    run_with(code, sources.clone()).unwrap();
    assert_eq!(kept(), first, "damaged entries are written anew");

    let (dir, with_code) = model(&[("a.py", "x = 1")]);
    let own = dir.path().join("cache");
    let sources = Sources { cache: Some(own.clone()), ..with_code };
    run_with("import transformers_modules.model.a", sources).unwrap();
    assert!(!own.exists(), "a model with code of its own has no cache");
}

fn files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut out: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    out.sort();
    out.into_iter().map(|f| (f.clone(), fs::read(&f).unwrap())).collect()
}
