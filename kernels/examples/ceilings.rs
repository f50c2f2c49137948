//! How close the matrix kernels come to what this machine can do:
//!
//!     cargo run --release -p kernels --example ceilings [threads [isa]]
//!
//! Decode: one row against 24 weights of 8192 x 2048 bf16 in turn (805 MB: more than a cache), as a fraction of the
//! bandwidth of plain reads of the same memory. Prefill: 512 rows, in GFLOP/s. Best of many calls: on a shared machine take
//! the numbers as a guide.

use std::time::{Duration, Instant};

use half::bf16;
use kernels::cpu::{
    Compute, Cpu, CpuOptions, Epilogue, Isa, Rows, RowsMut, Scratch, Segment, WeightRef, default_threads, linear, split,
};

const N: usize = 8192;
const K: usize = 2048;
const WEIGHTS: usize = 24;
const BUDGET: Duration = Duration::from_millis(1000);

/// Seconds. With one thread, those that it ran: others on the machine do not count.
fn now(threads: usize) -> f64 {
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds of the fastest of many calls.
fn best(threads: usize, mut call: impl FnMut(usize)) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for turn in 0.. {
        let call_start = now(threads);
        call(turn % WEIGHTS);
        best = best.min(now(threads) - call_start);
        if start.elapsed() > BUDGET {
            break;
        }
    }
    best
}

/// Sums all words: as fast as memory gives them.
fn read_all(cpu: &Cpu, words: &[u64]) -> u64 {
    let sums: Vec<_> = (0..cpu.threads()).map(|_| std::sync::atomic::AtomicU64::new(0)).collect();
    cpu.pool().run(&|part, parts| {
        let mine = &words[split(words.len(), part, parts)];
        let quarter = mine.len() / 4;
        let mut sum = [0u64; 4];
        // Four streams at once, as the kernel has.
        for i in 0..quarter {
            for (s, sum) in sum.iter_mut().enumerate() {
                *sum = sum.wrapping_add(mine[s * quarter + i]);
            }
        }
        sums[part].store(sum.iter().fold(0, |a, b| a ^ b), std::sync::atomic::Ordering::Relaxed);
    });
    sums.iter().map(|s| s.load(std::sync::atomic::Ordering::Relaxed)).fold(0, |a, b| a ^ b)
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|t| t.parse().ok()).unwrap_or(default_threads());
    // Small numbers, different everywhere.
    let words: Vec<u64> = (0..(WEIGHTS * N * K / 4) as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x807f_807f_807f_807f) | 0x3f00_3f00_3f00_3f00)
        .collect();
    // SAFETY: bf16 is plain old data.
    let (_, data, _) = unsafe { words.align_to::<bf16>() };
    let wanted: Option<Isa> = std::env::args().nth(2).and_then(|isa| isa.parse().ok());
    for isa in Isa::available().into_iter().filter(|isa| wanted.is_none_or(|wanted| wanted == *isa)) {
        let options = CpuOptions { threads, isa: Some(isa), pin: false };
        let cpu = match Cpu::with_options(options) {
            Ok(cpu) => cpu,
            Err(error) => return eprintln!("{error}"),
        };
        if isa == wanted.unwrap_or(Isa::detect()) {
            let chunk = words.len() / WEIGHTS;
            let seconds = best(cpu.threads(), |turn| {
                std::hint::black_box(read_all(&cpu, &words[turn * chunk..][..chunk]));
            });
            let ceiling = chunk as f64 * 8.0 / seconds / 1e9;
            println!("{threads} threads; plain reads {ceiling:.1} GB/s");
        }
        for compute in [Compute::Bf16, Compute::F32] {
            for m in [1, 2, 4, 8, 16, 32, 64, 128, 512] {
                if isa == Isa::Portable && m > 16 {
                    continue;
                }
                measure(&cpu, data, m, compute);
            }
        }
    }
}

fn measure(cpu: &Cpu, data: &[bf16], m: usize, compute: Compute) {
    let x: Vec<f32> = (0..m * K).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
    let mut out = vec![0.0; m * N];
    let mut scratch = Scratch::with_capacity(m, K);
    let seconds = best(cpu.threads(), |turn| {
        let weight = WeightRef::Bf16(&data[turn * N * K..][..N * K]);
        let segment = Segment { weight, bias: None, n: N, out_offset: 0, activation: None };
        let (x, out) = (Rows::dense(&x, m, K), RowsMut::dense(&mut out, m, N));
        let done = linear(cpu, &mut scratch, x, &[segment], compute, Epilogue::None, out);
        assert!(done.is_ok(), "{done:?}");
    });
    let (bytes, flops) = ((2 * N * K) as f64, (2 * m * N * K) as f64);
    println!(
        "{:8} {compute:?}: m={m:3} {:8.2} ms  {:6.1} GB/s of W  {:7.1} GFLOP/s",
        cpu.isa(),
        seconds * 1e3,
        bytes / seconds / 1e9,
        flops / seconds / 1e9
    );
}
