//! Linear layers: dtypes, shapes around every tile edge, epilogues.

use half::{bf16, f16};
use kernels::cpu::{
    Activation, CodeRow, Compute, Cpu, Epilogue, QuantFormat, Quantised, Rows, RowsMut, Scratch, Segment, WeightRef,
};

use super::on::linear;
use super::ops::activation;
use super::{Case, Expected, On, Random, Timed};

#[derive(Clone)]
pub enum Weight {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    /// With the values that its codes and scales mean, once they are asked for.
    Quantised(Quantised, std::cell::OnceCell<Vec<f64>>),
}

impl Weight {
    pub fn view(&self) -> WeightRef<'_> {
        match self {
            Weight::F32(w) => WeightRef::F32(w),
            Weight::Bf16(w) => WeightRef::Bf16(w),
            Weight::F16(w) => WeightRef::F16(w),
            Weight::Quantised(w, _) => WeightRef::Quantised(w.view()),
        }
    }

    pub fn at(&self, i: usize) -> f64 {
        match self {
            Weight::F32(w) => w[i].into(),
            Weight::Bf16(w) => w[i].into(),
            Weight::F16(w) => w[i].into(),
            Weight::Quantised(w, values) => {
                values.get_or_init(|| (0..w.view().n()).flat_map(|row| w.view().row(row)).collect())[i]
            }
        }
    }
}

impl Weight {
    fn new(w: Quantised) -> Self {
        Weight::Quantised(w, std::cell::OnceCell::new())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    F32,
    F16,
    Bf16,
    /// bf16 weights, bf16 products.
    Bf16Dot,
    /// int8 with a scale a row.
    Int8,
    /// int8 with scales of groups.
    Int8Groups(usize),
    Int4(usize),
    /// int4 with zeros of groups.
    Int4Zeros(usize),
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::F32,
        Kind::F16,
        Kind::Bf16,
        Kind::Bf16Dot,
        Kind::Int8,
        Kind::Int8Groups(32),
        Kind::Int8Groups(64),
        Kind::Int4(32),
        Kind::Int4(128),
        Kind::Int4Zeros(64),
    ];

    pub fn compute(self) -> Compute {
        match self {
            _ if self.format().is_some() => Compute::Int8,
            Kind::Bf16Dot => Compute::Bf16,
            _ => Compute::F32,
        }
    }

    pub fn format(self) -> Option<QuantFormat> {
        match self {
            Kind::Int8 => Some(QuantFormat::INT8),
            Kind::Int8Groups(group) => Some(QuantFormat::int8(group)),
            Kind::Int4(group) => Some(QuantFormat::int4(group, false)),
            Kind::Int4Zeros(group) => Some(QuantFormat::int4(group, true)),
            _ => None,
        }
    }

    /// X as the kernel rounds it.
    pub fn rounded(self, x: &[f32]) -> Vec<f64> {
        let group = match self {
            Kind::Bf16Dot => return x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect(),
            Kind::Int8 => 128,
            Kind::Int8Groups(group) | Kind::Int4(group) | Kind::Int4Zeros(group) => group,
            _ => return x.iter().map(|&x| x.into()).collect(),
        };
        let round = |group: &[f32]| -> Vec<f64> {
            let largest = group.iter().fold(0.0f32, |max, x| x.abs().max(max));
            let inverse = 127.0 / largest;
            group.iter().map(|x| f64::from((x * inverse).round_ties_even()) * f64::from(largest / 127.0)).collect()
        };
        x.chunks(group).flat_map(round).collect()
    }

