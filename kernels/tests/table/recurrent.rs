//! Convolutions along the sequence and attention by a running state: sequences of several lengths, from the beginning and
//! continued, every layout of the state.

use kernels::cpu::{Activation, CausalConv, LinearAttention, LinearAttentionOperands, Rows, RowsMut, StateSpan};

use super::on::{causal_conv1d, linear_attention};
use super::ops::activation;
use super::{Case, Expected, On, Random};

/// Sequences laid end to end: `(rows, slot)`; what a slot held before counts for those that are not fresh.
#[derive(Clone, Debug)]
pub struct Seqs(pub Vec<StateSpan>);

impl Seqs {
    pub fn new(all: &[(usize, usize, bool)]) -> Self {
        let mut first_row = 0;
        Seqs(
            all.iter()
                .map(|&(rows, slot, fresh)| {
                    first_row += rows;
                    StateSpan { first_row: first_row - rows, rows, slot, fresh }
                })
                .collect(),
        )
    }

    pub fn rows(&self) -> usize {
        self.0.iter().map(|s| s.rows).sum()
    }

    fn slots(&self) -> usize {
        self.0.iter().map(|s| s.slot + 1).max().unwrap_or(1)
    }
}

fn several() -> Seqs {
    Seqs::new(&[(5, 2, true), (1, 0, false), (0, 4, true), (9, 1, false), (2, 3, true)])
}

/// One convolution.
#[derive(Clone, Debug)]
pub struct Conv {
    pub seqs: Seqs,
    pub channels: usize,
    pub width: usize,
    pub bias: bool,
    pub activation: Option<Activation>,
}

/// The operands of a [`Conv`]; `run` leaves the state as it was unless told to keep it.
pub struct ConvOperands {
    pub spec: Conv,
    pub x: Vec<f32>,
    pub state: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl ConvOperands {
    pub fn new(spec: Conv) -> Self {
        let mut r = Random(21);
        let state = CausalConv::state_elements(spec.width, spec.channels) * spec.seqs.slots();
        ConvOperands {
            x: r.vec(spec.seqs.rows() * (spec.channels + 3)),
            state: r.vec(state),
            weight: r.vec(spec.channels * spec.width),
            bias: r.vec(spec.channels),
            spec,
        }
    }

    pub fn run(&self, cpu: &On<'_>, seqs: &[StateSpan], first_row: usize, state: &mut [f32], out: &mut [f32]) {
        let Conv { channels, width, bias, activation, .. } = self.spec;
        let rows = seqs.iter().map(|s| s.rows).sum();
        let conv = CausalConv { weight: &self.weight, bias: bias.then_some(&self.bias[..]), width, activation };
        let x = Rows::strided(&self.x[first_row * (channels + 3)..], rows, channels, channels + 3);
        causal_conv1d(cpu, &conv, x, seqs, state, RowsMut::dense(out, rows, channels)).unwrap();
    }

    fn reference(&self) -> Vec<Expected> {
        let Conv { channels, width, .. } = self.spec;
        let mut out = Vec::new();
        for seq in &self.spec.seqs.0 {
            for t in 0..seq.rows {
                for c in 0..channels {
                    let mut y = Expected { value: 0.0, scale: 1.0 };
                    for w in 0..width {
                        // Row t - width + 1 + w, counted from the step's first; before it, the state.
                        let x = match (t + w + 1).checked_sub(width) {
                            Some(row) => self.x[(seq.first_row + row) * (channels + 3) + c],
                            None if seq.fresh => 0.0,
                            None => self.state[(seq.slot * (width - 1) + t + w) * channels + c],
                        };
                        y.value += f64::from(self.weight[c * width + w]) * f64::from(x);
                        y.scale += 1.0;
                    }
                    if self.spec.bias {
                        y.value += f64::from(self.bias[c]);
                    }
                    if let Some(f) = self.spec.activation {
                        y.value = activation(f, y.value);
                    }
                    out.push(y);
                }
            }
        }
        out
    }
}

fn conv_case(spec: Conv) -> Case {
    let Conv { channels, width, bias, activation, .. } = spec;
    let rows = spec.seqs.rows();
    let operands = std::rc::Rc::new(ConvOperands::new(spec));
    let shared = operands.clone();
    Case {
        name: format!("causal_conv1d/{rows}x{channels}/w{width}/{bias}/{activation:?}"),
        tolerance: 4e-7,
        flops: (2 * rows * channels * width) as f64,
        bytes: (4 * channels * (2 * rows + 2 * (width - 1) * operands.spec.seqs.0.len() + width)) as f64,
        outputs: rows * channels,
        run: Box::new(move |cpu, out| {
            let mut state = operands.state.clone();
            operands.run(cpu, &operands.spec.seqs.0, 0, &mut state, out);
        }),
        reference: Box::new(move || shared.reference()),
    }
}

/// One linear attention.
#[derive(Clone, Debug)]
pub struct Scan {
    pub seqs: Seqs,
    pub shape: LinearAttention,
    pub delta: bool,
}

/// The operands of a [`Scan`].
pub struct ScanOperands {
    pub spec: Scan,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
    pub state: Vec<f32>,
}

impl ScanOperands {
    pub fn new(spec: Scan) -> Self {
        let mut r = Random(22);
        let (rows, s) = (spec.seqs.rows(), spec.shape);
        let decays = s.heads * if s.per_channel { s.key_dim } else { 1 };
        let mut decay: Vec<f32> = r.vec(rows * decays).iter().map(|x| -x.abs() * 2.0).collect();
        // One that forgets everything.
        if let Some(x) = decay.get_mut(decays) {
            *x = f32::NEG_INFINITY;
        }
        // Keys of length 1, as the delta rule wants them.
        let unit = (s.key_dim as f32).sqrt().recip();
        ScanOperands {
            q: r.vec(rows * s.key_heads * s.key_dim),
            k: r.vec(rows * s.key_heads * s.key_dim).iter().map(|x| x * unit).collect(),
            v: r.vec(rows * s.heads * s.value_dim),
            decay,
            beta: r.vec(rows * s.heads).iter().map(|x| x.abs()).collect(),
            state: r.vec(spec.seqs.slots() * s.state_elements()),
            spec,
        }
    }

