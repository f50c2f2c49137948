//! Linear layers: dtypes, shapes around every tile edge, epilogues.

use half::{bf16, f16};
use kernels::cpu::{Activation, Compute, Cpu, Epilogue, Rows, RowsMut, Scratch, Segment, WeightRef, linear};

use super::ops::activation;
use super::{Case, Expected, Random};

#[derive(Clone)]
pub enum Weight {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Weight {
    pub fn view(&self) -> WeightRef<'_> {
        match self {
            Weight::F32(w) => WeightRef::F32(w),
            Weight::Bf16(w) => WeightRef::Bf16(w),
            Weight::F16(w) => WeightRef::F16(w),
        }
    }

    pub fn at(&self, i: usize) -> f64 {
        match self {
            Weight::F32(w) => w[i].into(),
            Weight::Bf16(w) => w[i].into(),
            Weight::F16(w) => w[i].into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    /// bf16 weights, bf16 products.
    Bf16Dot,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::F32, Kind::F16, Kind::Bf16, Kind::Bf16Dot];

    pub fn compute(self) -> Compute {
        if self == Kind::Bf16Dot { Compute::Bf16 } else { Compute::F32 }
    }

    pub fn weight(self, random: &mut Random, n: usize) -> Weight {
        match self {
            Kind::F32 => Weight::F32(random.vec(n)),
            Kind::F16 => Weight::F16((0..n).map(|_| f16::from_f32(random.unit())).collect()),
            Kind::Bf16 | Kind::Bf16Dot => Weight::Bf16((0..n).map(|_| bf16::from_f32(random.unit())).collect()),
        }
    }

    pub fn element(self) -> usize {
        if self == Kind::F32 { 4 } else { 2 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    None,
    Accumulate,
    Add,
}

/// One linear call. `n` of each segment; padding of x and out rows; what comes after the sums.
#[derive(Clone)]
pub struct Spec {
    pub kind: Kind,
    pub m: usize,
    pub k: usize,
    pub n: Vec<usize>,
    pub bias: bool,
    pub activation: Option<Activation>,
    pub end: End,
    pub padding: usize,
    /// Different weights that calls take in turn, so that they do not stay in the cache.
    pub copies: usize,
}

impl Spec {
    pub fn new(kind: Kind, m: usize, k: usize, n: &[usize]) -> Self {
        Spec { kind, m, k, n: n.into(), bias: false, activation: None, end: End::None, padding: 0, copies: 1 }
    }
}

/// The operands of a [`Spec`].
pub struct Operands {
    pub spec: Spec,
    pub x: Vec<f32>,
    pub weights: Vec<Vec<Weight>>,
    pub biases: Vec<Vec<f32>>,
    pub other: Vec<f32>,
    pub scratch: Scratch,
    turn: usize,
}

/// A gap between segments, which must stay untouched.
const GAP: usize = 3;

impl Operands {
    pub fn new(spec: Spec) -> Self {
        let mut random = Random(1);
        let x = random.vec(spec.m * (spec.k + spec.padding));
        let weights = (0..spec.copies)
            .map(|_| spec.n.iter().map(|n| spec.kind.weight(&mut random, n * spec.k)).collect())
            .collect();
        let biases = spec.n.iter().map(|&n| random.vec(n)).collect();
        let scratch = Scratch::with_capacity(spec.m, spec.k);
        let mut operands = Operands { spec, x, weights, biases, other: Vec::new(), scratch, turn: 0 };
        operands.other = random.vec(operands.outputs());
        operands
    }

    pub fn columns(&self) -> usize {
        self.spec.n.iter().map(|n| n + GAP).sum()
    }

    pub fn stride(&self) -> usize {
        self.columns() + self.spec.padding
    }

    pub fn outputs(&self) -> usize {
        self.spec.m * self.stride()
    }

    /// Runs rows `rows` of x only. Outputs that no segment covers keep 7.
    pub fn run(&mut self, cpu: &Cpu, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let (spec, stride, columns) = (&self.spec, self.stride(), self.columns());
        let x_stride = spec.k + spec.padding;
        let x = Rows::strided(&self.x[rows.start * x_stride..], rows.len(), spec.k, x_stride);
        let other = Rows::strided(&self.other[rows.start * stride..], rows.len(), columns, stride);
        let mut offset = 0;
        self.turn = (self.turn + 1) % spec.copies;
        let mut segments = Vec::new();
        for (weight, (&n, bias)) in self.weights[self.turn].iter().zip(spec.n.iter().zip(&self.biases)) {
            segments.push(Segment {
                weight: weight.view(),
                bias: spec.bias.then_some(bias),
                n,
                out_offset: offset,
                activation: spec.activation,
            });
            offset += n + GAP;
        }
        let epilogue = match spec.end {
            End::None => Epilogue::None,
            End::Accumulate => Epilogue::Accumulate,
            End::Add => Epilogue::Add(other),
        };
        out.fill(7.0);
        let out = RowsMut::strided(out, rows.len(), columns, stride);
        linear(cpu, &mut self.scratch, x, &segments, spec.kind.compute(), epilogue, out).unwrap();
    }

    pub fn reference(&self) -> Vec<Expected> {
        let spec = &self.spec;
        let mut out = vec![Expected { value: 7.0, scale: 0.0 }; self.outputs()];
        for row in 0..spec.m {
            let x = &self.x[row * (spec.k + spec.padding)..][..spec.k];
            let mut offset = row * self.stride();
            for (s, &n) in spec.n.iter().enumerate() {
                for column in 0..n {
                    let mut y = Expected { value: 0.0, scale: 1e-6 };
                    for (i, &x) in x.iter().enumerate() {
                        let x = if spec.kind == Kind::Bf16Dot { bf16::from_f32(x).to_f64() } else { x.into() };
                        let product = x * self.weights[0][s].at(column * spec.k + i);
                        y.value += product;
                        y.scale += product.abs();
                    }
                    if spec.bias {
                        y.value += f64::from(self.biases[s][column]);
                        y.scale += 1.0;
                    }
                    if let Some(f) = spec.activation {
                        y.value = activation(f, y.value);
                        y.scale = y.scale.max(y.value.abs()) * 2.0;
                    }
                    let before = match spec.end {
                        End::None => 0.0,
                        End::Accumulate => 7.0,
                        End::Add => self.other[offset + column].into(),
                    };
                    y.value += before;
                    y.scale += before.abs();
                    out[offset + column] = y;
                }
                offset += n + GAP;
            }
        }
        out
    }
}

fn case(spec: Spec) -> Case {
    let Spec { kind, m, k, n, bias, activation, end, .. } = spec.clone();
    let n_all: usize = n.iter().sum();
    let mut operands = Operands::new(spec.clone());
    let shared = std::rc::Rc::new(Operands::new(Spec { copies: 1, ..spec }));
    Case {
        name: format!("linear/{kind:?}/m{m}/k{k}/n{n:?}/{bias}/{activation:?}/{end:?}").replace(' ', ""),
        tolerance: 1e-6,
        flops: 2.0 * (m * k * n_all) as f64,
        bytes: (n_all * k * kind.element() + 4 * m * (k + n_all)) as f64,
        outputs: operands.outputs(),
        run: Box::new(move |cpu, out| operands.run(cpu, 0..m, out)),
        reference: Box::new(move || shared.reference()),
    }
}

pub fn test_cases() -> Vec<Case> {
    let mut specs = Vec::new();
    for kind in Kind::ALL {
        for m in [1, 2, 3, 5, 7, 16, 33, 100] {
            specs.push(Spec::new(kind, m, 67, &[17]));
            specs.push(Spec::new(kind, m, 64, &[5, 12, 3]));
        }
        for (k, n) in
            [(1, 1), (7, 5), (8, 4), (15, 3), (16, 16), (17, 1), (31, 9), (32, 8), (33, 2), (96, 6), (257, 40)]
        {
            specs.push(Spec::new(kind, 4, k, &[n]));
        }
        // Several blocks of rows: packed X is larger than the L2 share.
        specs.push(Spec::new(kind, 75, 4100, &[6]));
        specs.push(Spec::new(kind, 0, 32, &[4]));
        specs.push(Spec::new(kind, 3, 0, &[4]));
        specs.push(Spec { bias: true, padding: 5, ..Spec::new(kind, 7, 40, &[9, 4]) });
        specs.push(Spec { bias: true, activation: Some(Activation::GeluTanh), ..Spec::new(kind, 7, 40, &[39]) });
        for end in [End::Accumulate, End::Add] {
            specs.push(Spec { end, bias: true, padding: 2, ..Spec::new(kind, 8, 50, &[21, 2]) });
        }
    }
    specs.into_iter().map(case).collect()
}

pub fn bench_cases() -> Vec<Case> {
    let mut specs = Vec::new();
    for kind in Kind::ALL {
        for m in [1, 4, 16, 64, 256] {
            specs.push(Spec { copies: 8, ..Spec::new(kind, m, 2048, &[4096]) });
        }
    }
    specs.into_iter().map(case).collect()
}
