//! Attention through a paged cache: grouped heads, windows, caps, sinks, slopes, odd sizes, all cache dtypes.

use half::bf16;
use kernels::cpu::{
    AttentionParams, BLOCK, Cpu, KvCache, KvCacheMut, KvMut, KvRef, KvShape, NO_BLOCK, Rows, RowsMut, SeqSpan,
};

use super::on::{attention, write_kv};
use super::{Case, Expected, On, Random, Timed};

/// What the cache holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Held {
    F32,
    Bf16,
    Int8,
}

impl Held {
    pub const ALL: [Held; 3] = [Held::F32, Held::Bf16, Held::Int8];

    /// Bytes of a key or value.
    fn bytes(self, dim: usize) -> usize {
        match self {
            Held::F32 => dim * 4,
            Held::Bf16 => dim * 2,
            Held::Int8 => dim + 4,
        }
    }

    /// A key or value as the cache holds it.
    pub fn round(self, row: &[f32]) -> Vec<f64> {
        let largest = row.iter().fold(0f32, |max, x| max.max(x.abs()));
        let scale = largest / 127.0;
        let one = |&x: &f32| match self {
            Held::F32 => f64::from(x),
            Held::Bf16 => bf16::from_f32(x).to_f64(),
            Held::Int8 if scale < f32::MIN_POSITIVE => 0.0,
            Held::Int8 => f64::from((x * (1.0 / scale)).round_ties_even()) * f64::from(scale),
        };
        row.iter().map(one).collect()
    }
}

/// One attention call: for each sequence how many positions there are and how many of the last are computed.
#[derive(Clone, Debug)]
pub struct Spec {
    pub seqs: Vec<(usize, usize)>,
    pub heads: usize,
    pub shape: KvShape,
    pub window: Option<usize>,
    pub chunk: Option<usize>,
    pub softcap: Option<f32>,
    pub sinks: bool,
    pub alibi: bool,
    pub held: Held,
}

impl Spec {
    pub fn new(seqs: &[(usize, usize)], heads: usize, kv_heads: usize, head_dim: usize, value_dim: usize) -> Self {
        let shape = KvShape { kv_heads, head_dim, value_dim };
        Spec {
            seqs: seqs.into(),
            heads,
            shape,
            window: None,
            chunk: None,
            softcap: None,
            sinks: false,
            alibi: false,
            held: Held::F32,
        }
    }
}

/// Tensors of whole sequences: q, k, v of every position.
pub struct Sequence {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// A cache with sequences in it.
pub struct Paged {
    pub spec: Spec,
    pub sequences: Vec<Sequence>,
    pub sinks: Vec<f32>,
    pub slopes: Vec<f32>,
    pub tables: Vec<Vec<u32>>,
    k: Cache,
    v: Cache,
}

enum Cache {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Int8 { codes: Vec<i8>, scales: Vec<f32> },
}

impl Cache {
    fn new(held: Held, n: usize, scales: usize) -> Self {
        // Stale blocks may hold anything: no NaN may leak from a position that is not visible.
        match held {
            Held::F32 => Cache::F32(vec![f32::NAN; n]),
            Held::Bf16 => Cache::Bf16(vec![bf16::NAN; n]),
            Held::Int8 => Cache::Int8 { codes: vec![-128; n], scales: vec![f32::NAN; scales] },
        }
    }
    fn view(&self) -> KvRef<'_> {
        match self {
            Cache::F32(x) => KvRef::F32(x),
            Cache::Bf16(x) => KvRef::Bf16(x),
            Cache::Int8 { codes, scales } => KvRef::Int8 { codes, scales },
        }
    }
    fn view_mut(&mut self) -> KvMut<'_> {
        match self {
            Cache::F32(x) => KvMut::F32(x),
            Cache::Bf16(x) => KvMut::Bf16(x),
            Cache::Int8 { codes, scales } => KvMut::Int8 { codes, scales },
        }
    }
}

impl Paged {
    /// `seed` decides which physical blocks are used, and nothing else.
    pub fn new(spec: Spec, seed: u64) -> Self {
        let mut random = Random(3);
        let shape = spec.shape;
        let sequences: Vec<_> = spec
            .seqs
            .iter()
            .map(|&(length, _)| Sequence {
                q: random.vec(length * spec.heads * shape.head_dim),
                k: random.vec(length * shape.kv_heads * shape.head_dim),
                v: random.vec(length * shape.kv_heads * shape.value_dim),
            })
            .collect();
        let needed: usize = spec.seqs.iter().map(|s| s.0.div_ceil(BLOCK)).sum();
        let blocks = needed + 3;
        let mut ids = Random(seed).permutation(blocks).into_iter();
        let tables = spec.seqs.iter().map(|s| ids.by_ref().take(s.0.div_ceil(BLOCK)).collect()).collect();
        let k = Cache::new(spec.held, blocks * shape.k_block(), blocks * shape.scales_block());
        let v = Cache::new(spec.held, blocks * shape.v_block(), blocks * shape.scales_block());
        let sinks = random.vec(spec.heads);
        let slopes = (1..=spec.heads).map(|h| 0.5f32.powf(8.0 * h as f32 / spec.heads as f32)).collect();
        Paged { spec, sequences, sinks, slopes, tables, k, v }
    }