    pub fn width(&self) -> usize {
        self.spec.shape.heads * self.spec.shape.value_dim
    }

    pub fn run(&self, cpu: &On<'_>, seqs: &[StateSpan], first_row: usize, state: &mut [f32], out: &mut [f32]) {
        let (s, rows) = (self.spec.shape, seqs.iter().map(|s| s.rows).sum());
        let keys = s.key_heads * s.key_dim;
        let decays = s.heads * if s.per_channel { s.key_dim } else { 1 };
        let operands = LinearAttentionOperands {
            q: Rows::dense(&self.q[first_row * keys..], rows, keys),
            k: Rows::dense(&self.k[first_row * keys..], rows, keys),
            v: Rows::dense(&self.v[first_row * self.width()..], rows, self.width()),
            decay: Rows::dense(&self.decay[first_row * decays..], rows, decays),
            beta: self.spec.delta.then(|| Rows::dense(&self.beta[first_row * s.heads..], rows, s.heads)),
        };
        linear_attention(cpu, &s, &operands, seqs, state, RowsMut::dense(out, rows, self.width())).unwrap();
    }

    fn reference(&self) -> Vec<Expected> {
        let s = self.spec.shape;
        let mut out = vec![Expected { value: 0.0, scale: 0.0 }; self.spec.seqs.rows() * self.width()];
        for seq in &self.spec.seqs.0 {
            for h in 0..s.heads {
                let key = h / (s.heads / s.key_heads);
                for j in 0..s.value_dim {
                    let start = (seq.slot * s.heads + h) * s.key_dim;
                    let old = |i: usize| f64::from(self.state[(start + i) * s.value_dim + j]);
                    let mut column: Vec<f64> = (0..s.key_dim).map(|i| if seq.fresh { 0.0 } else { old(i) }).collect();
                    for row in seq.first_row..seq.first_row + seq.rows {
                        let at = |x: &[f32], i: usize| f64::from(x[(row * s.key_heads + key) * s.key_dim + i]);
                        for (i, x) in column.iter_mut().enumerate() {
                            let head = row * s.heads + h;
                            *x *= f64::from(self.decay[if s.per_channel { head * s.key_dim + i } else { head }]).exp();
                        }
                        let place = (row * s.heads + h) * s.value_dim + j;
                        let mut u = f64::from(self.v[place]);
                        if self.spec.delta {
                            let known: f64 = column.iter().enumerate().map(|(i, x)| at(&self.k, i) * x).sum();
                            u = f64::from(self.beta[row * s.heads + h]) * (u - known);
                        }
                        let y = &mut out[place];
                        for (i, x) in column.iter_mut().enumerate() {
                            *x += at(&self.k, i) * u;
                            y.value += at(&self.q, i) * *x;
                            y.scale += (at(&self.q, i) * *x).abs();
                        }
                        y.scale += 0.1;
                    }
                }
            }
        }
        out
    }
}

fn scan_case(spec: Scan) -> Case {
    let (s, rows, delta) = (spec.shape, spec.seqs.rows(), spec.delta);
    let operands = std::rc::Rc::new(ScanOperands::new(spec));
    let shared = operands.clone();
    let LinearAttention { key_heads, heads, key_dim, value_dim, per_channel } = s;
    let mut state = operands.state.clone();
    let sequences = operands.spec.seqs.0.len();
    let keep = sequences > 8 || rows > 100;
    Case {
        name: format!(
            "linear_attention/t{rows}/s{sequences}/{key_heads}of{heads}/{key_dim}x{value_dim}/{per_channel}/{delta}"
        ),
        tolerance: 1e-6,
        flops: (rows * s.state_elements() * if delta { 7 } else { 5 }) as f64,
        bytes: (8 * sequences * s.state_elements()
            + 4 * rows
                * (2 * key_heads * key_dim + 2 * heads * value_dim + heads * if per_channel { key_dim } else { 1 }))
            as f64,
        outputs: rows * heads * value_dim,
        run: Box::new(move |cpu, out| {
            if !keep {
                state.copy_from_slice(&operands.state);
            }
            operands.run(cpu, &operands.spec.seqs.0, 0, &mut state, out);
        }),
        reference: Box::new(move || shared.reference()),
    }
}

pub fn scan_specs() -> Vec<Scan> {
    let mut all = vec![];
    // Key heads, heads, key and value sizes: blocks and tails of columns, one column, one element.
    for (key_heads, heads, key_dim, value_dim) in [
        (1, 1, 1, 2),
        (2, 4, 5, 3),
        (1, 2, 8, 16),
        (2, 2, 64, 80),
        (3, 3, 70, 7),
        (1, 9, 16, 1),
        (5, 5, 19, 1),
        (1, 70, 1, 1),
        (37, 37, 1, 1),
        (2, 4, 1, 1),
    ] {
        for per_channel in [false, true] {
            for delta in [false, true] {
                let shape = LinearAttention { key_heads, heads, key_dim, value_dim, per_channel };
                all.push(Scan { seqs: several(), shape, delta });
            }
        }
    }
    all
}

pub fn conv_specs() -> Vec<Conv> {
    let mut all = vec![];
    for channels in [1, 7, 16, 50] {
        for width in [1, 2, 4, 16] {
            all.push(Conv { seqs: several(), channels, width, bias: false, activation: None });
        }
    }
    all.push(Conv { seqs: several(), channels: 2100, width: 4, bias: true, activation: Some(Activation::Silu) });
    all
}

pub fn test_cases() -> Vec<Case> {
    conv_specs().into_iter().map(conv_case).chain(scan_specs().into_iter().map(scan_case)).collect()
}

pub fn bench_cases() -> Vec<Case> {
    let decode = |n: usize| Seqs::new(&(0..n).map(|i| (1, i, false)).collect::<Vec<_>>());
    let prefill = || Seqs::new(&[(512, 0, true)]);
    let mut all = vec![];
    for seqs in [decode(1), decode(16), prefill()] {
        let silu = Some(Activation::Silu);
        all.push(conv_case(Conv { seqs: seqs.clone(), channels: 5376, width: 4, bias: true, activation: silu }));
        // Mamba 2 of 2.7 B, gated delta rule of Qwen3-Next, Mamba of 2.8 B.
        let mamba2 = LinearAttention { key_heads: 1, heads: 80, key_dim: 128, value_dim: 64, per_channel: false };
        let delta = LinearAttention { key_heads: 16, heads: 32, key_dim: 128, value_dim: 128, per_channel: false };
        let mamba = LinearAttention { key_heads: 1, heads: 5120, key_dim: 16, value_dim: 1, per_channel: true };
        all.push(scan_case(Scan { seqs: seqs.clone(), shape: mamba2, delta: false }));
        all.push(scan_case(Scan { seqs: seqs.clone(), shape: delta, delta: true }));
        all.push(scan_case(Scan { seqs, shape: mamba, delta: false }));
    }
    all
}

/// Runs spans whose first row in the operands is given, over a state, into outputs.
pub type Step = Box<dyn Fn(&On<'_>, &[StateSpan], usize, &mut [f32], &mut [f32])>;
