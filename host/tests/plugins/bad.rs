//! Whatever a plugin does, the host gets one line that names file and cause, in time, and goes on.

use std::time::{Duration, Instant};

use host::registry::{Cause, Registry, Stage, sandbox_support};
use plugin_api::IrVersion;
use serde_json::json;

use crate::support::*;

/// The host goes on: the plugin, told to behave, still builds.
#[track_caller]
fn assert_goes_on(registry: &Registry) {
    assert_no_zombies();
    let model = registry.build_model(&selected(registry), &request(json!({}))).unwrap();
    assert_eq!(model.architecture, "BadForCausalLM");
}

/// Builds with an order that must fail.
#[track_caller]
fn build_error(registry: &Registry, order: &str) -> host::registry::PluginError {
    let error = registry.build_model(&selected(registry), &request(json!({ "order": order }))).unwrap_err();
    assert_eq!(error.name.as_deref(), Some("bad"));
    error
}

#[test]
fn crashes_while_building_are_named() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    for (order, words) in [
        ("segfault", "crashed with SIGSEGV"),
        ("abort", "crashed with SIGABRT"),
        ("exit0", "ended its process with exit code 0 instead of answering"),
        ("exit3", "ended its process with exit code 3 instead of answering"),
        ("overflow", "overflowed its stack"),
        ("print-and-crash", "(its last output: last words [31m)"),
    ] {
        let start = Instant::now();
        let error = build_error(&registry, order);
        assert_says(&error, &["plugin `bad`", words, "while building"]);
        assert!(start.elapsed() < Duration::from_secs(30), "{order} took {:?}", start.elapsed());
    }
    assert_goes_on(&registry);
}

#[test]
fn crashes_while_describing_are_named() {
    for (deed, words) in [
        ("segfault", "crashed with SIGSEGV"),
        ("panic", "panicked while describing itself, at tests/fixtures/bad-plugin/src/lib.rs:"),
        ("exit0", "exit code 0"),
    ] {
        let folder = Folder::new(&[("bad", &bad(&format!("describe:{deed}"))), ("good", &bad("renamed"))]);
        let found = folder.registry().scan();
        assert_says(found[0].description.as_ref().unwrap_err(), &[words]);
        assert_eq!(found[1].description.as_ref().unwrap().name, "renamed", "the next plugin is not affected");
    }
    assert_no_zombies();
}

#[test]
fn a_panic_is_an_error_with_its_place() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    let error = build_error(&registry, "panic");
    assert!(matches!(error.cause, Cause::Panicked { stage: Stage::Build, .. }));
    assert_says(
        &error,
        &["panicked while building the model's graph, at tests/fixtures/bad-plugin/src/lib.rs:", "this plugin panics"],
    );
    assert_goes_on(&registry);
}

#[test]
fn a_plugin_that_hangs_is_stopped_at_the_deadline() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let patient = folder.registry();
    let plugin = selected(&patient);
    let hasty = folder.registry_with(|o| o.deadline = Duration::from_millis(800));
    for order in ["hang", "sleep"] {
        let start = Instant::now();
        let error = hasty.build(&plugin, &request(json!({ "order": order }))).unwrap_err();
        let took = start.elapsed();
        assert_says(&error, &["did not finish building the model's graph within 0.8 s"]);
        assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(5), "{took:?}");
    }
    assert_goes_on(&patient);
}

#[test]
fn a_plugin_that_hangs_while_describing_itself_is_stopped_too() {
    let folder = Folder::new(&[("bad", &bad("describe:hang"))]);
    let found = only(folder.registry_with(|o| o.deadline = Duration::from_millis(800)).scan());
    assert_says(&found.description.unwrap_err(), &["did not finish describing itself within 0.8 s"]);
    assert_no_zombies();
}

#[test]
fn a_plugin_that_allocates_without_end_meets_its_limit() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry_with(|o| o.memory_limit = 512 << 20);
    let error = build_error(&registry, "allocate");
    assert_says(&error, &["ran out of memory while building the model's graph (limit 512 MiB)"]);
    assert_goes_on(&registry);
}

#[test]
fn what_a_plugin_prints_does_not_reach_the_answer() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    let plugin = selected(&registry);
    for order in ["print", "print-much", "read-stdin"] {
        registry.build_model(&plugin, &request(json!({ "order": order }))).unwrap();
    }
    // Nor does it see the environment of the server.
    assert_says(&build_error(&registry, "environment"), &[": 0 variables"]);
}