    /// Writes positions `from..to` of one sequence.
    pub fn write(&mut self, cpu: &On<'_>, sequence: usize, from: usize, to: usize) {
        let shape = self.spec.shape;
        let (k_cols, v_cols) = (shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_dim);
        let tensors = &self.sequences[sequence];
        let k = Rows::dense(&tensors.k[from * k_cols..], to - from, k_cols);
        let v = Rows::dense(&tensors.v[from * v_cols..], to - from, v_cols);
        let span = SeqSpan { first_row: 0, rows: to - from, first_position: from, blocks: &self.tables[sequence] };
        let cache = KvCacheMut { shape, k: self.k.view_mut(), v: self.v.view_mut() };
        write_kv(cpu, k, v, &[span], cache).unwrap();
    }

    pub fn write_all(&mut self, cpu: &On<'_>) {
        for sequence in 0..self.sequences.len() {
            self.write(cpu, sequence, 0, self.spec.seqs[sequence].0);
        }
    }

    /// Forgets blocks that no position from `position` on sees.
    pub fn free_before(&mut self, sequence: usize, position: usize) {
        if let Some(window) = self.spec.window {
            let first = (position + 1).saturating_sub(window) / BLOCK;
            self.tables[sequence][..first].fill(NO_BLOCK);
        }
    }

    pub fn params(&self) -> AttentionParams<'_> {
        AttentionParams {
            heads: self.spec.heads,
            scale: 0.3,
            window: self.spec.window,
            chunk: self.spec.chunk,
            softcap: self.spec.softcap,
            sinks: self.spec.sinks.then_some(&self.sinks),
            alibi_slopes: self.spec.alibi.then_some(&self.slopes),
        }
    }

    /// Attention for `(sequence, from, to)` parts, laid end to end. `padding` elements after each row of q.
    pub fn attend(&self, cpu: &On<'_>, parts: &[(usize, usize, usize)], padding: usize, out: &mut [f32]) {
        let shape = self.spec.shape;
        let cols = self.spec.heads * shape.head_dim;
        let mut q = Vec::new();
        let mut spans = Vec::new();
        let mut row = 0;
        for &(sequence, from, to) in parts {
            for position in from..to {
                q.extend_from_slice(&self.sequences[sequence].q[position * cols..][..cols]);
                q.extend(std::iter::repeat_n(f32::NAN, padding));
            }
            let blocks = &self.tables[sequence];
            spans.push(SeqSpan { first_row: row, rows: to - from, first_position: from, blocks });
            row += to - from;
        }
        let q = Rows::strided(&q, row, cols, cols + padding);
        let out = RowsMut::dense(out, row, self.spec.heads * shape.value_dim);
        let cache = KvCache { shape, k: self.k.view(), v: self.v.view() };
        attention(cpu, &self.params(), q, cache, &spans, out).unwrap();
    }

    /// The parts that the spec asks for.
    pub fn parts(&self) -> Vec<(usize, usize, usize)> {
        self.spec.seqs.iter().enumerate().map(|(i, &(length, rows))| (i, length - rows, length)).collect()
    }

    pub fn outputs(&self) -> usize {
        self.spec.seqs.iter().map(|s| s.1).sum::<usize>() * self.spec.heads * self.spec.shape.value_dim
    }

    pub fn reference(&self) -> Vec<Expected> {
        let spec = &self.spec;
        let KvShape { kv_heads, head_dim, value_dim } = spec.shape;
        let held = |x: &[f32], dim: usize| x.chunks_exact(dim).flat_map(|row| spec.held.round(row)).collect::<Vec<_>>();
        let mut out = Vec::new();
        for (sequence, from, to) in self.parts() {
            let t = &self.sequences[sequence];
            let (keys, values) = (held(&t.k, head_dim), held(&t.v, value_dim));
            for p in from..to {
                for head in 0..spec.heads {
                    let kv = head / (spec.heads / kv_heads);
                    let first = spec.window.map_or(0, |w| (p + 1).saturating_sub(w));
                    let first = spec.chunk.map_or(first, |c| first.max(p / c * c));
                    let scores: Vec<f64> = (first..=p)
                        .map(|j| {
                            let q = &t.q[(p * spec.heads + head) * head_dim..][..head_dim];
                            let k = &keys[(j * kv_heads + kv) * head_dim..][..head_dim];
                            let mut s: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * k).sum();
                            s *= f64::from(0.3f32);
                            if let Some(cap) = spec.softcap {
                                s = f64::from(cap) * (s / f64::from(cap)).tanh();
                            }
                            if spec.alibi {
                                s += f64::from(self.slopes[head]) * (j as f64 - p as f64);
                            }
                            s
                        })
                        .collect();
                    let sink = if spec.sinks { self.sinks[head].into() } else { f64::NEG_INFINITY };
                    let max = scores.iter().copied().fold(sink, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
                    for d in 0..value_dim {
                        let value = scores
                            .iter()
                            .zip(first..)
                            .map(|(s, j)| (s - max).exp() / sum * values[(j * kv_heads + kv) * value_dim + d])
                            .sum();
                        out.push(Expected { value, scale: 1.0 });
                    }
                }
            }
        }
        out
    }
}

