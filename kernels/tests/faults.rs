//! What the emulator is there for: mistakes in kernels, planted one by one into the sources, each noticed. And the other way
//! round: with no mistake planted nothing is noticed. `sanitized` runs the whole small table with the address and
//! undefined-behaviour sanitizers, in a process of its own, since these must be loaded before all else.

mod table;

use std::process::Command;

use kernels::cuda::{Cuda, EmulatedOptions, Module, Sanitizer, emulated};
use table::On;
use table::attention::{Paged, Spec};

fn device(seed: u64, sanitizer: Option<Sanitizer>, edits: &[(Module, &str, &str)]) -> Cuda {
    let edits = edits.iter().map(|&(module, from, to)| (module, from.to_owned(), to.to_owned())).collect();
    let options = EmulatedOptions { seed, sanitizer, edits, ..EmulatedOptions::default() };
    emulated(&options).unwrap_or_else(|e| panic!("{e}"))
}

/// What is wrong with some cases on this device: a fault, or numbers beyond their tolerance.
fn wrong(device: &Cuda, cases: &mut [table::Case]) -> Option<String> {
    for case in cases {
        let mut out = vec![f32::NAN; case.outputs];
        let run = std::panic::AssertUnwindSafe(|| (case.run)(&On::Cuda(device), &mut out));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let literal = || panic.downcast_ref::<&str>().map_or("a panic".to_owned(), |text| (*text).to_owned());
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(literal);
            return Some(text);
        }
        for (got, want) in out.iter().zip((case.reference)()) {
            let error = (f64::from(*got) - want.value).abs();
            if error.is_nan() || error > case.tolerance * want.scale + f64::from(f32::MIN_POSITIVE) {
                return Some(format!("{}: {got} for {}", case.name, want.value));
            }
        }
    }
    None
}

/// Small cases of one kind.
fn cases(prefix: &str, most: usize) -> Vec<table::Case> {
    let mut all: Vec<_> = table::device_cases().into_iter().filter(|c| c.name.starts_with(prefix)).collect();
    all.sort_by_key(|c| c.flops as u64);
    let from = all.len().saturating_sub(most);
    all.split_off(from)
}

/// A case that goes through several tiles of keys, so that copies are under way while others are waited for.
fn long_attention() -> Vec<table::Case> {
    table::device_cases().into_iter().filter(|c| c.name.starts_with("attention/F32/[(130,5)]")).collect()
}

/// The mistake is noticed in one of a few schedules, and what is said has one of these words. Without it nothing is.
fn noticed(edit: (Module, &str, &str), words: &[&str], mut cases: Vec<table::Case>) {
    assert!(!cases.is_empty(), "no case");
    let sound = wrong(&device(1, None, &[]), &mut cases);
    assert_eq!(sound, None);
    let said: Vec<String> = (1..=5).filter_map(|seed| wrong(&device(seed, None, &[edit]), &mut cases)).collect();
    let right = said.iter().any(|text| words.iter().any(|word| text.contains(word)));
    assert!(right, "planted {edit:?}; it says {said:?}");
}

/// What a schedule in which memory was read too early gives.
const NUMBERS: [&str; 3] = ["NaN", " for ", "differs"];

#[test]
fn a_removed_barrier_before_shared_memory_is_read() {
    let edit = (
        "if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;\n    __syncthreads();\n    float sum",
        "if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;\n    float sum",
    );
    noticed((Module::Rows, edit.0, edit.1), &NUMBERS, cases("rms_norm/", 3));
}

#[test]
fn a_removed_barrier_between_uses_of_shared_memory() {
    // The next chunk is written over what slower warps still read.
    let (before, after) = ("            }\n        }\n", "    }\n    // Each lane writes one of the eight columns.");
    let (from, to) = ([before, "        __syncthreads();\n", after].concat(), [before, after].concat());
    let edit = (from.as_str(), to.as_str());
    let many_rows = table::device_cases().into_iter().filter(|c| c.name.starts_with("linear/F32/m100/k67/")).collect();
    noticed((Module::Linear, edit.0, edit.1), &NUMBERS, many_rows);
}

#[test]
fn a_barrier_that_only_some_threads_reach() {
    let edit = (
        "room[threadIdx.x / 32] = x;\n    __syncthreads();\n    float sum = 0.0f;",
        "room[threadIdx.x / 32] = x;\n    if (threadIdx.x < 32) __syncthreads();\n    float sum = 0.0f;",
    );
    noticed((Module::Rows, edit.0, edit.1), &["different barriers", "no thread can go on"], cases("rms_norm/", 3));
}