#[test]
fn threads_and_processes_of_a_plugin_end_with_it() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    let plugin = selected(&registry);
    for order in ["threads", "children"] {
        // Where calls are filtered, a thread cannot even be made.
        let built = registry.build_model(&plugin, &request(json!({ "order": order })));
        assert!(built.is_ok() || sandbox_support().seccomp.is_ok(), "{order}: {built:?}");
    }
    for _ in 0..100 {
        if !is_running("sleep 36007") && !is_running(plugin.sha256()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("a process of the plugin still runs");
}

#[test]
fn a_plugin_that_declines_is_quoted_on_one_line() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let error = build_error(&folder.registry(), "declines");
    assert!(matches!(error.cause, Cause::Unsupported(_)));
    assert_says(
        &error,
        &["cannot build this model: config.json: `order` is \"declines\": this plugin obeys no such order"],
    );
}

#[test]
fn a_graph_with_a_wrong_shape_is_named() {
    let folder = Folder::new(&[("bad", &bad("healthy"))]);
    let registry = folder.registry();
    let error = build_error(&registry, "wrong-shape");
    assert_says(&error, &["returned a graph that is wrong: line ", "linear gives float[R,32], declared is"]);
    assert_goes_on(&registry);
}

#[test]
fn rubbish_and_huge_answers_are_refused() {
    let folder = Folder::new(&[("raw", &raw(RAW))]);
    let registry = folder.registry_with(|o| o.answer_limit = 1 << 20);
    let plugin = selected(&registry);
    for (config, words) in [
        (json!({ "answer": "" }), "answered rubbish while building the model's graph: 0 bytes"),
        (json!({ "answer": "PK\u{3}\u{4}\u{1b}[31m" }), "answered rubbish while building"),
        (json!({ "size": 1 << 20 }), "answered 1048576 bytes while building the model's graph, the limit is 1048576"),
        (json!({ "size": (1 << 20) - 1 }), "answered rubbish while building the model's graph: 1048575 bytes"),
        (json!({ "size": 256 << 20 }), "the limit is 1048576"),
        (json!({ "error": [0xff, 10, 0xfe, 27] }), "cannot build this model: "),
        (
            json!({ "answer": "host-graph 1.0\ngraph decode\n" }),
            "returned a graph that is wrong: line 2: graph `decode` has no `end`",
        ),
        (json!({ "answer": "host-graph 1.0\n" }), "returned a graph that is wrong:"),
    ] {
        let error = registry.build_model(&plugin, &request(config)).unwrap_err();
        assert_says(&error, &["plugin `raw`", words]);
    }
    assert_no_zombies();
}