fn name(spec: &Spec) -> String {
    let KvShape { kv_heads, head_dim, value_dim } = spec.shape;
    let name = format!(
        "attention/{:?}/{:?}/h{}/kv{kv_heads}/d{head_dim}/v{value_dim}/w{:?}/cap{:?}/sinks{}/alibi{}",
        spec.held,
        spec.seqs,
        spec.heads,
        (spec.window, spec.chunk),
        spec.softcap,
        spec.sinks,
        spec.alibi
    );
    name.replace(' ', "")
}

fn case(spec: Spec) -> Case {
    let KvShape { kv_heads, head_dim, value_dim } = spec.shape;
    let name = name(&spec);
    let pairs: f64 = spec.seqs.iter().map(|&(l, r)| (r * (2 * l - r + 1)) as f64 / 2.0).sum();
    let keys: f64 = spec.seqs.iter().map(|s| s.0 as f64).sum();
    let paged = std::rc::Rc::new(std::cell::RefCell::new(Paged::new(spec.clone(), 5)));
    paged.borrow_mut().write_all(&On::Cpu(&Cpu::new(1).unwrap()));
    let parts = paged.borrow().parts();
    for &(sequence, from, _) in &parts {
        paged.borrow_mut().free_before(sequence, from);
    }
    let outputs = paged.borrow().outputs();
    let for_reference = paged.clone();
    Case {
        name,
        tolerance: 2e-6,
        flops: 2.0 * pairs * (spec.heads * (head_dim + value_dim)) as f64,
        bytes: keys * (kv_heads * (spec.held.bytes(head_dim) + spec.held.bytes(value_dim))) as f64,
        outputs,
        run: Box::new(move |cpu, out| paged.borrow().attend(cpu, &parts, 3, out)),
        reference: Box::new(move || for_reference.borrow().reference()),
    }
}

pub fn test_cases() -> Vec<Case> {
    let mut specs = Vec::new();
    for held in Held::ALL {
        let mut add = |spec: Spec| specs.push(Spec { held, ..spec });
        add(Spec::new(&[(1, 1)], 1, 1, 16, 16));
        add(Spec::new(&[(100, 1), (17, 17), (64, 3)], 4, 2, 64, 64));
        add(Spec::new(&[(150, 70)], 8, 1, 32, 48));
        add(Spec::new(&[(65, 65)], 3, 3, 20, 7));
        add(Spec::new(&[(33, 33), (200, 1)], 6, 2, 1, 1));
        add(Spec::new(&[(130, 5)], 20, 1, 128, 128));
        add(Spec::new(&[(70, 30)], 34, 2, 24, 33));
        add(Spec { window: Some(1), ..Spec::new(&[(40, 40)], 2, 2, 16, 16) });
        add(Spec { window: Some(20), ..Spec::new(&[(150, 90), (300, 1)], 4, 2, 16, 16) });
        add(Spec { chunk: Some(1), ..Spec::new(&[(40, 40)], 2, 2, 16, 16) });
        add(Spec { chunk: Some(50), ..Spec::new(&[(150, 90), (300, 1), (7, 7)], 4, 2, 16, 16) });
        add(Spec { chunk: Some(64), window: Some(20), ..Spec::new(&[(150, 90), (130, 3)], 4, 1, 16, 80) });
        add(Spec { window: Some(64), ..Spec::new(&[(150, 90), (300, 1)], 4, 1, 16, 80) });
        add(Spec { window: Some(1000), ..Spec::new(&[(150, 90)], 4, 1, 16, 80) });
        add(Spec { softcap: Some(1.5), ..Spec::new(&[(90, 40)], 4, 2, 32, 32) });
        add(Spec { sinks: true, ..Spec::new(&[(90, 40)], 8, 2, 32, 32) });
        add(Spec { alibi: true, ..Spec::new(&[(190, 140)], 4, 4, 32, 32) });
        let all = Spec::new(&[(99, 50), (120, 1)], 8, 2, 32, 32);
        add(Spec { alibi: true, sinks: true, softcap: Some(3.0), window: Some(33), ..all });
        add(Spec::new(&[], 4, 2, 16, 16));
    }
    specs.into_iter().map(case).collect()
}

/// Decode of one and of many, long contexts, prompts.
pub fn bench_cases() -> Vec<Timed> {
    let mut specs = Vec::new();
    for held in Held::ALL {
        for seqs in [vec![(1024, 1)], vec![(8192, 1)], vec![(1024, 1); 16], vec![(512, 512)], vec![(4096, 256)]] {
            specs.push(Spec { held, ..Spec::new(&seqs, 32, 8, 64, 64) });
        }
        specs.push(Spec { held, ..Spec::new(&[(1024, 1)], 16, 16, 128, 128) });
        specs.push(Spec { held, ..Spec::new(&[(512, 512)], 12, 12, 64, 64) });
    }
    specs.into_iter().map(|spec| Timed::new(name(&spec), move || case(spec))).collect()
}