#[test]
fn a_shuffle_that_some_lanes_of_a_warp_leave_out() {
    let edit = ("    x = warp_sum(x);", "    if (threadIdx.x % 32 < 31) x = warp_sum(x);");
    let words = ["different collectives", "missing from a collective", "no thread can go on", "is in a collective"];
    noticed((Module::Rows, edit.0, edit.1), &words, cases("rms_norm/", 3));
}

#[test]
fn a_wait_for_one_copy_too_few() {
    let edit = ("            copy_wait<1>();", "            copy_wait<2>();");
    noticed((Module::Attention, edit.0, edit.1), &NUMBERS, long_attention());
}

#[test]
fn a_copy_that_nobody_waits_for() {
    let edit = ("            copy_wait<0>();", "");
    noticed((Module::Attention, edit.0, edit.1), &["asynchronous copies", "NaN", " for "], long_attention());
}

#[test]
fn a_block_index_that_is_off_by_one() {
    let edit = (
        "int position = low + i / pieces, at = i % pieces * each;\n            i64 block = table[position / BLOCK];",
        "int position = low + i / pieces, at = i % pieces * each;\n            i64 block = table[(position + 1) / BLOCK];",
    );
    noticed((Module::Attention, edit.0, edit.1), &NUMBERS, long_attention());
}

#[test]
fn a_removed_barrier_between_the_digits_of_a_draw() {
    let edit = (
        "        bool alone = bin < BINS && room.counts[bin] == 1;\n        __syncthreads();\n",
        "        bool alone = bin < BINS && room.counts[bin] == 1;\n",
    );
    noticed(
        (Module::Sample, edit.0, edit.1),
        &[" for ", "no thread can go on", "different", "missing from a collective"],
        cases("sample/", 9),
    );
}

#[test]
fn a_draw_that_is_off_by_one_where_a_digit_ends() {
    let edit = ("wanted <= before + here", "wanted < before + here");
    noticed((Module::Sample, edit.0, edit.1), &[" for "], cases("sample/all", 9));
}

#[test]
fn an_argument_of_another_kind() {
    let edit = ("float offset, float eps, int width,", "float offset, float eps, i64 width,");
    noticed((Module::Rows, edit.0, edit.1), &["takes parameters"], cases("rms_norm/", 1));
}

