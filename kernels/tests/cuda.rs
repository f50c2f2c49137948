//! The table of kernel cases on the emulated device, in several schedules; batch invariance; the errors that the emulator is
//! there to notice, planted one by one.

mod table;

use kernels::cuda::{Cuda, Draw, EmulatedOptions, View, emulated, sample};
use table::On;

/// Schedules that every case runs in.
const SEEDS: [u64; 5] = [0, 1, 2, 3, 4];

fn device(seed: u64) -> Cuda {
    emulated(&EmulatedOptions { seed, ..EmulatedOptions::default() }).unwrap_or_else(|e| panic!("{e}"))
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs the cases whose name begins with one of the prefixes: each within its tolerance, and the same bits in every
/// schedule.
fn check(prefixes: &[&str]) {
    let devices = SEEDS.map(device);
    for prefix in prefixes {
        let cases = table::device_cases().into_iter().filter(|c| c.name.starts_with(prefix));
        let mut checked = 0;
        for mut case in cases {
            let expected = (case.reference)();
            let mut first: Option<Vec<u32>> = None;
            for (seed, device) in SEEDS.into_iter().zip(&devices) {
                let mut out = vec![f32::NAN; case.outputs];
                (case.run)(&On::Cuda(device), &mut out);
                for (i, (&got, want)) in out.iter().zip(&expected).enumerate() {
                    let error = (f64::from(got) - want.value).abs();
                    let allowed = case.tolerance * want.scale + f64::from(f32::MIN_POSITIVE);
                    let right = error <= allowed;
                    assert!(right, "{} seed {seed} [{i}]: {got} for {}, off by {error:e}", case.name, want.value);
                }
                let out = bits(&out);
                assert!(first.as_ref().is_none_or(|f| *f == out), "{}: depends on the schedule", case.name);
                first = Some(out);
            }
            checked += 1;
        }
        assert!(checked > 0, "no case begins with {prefix}");
    }
}

#[test]
fn linear_matches_f64() {
    check(&["linear/"]);
}

#[test]
fn attention_matches_f64() {
    check(&["attention/"]);
}

#[test]
fn grouped_linear_matches_f64() {
    check(&["grouped_linear/"]);
}

#[test]
fn recurrent_kernels_match_f64() {
    check(&["causal_conv1d/", "linear_attention/"]);
}

#[test]
fn norms_and_softmax_match_f64() {
    check(&["rms_norm", "layer_norm", "add_norm", "soft"]);
}

#[test]
fn elementwise_kernels_match_f64() {
    check(&["activate", "gated", "add", "rope", "mul", "scale", "zip", "argmax", "embed", "gather"]);
}

#[test]
fn tokens_are_those_of_a_sorted_row() {
    check(&["sample/"]);
}

#[test]
fn draws_that_cannot_be_are_refused_by_name() {
    let device = device(0);
    let memory = device.upload(&[0; 4 * 2 * 3]).unwrap();
    let rows = View::<f32>::dense(&memory, 2, 3);
    let draw = table::sample::plain(0, 1.0);
    let refused = |draws: &[(usize, &Draw)]| sample(&device, rows, draws).unwrap_err().to_string();
    for (name, wrong) in [
        ("draw.temperature", Draw { temperature: f32::NAN, ..draw.clone() }),
        ("draw.top_p", Draw { top_p: -0.5, ..draw.clone() }),
        ("draw.min_p", Draw { min_p: f32::INFINITY, ..draw.clone() }),
        ("draw.seen", Draw { seen: vec![(0, u32::MAX)], ..draw.clone() }),
    ] {
        assert!(refused(&[(0, &wrong)]).contains(name), "{name}: {}", refused(&[(0, &wrong)]));
    }
    assert!(refused(&[(2, &draw)]).contains("draws"));
    assert!(refused(&[(0, &draw), (0, &draw)]).contains("each once"));
    let none = View::<f32>::dense(&memory, 2, 0);
    assert!(sample(&device, none, &[]).unwrap_err().to_string().contains("rows.cols"));
    assert_eq!(sample(&device, rows, &[]), Ok(vec![]));
}