    pub fn weight(self, random: &mut Random, n: usize, k: usize) -> Weight {
        let one = Cpu::new(1).unwrap();
        if let (Kind::Int4Zeros(_), Some(format)) = (self, self.format()) {
            let numbers: Vec<u64> = (0..n * (k + k.div_ceil(32) * 2)).map(|_| random.next() >> 8).collect();
            let fill = |first: usize, rows: &mut [CodeRow<'_>]| {
                for (i, row) in rows.iter_mut().enumerate() {
                    let mut own = numbers[(first + i) * (k + k.div_ceil(32) * 2)..].iter();
                    row.codes.iter_mut().for_each(|c| *c = (own.next().unwrap() % 16) as i8);
                    row.scales.iter_mut().for_each(|s| *s = (own.next().unwrap() % 1000 + 1) as f32 / 8192.0);
                    row.zeros.iter_mut().for_each(|z| *z = (own.next().unwrap() % 17) as f32);
                }
            };
            return Weight::new(Quantised::from_codes(&one, n, k, format, &fill).unwrap());
        }
        let (rows, n) = (n, n * k);
        match self {
            _ if let Some(format) = self.format() => {
                // Scales that differ from group to group and row to row.
                let values: Vec<f32> =
                    (0..n).map(|i| random.unit() * (1 + i / 32 % 5) as f32 * (1 + i / k % 7) as f32).collect();
                let fill = |first: usize, out: &mut [f32]| out.copy_from_slice(&values[first * k..][..out.len()]);
                Weight::new(Quantised::from_rows(&one, rows, k, format, &fill).unwrap())
            }
            Kind::F32 => Weight::F32(random.vec(n)),
            Kind::F16 => Weight::F16((0..n).map(|_| f16::from_f32(random.unit())).collect()),
            Kind::Bf16 | Kind::Bf16Dot => Weight::Bf16((0..n).map(|_| bf16::from_f32(random.unit())).collect()),
            _ => unreachable!("the others are quantised"),
        }
    }

    /// Bytes of a weight.
    pub fn element(self) -> f64 {
        match self {
            Kind::F32 => 4.0,
            Kind::Int8 => 1.0,
            Kind::Int8Groups(group) => 1.0 + 2.0 / group as f64,
            Kind::Int4(group) => 0.5 + 2.0 / group as f64,
            Kind::Int4Zeros(group) => 0.5 + 4.0 / group as f64,
            _ => 2.0,
        }
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
        // Copies differ in where they are, not in what they are.
        let first: Vec<Weight> = spec.n.iter().map(|n| spec.kind.weight(&mut random, *n, spec.k)).collect();
        let weights = vec![first; spec.copies];
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
    pub fn run(&mut self, cpu: &On<'_>, rows: std::ops::Range<usize>, out: &mut [f32]) {
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
            let x = spec.kind.rounded(&self.x[row * (spec.k + spec.padding)..][..spec.k]);
            let mut offset = row * self.stride();
            for (s, &n) in spec.n.iter().enumerate() {
                for column in 0..n {
                    let mut y = Expected { value: 0.0, scale: 1e-6 };
                    for (i, &x) in x.iter().enumerate() {
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

fn name(spec: &Spec) -> String {
    let Spec { kind, m, k, n, bias, activation, end, .. } = spec;
    format!("linear/{kind:?}/m{m}/k{k}/n{n:?}/{bias}/{activation:?}/{end:?}").replace(' ', "")
}

fn case(spec: Spec) -> Case {
    let (kind, m, k, n_all) = (spec.kind, spec.m, spec.k, spec.n.iter().sum::<usize>());
    let mut operands = Operands::new(spec.clone());
    Case {
        name: name(&spec),
        tolerance: 1e-6,
        flops: 2.0 * (m * k * n_all) as f64,
        bytes: (n_all * k) as f64 * kind.element() + (4 * m * (k + n_all)) as f64,
        outputs: operands.outputs(),
        run: Box::new(move |cpu, out| operands.run(cpu, 0..m, out)),
        reference: Box::new(move || Operands::new(Spec { copies: 1, ..spec.clone() }).reference()),
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
        // Several blocks of rows, of columns and of k, and what is left over of each.
        specs.push(Spec { bias: true, ..Spec::new(kind, 101, 601, &[150, 71]) });
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

/// One row, a batch's few, and a prompt's many. Where the memory is what counts, more weights than a cache holds.
pub fn bench_cases() -> Vec<Timed> {
    let mut all = Vec::new();
    for kind in [Kind::F32, Kind::F16, Kind::Bf16, Kind::Bf16Dot, Kind::Int8, Kind::Int4(32), Kind::Int4(128)] {
        for m in [1, 2, 4, 8, 16, 32, 64, 512] {
            let copies = if m <= 16 { 8 } else { 2 };
            let spec = Spec { copies, ..Spec::new(kind, m, 2048, &[4096]) };
            all.push(Timed::new(name(&spec), move || case(spec)));
        }
    }
    // The other shapes of a Llama of 100 million parameters.
    for kind in [Kind::Bf16, Kind::Int8] {
        for (k, n) in [(768, 4096), (2048, 768)] {
            for m in [4, 16, 64, 512] {
                let spec = Spec { copies: 8, ..Spec::new(kind, m, k, &[n]) };
                all.push(Timed::new(name(&spec), move || case(spec)));
            }
        }
    }
    all
}