/// Runs a test of this file again, in a process that has the sanitizer loaded; what it prints, and whether it passed.
fn sanitized(library: &str, test: &str) -> (bool, String) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let name = format!("-print-file-name={library}");
    let output = Command::new(&compiler).arg(name).output().expect("runs the C++ compiler");
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(found.starts_with('/'), "{compiler} has no {library}: install the sanitizers of g++");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads", "1"])
        .env("LD_PRELOAD", found)
        .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
        .env("UBSAN_OPTIONS", "print_stacktrace=0")
        // This program is not built with it, so what its threads do to each other is not to be judged.
        .env("TSAN_OPTIONS", "halt_on_error=1 ignore_noninstrumented_modules=1 report_signal_unsafe=0")
        .output()
        .expect("runs this program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[test]
fn small_cases_pass_with_the_sanitizers() {
    let (passed, text) = sanitized("libasan.so", "in_process_small_cases");
    assert!(passed && text.contains("1 passed"), "{text}");
}

#[test]
fn a_read_outside_of_a_buffer_is_named_by_the_sanitizer() {
    let (passed, text) = sanitized("libasan.so", "in_process_read_beyond_the_end");
    assert!(!passed && text.contains("heap-buffer-overflow") && text.contains("rows.cu"), "{text}");
}

#[test]
#[ignore = "is run with the sanitizers, by `small_cases_pass_with_the_sanitizers`"]
fn in_process_small_cases() {
    let device = device(7, Some(Sanitizer::Address), &[]);
    let mut all: Vec<_> = table::device_cases().into_iter().filter(|c| c.flops < 3e5).collect();
    assert!(all.len() > 200);
    assert_eq!(wrong(&device, &mut all), None);
}

#[test]
#[ignore = "is run with the sanitizers, by `a_read_outside_of_a_buffer_is_named_by_the_sanitizer`"]
fn in_process_read_beyond_the_end() {
    let edit = (
        "for (int i = threadIdx.x; i < width; i += blockDim.x) sum += from[i];",
        "for (int i = threadIdx.x; i <= width; i += blockDim.x) sum += from[i];",
    );
    let device = device(0, Some(Sanitizer::Address), &[(Module::Rows, edit.0, edit.1)]);
    wrong(&device, &mut cases("layer_norm/", 3));
}

/// A few small cases of each kind: every kernel is run, in some seconds.
fn few_of_each() -> Vec<table::Case> {
    let mut all: Vec<_> = table::device_cases().into_iter().filter(|c| c.flops < 2e5).collect();
    all.sort_by_key(|c| c.flops as u64);
    let mut seen = std::collections::HashMap::new();
    all.retain(|case| {
        let parts: Vec<&str> = case.name.split('/').take(2).collect();
        let count = seen.entry(parts.join("/")).or_insert(0);
        *count += 1;
        *count <= 3
    });
    all
}

#[test]
fn threads_of_small_cases_are_ordered_by_barriers() {
    let (passed, text) = sanitized("libtsan.so", "in_process_few_of_each");
    assert!(passed && text.contains("1 passed"), "{text}");
}

#[test]
fn a_race_is_named_by_the_thread_sanitizer() {
    let (passed, text) = sanitized("libtsan.so", "in_process_race");
    assert!(!passed && text.contains("data race") && text.contains("device.cuh"), "{text}");
}

/// Blocks that write the same place: no schedule of the emulator shows it, which runs block after block.
#[test]
fn a_race_of_blocks_is_named_by_the_thread_sanitizer() {
    let (passed, text) = sanitized("libtsan.so", "in_process_race_of_blocks");
    assert!(!passed && text.contains("data race") && text.contains("rows.cu"), "{text}");
}

#[test]
#[ignore = "is run with the sanitizer, by `threads_of_small_cases_are_ordered_by_barriers`"]
fn in_process_few_of_each() {
    let device = device(7, Some(Sanitizer::Thread), &[]);
    let mut all = few_of_each();
    assert!(all.len() > 60, "{}", all.len());
    assert_eq!(wrong(&device, &mut all), None);
}

#[test]
#[ignore = "is run with the sanitizer, by `a_race_is_named_by_the_thread_sanitizer`"]
fn in_process_race() {
    // The plain schedule gives the right numbers all the same.
    let edit = (
        "    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += room[warp];\n    __syncthreads();\n",
        "    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += room[warp];\n",
    );
    let device = device(0, Some(Sanitizer::Thread), &[(Module::Rows, edit.0, edit.1)]);
    wrong(&device, &mut cases("layer_norm/", 3));
}

#[test]
#[ignore = "is run with the sanitizer, by `a_race_of_blocks_is_named_by_the_thread_sanitizer`"]
fn in_process_race_of_blocks() {
    let edit = (
        "    out[row * out_stride + column] = a[row * a_stride + column] + b[row * b_stride + column];",
        "    out[row * out_stride + column] = a[row * a_stride + column] + b[row * b_stride + column];\n    out[(column + 1) % cols] += 0.0f;",
    );
    let device = device(0, Some(Sanitizer::Thread), &[(Module::Rows, edit.0, edit.1)]);
    wrong(&device, &mut cases("add/", 3));
}

/// A context of several parts: in one piece by one block, and by a block for each part (`attention` of the table compares
/// the bits of both), alone and next to others.
#[test]
fn attention_of_several_parts_has_the_same_bits_in_any_step() {
    let spec = Spec::new(&[(600, 40), (33, 33)], 4, 2, 32, 24);
    let device = device(3, None, &[]);
    let on = On::Cuda(&device);
    let mut paged = Paged::new(spec.clone(), 1);
    paged.write_all(&on);
    let width = spec.heads * spec.shape.value_dim;
    let mut whole = vec![0.0; paged.outputs()];
    paged.attend(&on, &paged.parts(), 0, &mut whole);
    let expected = paged.reference();
    for (got, want) in whole.iter().zip(&expected) {
        assert!((f64::from(*got) - want.value).abs() <= 4e-6, "{got} for {}", want.value);
    }
    for (from, to) in [(560, 561), (570, 573), (599, 600)] {
        let mut out = vec![0.0; (to - from) * width];
        paged.attend(&on, &[(0, from, to)], 5, &mut out);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out), bits(&whole[(from - 560) * width..(to - 560) * width]), "{from}..{to}");
    }
}
