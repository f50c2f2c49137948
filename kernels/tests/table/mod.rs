//! The table of kernel cases: one entry is one test against an f64 reference, and, if it is marked so, one benchmark.
//!
//! `tests/kernels.rs` runs every entry on every instruction set and several thread counts, `tests/cuda.rs` on the emulated
//! device in several schedules; `benches/kernels.rs` times the entries of [`bench_cases`]. A new kernel's test is one entry here.
#![allow(dead_code, unreachable_pub, reason = "tests and benches use different parts")]

pub mod attention;
pub mod grouped;
pub mod linear;
pub mod on;
pub mod ops;
pub mod recurrent;
pub mod sample;

pub use on::On;

/// One output: what it should be, and the magnitude that its error is relative to.
#[derive(Clone, Copy)]
pub struct Expected {
    pub value: f64,
    pub scale: f64,
}

/// Runs a kernel into the given outputs.
pub type Run = Box<dyn FnMut(&On<'_>, &mut [f32])>;

/// A kernel with inputs of one shape.
pub struct Case {
    pub name: String,
    /// `|got - value| <= tolerance * scale`
    pub tolerance: f64,
    /// For throughput: floating-point operations, and bytes read and written.
    pub flops: f64,
    pub bytes: f64,
    pub outputs: usize,
    pub run: Run,
    pub reference: Box<dyn Fn() -> Vec<Expected>>,
}

/// All cases that are tested.
pub fn test_cases() -> Vec<Case> {
    let mut all = linear::test_cases();
    all.extend(attention::test_cases());
    all.extend(ops::test_cases());
    all.extend(grouped::test_cases());
    all.extend(recurrent::test_cases());
    all
}

/// Those that a CUDA device has kernels for: all but quantised weights and caches; and the choice of tokens.
pub fn device_cases() -> Vec<Case> {
    let mut all = test_cases();
    all.retain(|case| !["Int8", "Int4"].iter().any(|kind| case.name.contains(kind)));
    all.extend(sample::device_cases());
    all
}

/// A case of real size: made only when its turn has come, and gone after it.
pub struct Timed {
    pub name: String,
    pub make: Box<dyn FnOnce() -> Case>,
}

impl Timed {
    pub fn new(name: String, make: impl FnOnce() -> Case + 'static) -> Self {
        Timed { name, make: Box::new(make) }
    }
}

impl From<Case> for Timed {
    fn from(case: Case) -> Self {
        Timed::new(case.name.clone(), move || case)
    }
}

/// Shapes of real models, to be timed.
pub fn bench_cases() -> Vec<Timed> {
    let mut all = linear::bench_cases();
    all.extend(attention::bench_cases());
    all.extend(ops::bench_cases().into_iter().map(Timed::from));
    all.extend(grouped::bench_cases());
    all.extend(recurrent::bench_cases().into_iter().map(Timed::from));
    all
}

/// An exact reference whose error is relative to the value itself.
pub fn relative(values: impl IntoIterator<Item = f64>) -> Vec<Expected> {
    values.into_iter().map(|value| Expected { value, scale: value.abs().max(1e-30) }).collect()
}

/// Numbers from a fixed seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }

    /// A permutation of 0..n.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        all
    }
}