#[test]
fn rubbish_descriptions_are_refused() {
    for (description, words) in [
        ("", "answered rubbish while describing itself: 0 bytes that are not a description"),
        ("hello", "5 bytes that are not a description"),
        ("{}", "a description with a fault: missing field `name`"),
        (&RAW.replace("raw", "a b"), "the name `a b` is not"),
        (&RAW.replace(r#"["RawForCausalLM"]"#, "[]"), "it names 0 architectures"),
    ] {
        let folder = Folder::new(&[("raw", &raw(description))]);
        assert_says(&only(folder.registry().scan()).description.unwrap_err(), &[words]);
    }
    let folder = Folder::new(&[("bad", &bad("name:rubbish"))]);
    assert_says(&only(folder.registry().scan()).description.unwrap_err(), &["the name `[31mred` is not"]);
}

#[test]
fn an_ir_from_the_future_names_both_versions_and_the_op() {
    let folder = Folder::new(&[("bad", &bad("ir:2.0"))]);
    let error = only(folder.registry().scan()).description.unwrap_err();
    assert_says(&error, &["speaks graph IR 2.0", &format!("speaks {}; use a newer host", IrVersion::CURRENT)]);

    // A newer minor version is used as far as its ops are known.
    let folder = Folder::new(&[("bad", &bad("ir:newer"))]);
    assert_goes_on(&folder.registry());

    let folder = Folder::new(&[("raw", &raw(&RAW.replace("1.0", "1.7")))]);
    let registry = folder.registry();
    let plugin = selected(&registry);
    let text = "host-graph 1.7\narchitecture \"A\"\ncontext_length 8\ngraph decode\n  %0 i64[T] = quantum_leap\nend\n";
    let error = registry.build_model(&plugin, &request(json!({ "answer": text }))).unwrap_err();
    assert_says(&error, &["`quantum_leap`", "IR version 1.7", &IrVersion::CURRENT.to_string(), "use a newer host"]);
    let error = registry.build_model(&plugin, &request(json!({ "answer": "host-graph 2.0\n" }))).unwrap_err();
    assert_says(&error, &["speaks graph IR 2.0", "use a newer host"]);
}

#[test]
fn files_that_are_no_libraries_of_this_machine_are_named() {
    let healthy = bad("healthy");
    let patched = |at: usize, bytes: &[u8]| {
        let mut library = healthy.clone();
        library[at..at + bytes.len()].copy_from_slice(bytes);
        library
    };
    let files: [(&[u8], &str); 9] = [
        (b"", "is not a shared library: the file is empty"),
        (b"#!/bin/sh\necho hello\n", "is not a shared library: it starts with `#!/bin/sh echo hello`"),
        (b"\x7fELF", "is cut off: its headers speak of 64 bytes, the file has 4"),
        (&healthy[..healthy.len() / 2], "is cut off"),
        (&healthy[..4096], "is cut off"),
        (&patched(18, &183u16.to_le_bytes()), "is built for aarch64, this host runs on x86_64"),
        (&patched(18, &0x1234u16.to_le_bytes()), "is built for an unknown machine (ELF machine 4660)"),
        (&patched(16, &2u16.to_le_bytes()), "it is an ELF file, but not a shared library"),
        (b"MZ\x90\0\x03\0\0\0", "is built for Windows"),
    ];
    for (bytes, words) in files {
        let folder = Folder::new(&[("file", bytes)]);
        let error = only(folder.registry().scan()).description.unwrap_err();
        // The table is that of the machine that most tests run on.
        if cfg!(target_arch = "x86_64") {
            assert_says(&error, &[words]);
        }
    }
}

/// Damage anywhere in the file gives an error or a plugin that works, never harm.
#[test]
fn damaged_libraries_do_no_harm() {
    let healthy = bad("healthy");
    let mut seed = 1u64;
    for round in 0..12 {
        let mut library = healthy.clone();
        for _ in 0..64 << (round % 6) {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = 64 + (seed >> 33) as usize % (library.len() / 4);
            library[at] = seed as u8;
        }
        let folder = Folder::new(&[("damaged", &library)]);
        let found = only(folder.registry_with(|o| o.deadline = Duration::from_secs(5)).scan());
        if let Err(error) = &found.description {
            assert_says(error, &[]);
        }
    }
    assert_no_zombies();
}

/// Compiles a library of one source file with rustc.
fn rustc(source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("lib.rs"), dir.path().join("out.so"));
    std::fs::write(&input, source).unwrap();
    let status = std::process::Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .args([&output, &input])
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(output).unwrap()
}

#[test]
fn libraries_that_are_no_plugins_are_named() {
    let plain = rustc("#[unsafe(no_mangle)] pub extern \"C\" fn f() {}");
    let folder = Folder::new(&[("plain", &plain)]);
    let error = only(folder.registry().scan()).description.unwrap_err();
    assert_says(&error, &["is a shared library but not a host plugin: it exports no plugin entry point"]);

    let other = rustc("#[unsafe(no_mangle)] pub static _1as_0lib_1header_0root_bmodule_bloader: [u64; 64] = [7; 64];");
    let folder = Folder::new(&[("other", &other)]);
    let error = only(folder.registry().scan()).description.unwrap_err();
    assert_says(&error, &["was built against another plugin ABI: its entry point is not one of abi_stable"]);
}

#[test]
fn another_layout_is_named_in_one_line() {
    let folder = Folder::new(&[("layout", &other_layout("host_plugin_layout"))]);
    let error = only(folder.registry().scan()).description.unwrap_err();
    assert!(matches!(error.cause, Cause::Layout(_)));
    assert_says(
        &error,
        &[
            "was built against another plugin ABI: ",
            "expected ",
            "found ",
            "rebuild it with the plugin-api of this host",
        ],
    );
    assert!(error.to_string().len() < 600, "{error}");
}
