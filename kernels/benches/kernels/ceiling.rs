//! What a machine can do at most: bytes read from memory, and operations of each kind, by loops that do nothing else.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::cpu::{Cpu, Isa, split};

/// Larger than any cache.
const WORDS: usize = 32 << 20;
const BUDGET: Duration = Duration::from_millis(700);
/// Turns of a loop of arithmetic.
const TURNS: usize = 1 << 16;

/// In units of 10^9 a second, on all threads together.
pub(crate) struct Ceilings {
    bytes: f64,
    /// Multiplications and additions of f32, one of each in a fused one.
    floats: f64,
    /// The same of bf16 pairs, where there is an instruction.
    pairs: Option<f64>,
    /// The same of int8 summed to int32.
    integers: f64,
}

/// Time that passes. With one thread, that in which it runs: others on the machine do not count.
pub(crate) fn clock(threads: usize) -> Duration {
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Seconds of the fastest of many calls.
fn best(cpu: &Cpu, mut call: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < BUDGET {
        let before = clock(cpu.threads());
        call();
        best = best.min((clock(cpu.threads()) - before).as_secs_f64());
    }
    best
}

impl Ceilings {
    pub(crate) fn measure(cpu: &Cpu) -> Self {
        let words: Vec<u64> = (0..WORDS as u64).collect();
        let reading = best(cpu, || read_all(cpu, &words));
        // 8 accumulators and more keep the units busy.
        let rate = |operations: usize, turn: fn()| {
            let seconds = best(cpu, || cpu.pool().run(&|_, _| turn()));
            (cpu.threads() * TURNS * operations) as f64 / seconds / 1e9
        };
        let (floats, pairs, integers) = match cpu.isa() {
            // SAFETY, here and below: `Cpu` has checked that the processor has this instruction set.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (
                // SAFETY: as above.
                rate(12 * 16 * 2, || unsafe { x86::floats_512() }),
                // SAFETY: as above.
                Some(rate(12 * 32 * 2, || unsafe { x86::pairs_512() })),
                // SAFETY: as above; it includes AVX2.
                rate(8 * 32 * 2, || unsafe { x86::integers_256() }),
            ),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (
                // SAFETY: as above.
                rate(12 * 8 * 2, || unsafe { x86::floats_256() }),
                None,
                // SAFETY: as above.
                rate(8 * 32 * 2, || unsafe { x86::integers_256() }),
            ),
            _ => (rate(8 * 8 * 2, plain_floats), None, rate(8 * 8 * 2, plain_integers)),
        };
        Ceilings { bytes: (WORDS * 8) as f64 / reading / 1e9, floats, pairs, integers }
    }

    /// The rates of a case and their shares of the ceilings, which the name chooses.
    pub(crate) fn rates(&self, name: &str, bytes: f64, flops: f64, seconds: f64) -> String {
        let mut parts = name.split('/');
        let (kernel, kind) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let bytes = bytes / seconds / 1e9;
        let mut text = format!("{bytes:.1} GB/s ({:.0} % of reads)", bytes / self.bytes * 100.0);
        if ["linear", "grouped_linear", "attention"].contains(&kernel) {
            let (what, most) = match kind {
                _ if kernel == "attention" => ("f32", self.floats),
                "Bf16Dot" => self.pairs.map_or(("f32", self.floats), |pairs| ("bf16", pairs)),
                _ if kind.starts_with("Int") => ("int8", self.integers),
                _ => ("f32", self.floats),
            };
            let rate = flops / seconds / 1e9;
            text += &format!(", {rate:.0} G/s ({:.0} % of {what})", rate / most * 100.0);
        }
        text
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reads {:.1} GB/s; operations: f32 {:.0} G/s, ", self.bytes, self.floats)?;
        if let Some(pairs) = self.pairs {
            write!(f, "bf16 {pairs:.0} G/s, ")?;
        }
        write!(f, "int8 {:.0} G/s", self.integers)
    }
}

/// Sums all words, in four streams a thread, as kernels read weights.
fn read_all(cpu: &Cpu, words: &[u64]) {
    cpu.pool().run(&|part, parts| {
        let mine = &words[split(words.len(), part, parts)];
        let quarter = mine.len() / 4;
        let streams: [&[u64]; 4] = std::array::from_fn(|s| &mine[s * quarter..][..quarter]);
        let mut sums = [0u64; 4];
        for i in 0..quarter {
            for (sum, stream) in sums.iter_mut().zip(streams) {
                *sum = sum.wrapping_add(stream[i]);
            }
        }
        black_box(sums);
    });
}

fn plain_floats() {
    let (a, mut sums) = (black_box([1.000_000_1f32; 8]), [[1.0f32; 8]; 8]);
    for _ in 0..TURNS {
        for sum in &mut sums {
            for (x, a) in sum.iter_mut().zip(a) {
                *x = *x * a + a;
            }
        }
    }
    black_box(sums);
}

fn plain_integers() {
    let (a, mut sums) = (black_box([3i16; 8]), [[1i32; 8]; 8]);
    for turn in 0..TURNS {
        for sum in &mut sums {
            for (x, a) in sum.iter_mut().zip(a) {
                *x = x.wrapping_add(i32::from(a) * i32::from(turn as i16));
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::TURNS;

    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn floats_256() {
        let a = _mm256_set1_ps(black_box(1.000_000_1));
        let mut sums = [_mm256_set1_ps(1.0); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, a);
            }
        }
        black_box(sums);
    }

    /// Products of bytes, their sums in pairs and fours: the fewest instructions without VNNI.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn integers_256() {
        let mut x = [_mm256_set1_epi8(black_box(3)); 8];
        let one = _mm256_set1_epi16(1);
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..TURNS {
            // Otherwise the product would be computed once.
            x = black_box_registers(x);
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), one));
            }
        }
        black_box(sums);
    }

    /// Values that the compiler knows nothing of, without a way through memory.
    #[target_feature(enable = "avx2")]
    fn black_box_registers(mut x: [__m256i; 8]) -> [__m256i; 8] {
        for x in &mut x {
            // SAFETY: an empty instruction that changes nothing.
            unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) * x, options(nomem, nostack, preserves_flags)) };
        }
        x
    }

    /// # Safety
    /// The processor has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn floats_512() {
        let a = _mm512_set1_ps(black_box(1.000_000_1));
        let mut sums = [_mm512_set1_ps(1.0); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, a);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor has AVX-512 BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn pairs_512() {
        let bits = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: the same size, and any bits are values.
        let a: __m512bh = unsafe { std::mem::transmute(bits) };
        let mut sums = [_mm512_set1_ps(1.0); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, a);
            }
        }
        black_box(sums);
    }
}
