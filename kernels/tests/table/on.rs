//! What a case runs on: the CPU's kernels, or those of a CUDA device. The functions have the names and arguments of
//! `kernels::cpu`; on a device they copy their operands to it, and the result back.

use half::bf16;
use kernels::cpu::{
    self, Activation, AttentionParams, BLOCK, Binary, CausalConv, Compute, Cpu, Epilogue, Groups, KvCache, KvCacheMut,
    KvMut, KvRef, KvShape, LayerNorm, LinearAttention, LinearAttentionOperands, RmsNorm, Rope, Rows, RowsMut, Scratch,
    Segment, SeqSpan, StateSpan, WeightRef, ZipOperand, ZipRuns,
};
use kernels::cuda::{
    self, Batch, BatchSeq, Columns, Cuda, CudaError, ElementOp, End, Faults, Memory, Operand, Vector, View,
};

/// Where a case runs.
#[derive(Clone, Copy)]
pub enum On<'a> {
    Cpu(&'a Cpu),
    Cuda(&'a Cuda),
}

/// For cases that prepare something with the kernel of another case.
pub type Done = Result<(), String>;

fn done(result: Result<(), impl ToString>) -> Done {
    result.map_err(|e| e.to_string())
}

fn flat<E: Copy, const N: usize>(x: &[E], bytes: impl Fn(E) -> [u8; N]) -> Vec<u8> {
    x.iter().map(|&x| bytes(x)).collect::<Vec<_>>().as_flattened().to_vec()
}

fn floats(cuda: &Cuda, x: &[f32]) -> Memory {
    cuda.upload(&flat(x, f32::to_ne_bytes)).unwrap()
}

fn some<'a>(memory: &'a Option<Memory>) -> Option<Vector<'a, f32>> {
    memory.as_ref().map(Vector::new)
}

/// As long as the view, and not a float more: so that a read beyond it is seen.
fn used<'a>(x: &Rows<'a>) -> &'a [f32] {
    &x.data[..x.rows.checked_sub(1).map_or(0, |n| n * x.stride + x.cols)]
}

fn view<'a>(memory: &'a Memory, x: &Rows<'_>) -> View<'a, f32> {
    View::strided(memory, 0, x.rows, x.cols, x.stride)
}

fn read(memory: &Memory, to: &mut [f32]) {
    let mut bytes = vec![0; to.len() * 4];
    memory.read(0, &mut bytes).unwrap();
    to.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(x, b)| *x = f32::from_ne_bytes(*b));
}

/// Runs `f` with `out` on the device, and copies it back.
fn with_out(
    cuda: &Cuda,
    out: &mut RowsMut<'_>,
    f: impl FnOnce(View<'_, f32>) -> Result<(), CudaError>,
) -> Result<(), CudaError> {
    let rows = out.as_rows();
    let len = used(&rows).len();
    let memory = floats(cuda, used(&rows));
    f(view(&memory, &rows))?;
    read(&memory, &mut out.data[..len]);
    Ok(())
}

fn weight(cuda: &Cuda, w: WeightRef<'_>) -> (Memory, cuda::WeightType) {
    let bytes = match w {
        WeightRef::F32(w) => flat(w, f32::to_ne_bytes),
        WeightRef::Bf16(w) => flat(w, |x| x.to_bits().to_ne_bytes()),
        WeightRef::F16(w) => flat(w, |x| x.to_bits().to_ne_bytes()),
        WeightRef::Quantised(_) => panic!("a device has no kernels for quantised weights"),
    };
    (cuda.upload(&bytes).unwrap(), cuda::WeightType::of(w.dtype()).unwrap())
}

pub fn linear(
    on: &On<'_>,
    scratch: &mut Scratch,
    x: Rows<'_>,
    segments: &[Segment<'_>],
    compute: Compute,
    epilogue: Epilogue<'_>,
    mut out: RowsMut<'_>,
) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => return done(cpu::linear(cpu, scratch, x, segments, compute, epilogue, out)),
        On::Cuda(cuda) => cuda,
    };
    let weights: Vec<_> = segments.iter().map(|s| weight(cuda, s.weight)).collect();
    let biases: Vec<_> = segments.iter().map(|s| s.bias.map(|b| floats(cuda, b))).collect();
    let on_device: Vec<_> = segments
        .iter()
        .zip(weights.iter().zip(&biases))
        .map(|(s, ((memory, dtype), bias))| cuda::Segment {
            weight: cuda::Weight::new(memory, *dtype),
            bias: some(bias),
            n: s.n,
            column: s.out_offset,
            activation: s.activation.unwrap_or(Activation::Identity),
        })
        .collect();
    let other = if let Epilogue::Add(y) = &epilogue { Some((floats(cuda, used(y)), *y)) } else { None };
    let end = match (&epilogue, &other) {
        (Epilogue::Accumulate, _) => End::Accumulate,
        (Epilogue::Add(_), Some((memory, y))) => End::Add(view(memory, y)),
        _ => End::None,
    };
    let from = floats(cuda, used(&x));
    done(with_out(cuda, &mut out, |out| cuda::linear(cuda, view(&from, &x), &on_device, compute, end, out)))
}

/// `segments` gives those of an expert.
pub fn grouped_linear<'a>(
    on: &On<'_>,
    scratch: &mut Scratch,
    x: Rows<'_>,
    (groups, ids, experts): (&Groups, &[i64], usize),
    segments: &dyn Fn(usize) -> Vec<Segment<'a>>,
    compute: Compute,
    mut out: RowsMut<'_>,
) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => {
            let chosen: Vec<Segment<'_>> = groups.chosen().flat_map(segments).collect();
            return done(cpu::grouped_linear(cpu, scratch, x, groups, &chosen, compute, out));
        }
        On::Cuda(cuda) => cuda,
    };
    let all: Vec<Segment<'_>> = (0..experts).flat_map(segments).collect();
    let part = |s: &Segment<'_>| {
        let (memory, dtype) = weight(cuda, s.weight);
        cuda::ExpertPart { memory: memory.into(), dtype, first: 0 }
    };
    let parts: Vec<_> = all.iter().map(part).collect();
    let widths: Vec<usize> = segments(0).iter().map(|s| s.n).collect();
    let weights = cuda::ExpertWeights::new(cuda, experts, x.cols, &widths, &parts).map_err(|e| e.to_string())?;
    let bias: Option<Vec<f32>> = all.iter().map(|s| s.bias).collect::<Option<Vec<_>>>().map(|b| b.concat());
    let bias = bias.map(|b| floats(cuda, &b));
    let (from, ids) = (floats(cuda, used(&x)), cuda.upload(&flat(ids, i64::to_ne_bytes)).unwrap());
    let faults = Faults::new(cuda).unwrap();
    let run = |out: View<'_, f32>| {
        let grouped = cuda::Grouped { ids: Vector::new(&ids), weights: &weights, bias: some(&bias), compute };
        cuda::grouped_linear(cuda, view(&from, &x), &grouped, out, &faults)?;
        faults.take()
    };
    done(with_out(cuda, &mut out, run))
}

fn batch(cuda: &Cuda, tile_rows: usize, seqs: &[SeqSpan<'_>]) -> Result<Batch, CudaError> {
    let mut batch = Batch::new(cuda, &[tile_rows])?;
    let all: Vec<BatchSeq<'_>> =
        seqs.iter().map(|s| BatchSeq { rows: s.rows, first_position: s.first_position, blocks: s.blocks }).collect();
    batch.fill(&all, &[], &[])?;
    Ok(batch)
}

/// A cache in the CPU's layout, as floats; K is transposed there.
fn device_layout(x: &[f32], dim: usize, transposed: bool) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for at in 0..x.len() {
        let (block_head, slot, d) = (at / (BLOCK * dim), at / dim % BLOCK, at % dim);
        let inside = if transposed { d * BLOCK + slot } else { slot * dim + d };
        out[at] = x[block_head * BLOCK * dim + inside];
    }
    out
}

fn cpu_layout(x: &[f32], dim: usize, transposed: bool) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for at in 0..x.len() {
        let (block_head, slot, d) = (at / (BLOCK * dim), at / dim % BLOCK, at % dim);
        let inside = if transposed { d * BLOCK + slot } else { slot * dim + d };
        out[block_head * BLOCK * dim + inside] = x[at];
    }
    out
}

fn upload_cache(cuda: &Cuda, shape: KvShape, k: KvRef<'_>, v: KvRef<'_>) -> (Memory, Memory, bool) {
    let one = |x: KvRef<'_>, dim: usize, transposed: bool| match x {
        KvRef::F32(x) => (floats(cuda, &device_layout(x, dim, transposed)), false),
        KvRef::Bf16(x) => {
            let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
            let laid = device_layout(&wide, dim, transposed);
            (cuda.upload(&flat(&laid, |x| bf16::from_f32(x).to_bits().to_ne_bytes())).unwrap(), true)
        }
        KvRef::Int8 { .. } => panic!("a device has no kernels for a cache of int8"),
    };
    let ((k, half), (v, _)) = (one(k, shape.head_dim, true), one(v, shape.value_dim, false));
    (k, v, half)
}

pub fn write_kv(on: &On<'_>, k: Rows<'_>, v: Rows<'_>, seqs: &[SeqSpan<'_>], mut cache: KvCacheMut<'_>) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => return done(cpu::write_kv(cpu, k, v, seqs, cache)),
        On::Cuda(cuda) => cuda,
    };
    let shape = cache.shape;
    fn shared<'a>(x: &'a KvMut<'_>) -> KvRef<'a> {
        match x {
            KvMut::F32(x) => KvRef::F32(x),
            KvMut::Bf16(x) => KvRef::Bf16(x),
            KvMut::Int8 { codes, scales } => KvRef::Int8 { codes, scales },
        }
    }
    let (k_cache, v_cache, half) = upload_cache(cuda, shape, shared(&cache.k), shared(&cache.v));
    let (from_k, from_v) = (floats(cuda, used(&k)), floats(cuda, used(&v)));
    let run = || {
        let batch = batch(cuda, 1, seqs)?;
        let on_device = cuda::KvCache { shape, k: &k_cache, v: &v_cache, bf16: half };
        cuda::write_kv(cuda, view(&from_k, &k), view(&from_v, &v), &batch, on_device)
    };
    run().map_err(|e: CudaError| e.to_string())?;
    let fetch = |memory: &Memory, to: &mut KvMut<'_>, dim: usize, transposed: bool| match to {
        KvMut::F32(to) => {
            let mut laid = vec![0.0; to.len()];
            read(memory, &mut laid);
            to.copy_from_slice(&cpu_layout(&laid, dim, transposed));
        }
        KvMut::Bf16(to) => {
            let mut bytes = vec![0; to.len() * 2];
            memory.read(0, &mut bytes).unwrap();
            let laid: Vec<f32> =
                bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_bits(u16::from_ne_bytes(*b)).to_f32()).collect();
            let all = cpu_layout(&laid, dim, transposed);
            to.iter_mut().zip(all).for_each(|(to, x)| *to = bf16::from_f32(x));
        }
        KvMut::Int8 { .. } => panic!("a device has no kernels for a cache of int8"),
    };
    fetch(&k_cache, &mut cache.k, shape.head_dim, true);
    fetch(&v_cache, &mut cache.v, shape.value_dim, false);
    Ok(())
}

pub fn attention(
    on: &On<'_>,
    params: &AttentionParams<'_>,
    q: Rows<'_>,
    cache: KvCache<'_>,
    seqs: &[SeqSpan<'_>],
    mut out: RowsMut<'_>,
) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => return done(cpu::attention(cpu, params, q, cache, seqs, out)),
        On::Cuda(cuda) => cuda,
    };
    let shape = cache.shape;
    let (k, v, half) = upload_cache(cuda, shape, cache.k, cache.v);
    let (sinks, slopes) = (params.sinks.map(|x| floats(cuda, x)), params.alibi_slopes.map(|x| floats(cuda, x)));
    let on_device = cuda::AttentionParams {
        heads: params.heads,
        scale: params.scale,
        window: params.window,
        chunk: params.chunk,
        softcap: params.softcap,
        sinks: some(&sinks),
        alibi_slopes: some(&slopes),
    };
    let from = floats(cuda, used(&q));
    let mut both = vec![];
    // Contexts in one piece, and cut into parts that are joined: the same bits.
    for room in [0, 1 << 22] {
        let parts = cuda.allocate(room).unwrap();
        let run = |out: View<'_, f32>| {
            let batch = batch(cuda, cuda::query_rows(params.heads, shape.kv_heads), seqs)?;
            let cache = cuda::KvCache { shape, k: &k, v: &v, bf16: half };
            cuda::attention(cuda, &on_device, view(&from, &q), &batch, cache, &parts, out)
        };
        with_out(cuda, &mut out, run).map_err(|e| e.to_string())?;
        both.push(out.data.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
    }
    assert!(both[0] == both[1], "attention in parts differs");
    Ok(())
}

fn states(cuda: &Cuda, rows: usize, seqs: &[StateSpan]) -> Result<Batch, CudaError> {
    let mut batch = Batch::new(cuda, &[])?;
    let blocks = vec![0; rows.div_ceil(BLOCK)];
    batch.fill(&[BatchSeq { rows, first_position: 0, blocks: &blocks }], &[], seqs)?;
    Ok(batch)
}

pub fn causal_conv1d(
    on: &On<'_>,
    conv: &CausalConv<'_>,
    x: Rows<'_>,
    seqs: &[StateSpan],
    state: &mut [f32],
    mut out: RowsMut<'_>,
) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => return done(cpu::causal_conv1d(cpu, conv, x, seqs, state, out)),
        On::Cuda(cuda) => cuda,
    };
    let (from, held, weight) = (floats(cuda, used(&x)), floats(cuda, state), floats(cuda, conv.weight));
    let bias = conv.bias.map(|b| floats(cuda, b));
    let run = |out: View<'_, f32>| {
        let batch = states(cuda, x.rows, seqs)?;
        let on_device = cuda::DeviceConv {
            weight: Vector::new(&weight),
            bias: some(&bias),
            width: conv.width,
            activation: conv.activation,
        };
        cuda::causal_conv1d(cuda, &on_device, view(&from, &x), &batch, &held, out)
    };
    with_out(cuda, &mut out, run).map_err(|e| e.to_string())?;
    read(&held, state);
    Ok(())
}

pub fn linear_attention(
    on: &On<'_>,
    shape: &LinearAttention,
    operands: &LinearAttentionOperands<'_>,
    seqs: &[StateSpan],
    state: &mut [f32],
    mut out: RowsMut<'_>,
) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => return done(cpu::linear_attention(cpu, shape, operands, seqs, state, out)),
        On::Cuda(cuda) => cuda,
    };
    let all = [operands.q, operands.k, operands.v, operands.decay];
    let memories = all.map(|x| floats(cuda, used(&x)));
    let beta = operands.beta.map(|x| floats(cuda, used(&x)));
    let held = floats(cuda, state);
    let run = |out: View<'_, f32>| {
        let batch = states(cuda, operands.v.rows, seqs)?;
        let [q, k, v, decay] = [0, 1, 2, 3].map(|i| view(&memories[i], &all[i]));
        let beta = beta.as_ref().zip(operands.beta.as_ref()).map(|(m, x)| view(m, x));
        cuda::linear_attention(cuda, shape, &cuda::DeviceScan { q, k, v, decay, beta }, &batch, &held, out)
    };
    with_out(cuda, &mut out, run).map_err(|e| e.to_string())?;
    read(&held, state);
    Ok(())
}

fn one_operand(
    on: &On<'_>,
    x: Option<Rows<'_>>,
    mut out: RowsMut<'_>,
    on_cpu: impl FnOnce(&Cpu, Option<Rows<'_>>, RowsMut<'_>) -> Result<(), cpu::KernelError>,
    on_cuda: impl FnOnce(&Cuda, View<'_, f32>, View<'_, f32>) -> Result<(), CudaError>,
) -> Done {
    match on {
        On::Cpu(cpu) => done(on_cpu(cpu, x, out)),
        On::Cuda(cuda) => {
            let from = x.map(|x| (floats(cuda, used(&x)), x));
            // In place where there is no other operand.
            let run = |out: View<'_, f32>| {
                let x = from.as_ref().map_or(out, |(memory, x)| view(memory, x));
                on_cuda(cuda, x, out)
            };
            done(with_out(cuda, &mut out, run))
        }
    }
}

pub fn activate_to(on: &On<'_>, f: Activation, x: Rows<'_>, out: RowsMut<'_>) -> Done {
    let on_cpu = |cpu: &Cpu, x: Option<Rows<'_>>, out: RowsMut<'_>| cpu::activate_to(cpu, f, x.unwrap(), out);
    one_operand(on, Some(x), out, on_cpu, |cuda, x, out| cuda::activate(cuda, f, x, out))
}

pub fn activate(on: &On<'_>, f: Activation, out: RowsMut<'_>) -> Done {
    one_operand(on, None, out, |cpu, _, out| cpu::activate(cpu, f, out), |cuda, x, out| cuda::activate(cuda, f, x, out))
}

pub fn softmax_to(on: &On<'_>, x: Rows<'_>, width: usize, out: RowsMut<'_>) -> Done {
    let on_cpu = |cpu: &Cpu, x: Option<Rows<'_>>, out: RowsMut<'_>| cpu::softmax_to(cpu, x.unwrap(), width, out);
    one_operand(on, Some(x), out, on_cpu, |cuda, x, out| cuda::softmax(cuda, x, width, out))
}

pub fn softmax(on: &On<'_>, out: RowsMut<'_>) -> Done {
    one_operand(on, None, out, |cpu, _, out| cpu::softmax(cpu, out), |cuda, x, out| cuda::softmax(cuda, x, x.cols, out))
}

pub fn rms_norm_parts(on: &On<'_>, x: Rows<'_>, width: usize, norm: &RmsNorm<'_>, out: RowsMut<'_>) -> Done {
    let on_cpu =
        |cpu: &Cpu, x: Option<Rows<'_>>, out: RowsMut<'_>| cpu::rms_norm_parts(cpu, x.unwrap(), width, norm, out);
    one_operand(on, Some(x), out, on_cpu, |cuda, x, out| {
        let weight = norm.weight.map(|w| floats(cuda, w));
        cuda::rms_norm(cuda, x, width, some(&weight), norm.weight_offset, norm.eps, out)
    })
}

pub fn rms_norm(on: &On<'_>, x: Rows<'_>, norm: &RmsNorm<'_>, out: RowsMut<'_>) -> Done {
    rms_norm_parts(on, x, x.cols, norm, out)
}

pub fn layer_norm_parts(on: &On<'_>, x: Rows<'_>, width: usize, norm: &LayerNorm<'_>, out: RowsMut<'_>) -> Done {
    let on_cpu =
        |cpu: &Cpu, x: Option<Rows<'_>>, out: RowsMut<'_>| cpu::layer_norm_parts(cpu, x.unwrap(), width, norm, out);
    one_operand(on, Some(x), out, on_cpu, |cuda, x, out| {
        let (weight, bias) = (norm.weight.map(|w| floats(cuda, w)), norm.bias.map(|b| floats(cuda, b)));
        cuda::layer_norm(cuda, x, width, some(&weight), some(&bias), norm.eps, out)
    })
}

pub fn layer_norm(on: &On<'_>, x: Rows<'_>, norm: &LayerNorm<'_>, out: RowsMut<'_>) -> Done {
    layer_norm_parts(on, x, x.cols, norm, out)
}

/// A device has no kernel for both: what is fused on the CPU is two launches.
pub fn add_rms_norm(on: &On<'_>, residual: RowsMut<'_>, x: Rows<'_>, norm: &RmsNorm<'_>, out: RowsMut<'_>) -> Done {
    if let On::Cpu(cpu) = on {
        return done(cpu::add_rms_norm(cpu, residual, x, norm, out));
    }
    let before = residual.data.to_vec();
    let (rows, cols, stride) = (residual.rows, residual.cols, residual.stride);
    add(on, Rows::strided(&before, rows, cols, stride), x, RowsMut::strided(residual.data, rows, cols, stride))?;
    rms_norm(on, Rows::strided(residual.data, rows, cols, stride), norm, out)
}

pub fn add_layer_norm(on: &On<'_>, residual: RowsMut<'_>, x: Rows<'_>, norm: &LayerNorm<'_>, out: RowsMut<'_>) -> Done {
    if let On::Cpu(cpu) = on {
        return done(cpu::add_layer_norm(cpu, residual, x, norm, out));
    }
    let before = residual.data.to_vec();
    let (rows, cols, stride) = (residual.rows, residual.cols, residual.stride);
    add(on, Rows::strided(&before, rows, cols, stride), x, RowsMut::strided(residual.data, rows, cols, stride))?;
    layer_norm(on, Rows::strided(residual.data, rows, cols, stride), norm, out)
}

fn device_rope(cuda: &Cuda, table: &Rope<'_>, x: View<'_, f32>, out: View<'_, f32>) -> Result<(), CudaError> {
    let half = table.rotary_dims / 2;
    let (cos, sin) = (floats(cuda, table.cos), floats(cuda, table.sin));
    let [c, s] = [&cos, &sin].map(|memory| View::strided(memory, 0, x.rows, half, half));
    cuda::rope(cuda, x, table.head_dim, table.style, c, s, out)
}

pub fn rope(on: &On<'_>, out: RowsMut<'_>, table: &Rope<'_>) -> Done {
    let on_cpu = |cpu: &Cpu, _: Option<Rows<'_>>, out: RowsMut<'_>| cpu::rope(cpu, out, table);
    one_operand(on, None, out, on_cpu, |cuda, x, out| device_rope(cuda, table, x, out))
}

pub fn rope_to(on: &On<'_>, x: Rows<'_>, table: &Rope<'_>, out: RowsMut<'_>) -> Done {
    let on_cpu = |cpu: &Cpu, x: Option<Rows<'_>>, out: RowsMut<'_>| cpu::rope_to(cpu, x.unwrap(), table, out);
    one_operand(on, Some(x), out, on_cpu, |cuda, x, out| device_rope(cuda, table, x, out))
}

fn whole<'a>(memory: &'a Memory, x: &Rows<'_>) -> Operand<'a, f32> {
    Operand { view: view(memory, x), columns: None }
}

/// One op of two operands of one shape.
fn zipped(cuda: &Cuda, op: ElementOp, a: Rows<'_>, b: Rows<'_>, mut out: RowsMut<'_>) -> Done {
    let (x, y, faults) = (floats(cuda, used(&a)), floats(cuda, used(&b)), Faults::new(cuda).unwrap());
    done(with_out(cuda, &mut out, |out| cuda::zip(cuda, op, whole(&x, &a), whole(&y, &b), out, &faults)))
}

pub fn add(on: &On<'_>, a: Rows<'_>, b: Rows<'_>, mut out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::add(cpu, a, b, out)),
        On::Cuda(cuda) => {
            let (x, y) = (floats(cuda, used(&a)), floats(cuda, used(&b)));
            done(with_out(cuda, &mut out, |out| cuda::add(cuda, view(&x, &a), view(&y, &b), out)))
        }
    }
}

pub fn add_assign(on: &On<'_>, mut out: RowsMut<'_>, b: Rows<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::add_assign(cpu, out, b)),
        On::Cuda(cuda) => {
            let y = floats(cuda, used(&b));
            done(with_out(cuda, &mut out, |out| cuda::add(cuda, out, view(&y, &b), out)))
        }
    }
}

pub fn mul(on: &On<'_>, a: Rows<'_>, b: Rows<'_>, out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::mul(cpu, a, b, out)),
        On::Cuda(cuda) => zipped(cuda, ElementOp::Mul, a, b, out),
    }
}

/// Every element with one number, the same for all.
fn with_number(cuda: &Cuda, op: ElementOp, number: f32, out: &mut RowsMut<'_>) -> Done {
    let (y, faults) = (floats(cuda, &[number]), Faults::new(cuda).unwrap());
    let columns = Columns::new(cuda, &vec![0; out.cols]).unwrap();
    done(with_out(cuda, out, |out| {
        let number = Operand { view: View::repeated(&y, 1), columns: Some(&columns) };
        cuda::zip(cuda, op, Operand { view: out, columns: None }, number, out, &faults)
    }))
}

pub fn scale(on: &On<'_>, factor: f32, mut out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::scale(cpu, factor, out)),
        On::Cuda(cuda) => with_number(cuda, ElementOp::Mul, factor, &mut out),
    }
}

pub fn softcap(on: &On<'_>, cap: f32, mut out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::softcap(cpu, cap, out)),
        On::Cuda(cuda) => {
            with_number(cuda, ElementOp::Div, cap, &mut out)?;
            let tanh = |out: View<'_, f32>| cuda::map(cuda, ElementOp::Tanh, Operand { view: out, columns: None }, out);
            done(with_out(cuda, &mut out, tanh))?;
            with_number(cuda, ElementOp::Mul, cap, &mut out)
        }
    }
}

pub fn gated(on: &On<'_>, f: Activation, gate: Rows<'_>, up: Rows<'_>, mut out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::gated(cpu, f, gate, up, out)),
        On::Cuda(cuda) => {
            let (x, y) = (floats(cuda, used(&gate)), floats(cuda, used(&up)));
            done(with_out(cuda, &mut out, |out| cuda::gated(cuda, f, view(&x, &gate), view(&y, &up), out)))
        }
    }
}

/// `columns` are those of both operands that each column reads; the CPU takes them as runs.
pub fn zip(
    on: &On<'_>,
    op: Binary,
    a: ZipOperand<'_>,
    b: ZipOperand<'_>,
    columns: &[[u32; 2]],
    mut out: RowsMut<'_>,
) -> Done {
    let cuda = match on {
        On::Cpu(cpu) => return done(cpu::zip(cpu, op, a, b, &ZipRuns::new(columns.iter().copied()), out)),
        On::Cuda(cuda) => cuda,
    };
    let op = match op {
        Binary::Add => ElementOp::Add,
        Binary::Sub => ElementOp::Sub,
        Binary::Mul => ElementOp::Mul,
        Binary::Div => ElementOp::Div,
    };
    let widths = [0, 1].map(|k| columns.iter().map(|c| c[k] as usize + 1).max().unwrap_or(0));
    let read_by = [0, 1].map(|k| Columns::new(cuda, &columns.iter().map(|c| c[k]).collect::<Vec<_>>()).unwrap());
    let (x, y, faults) = (floats(cuda, a.data), floats(cuda, b.data), Faults::new(cuda).unwrap());
    done(with_out(cuda, &mut out, |out| {
        let operand = |memory, o: &ZipOperand<'_>, k: usize| {
            let rows = if o.stride == 0 { 1 } else { out.rows };
            let view = View::strided(memory, 0, rows, widths[k], o.stride);
            (view, &read_by[k])
        };
        let ((x, xc), (y, yc)) = (operand(&x, &a, 0), operand(&y, &b, 1));
        let (x, y) = (Operand { view: x, columns: Some(xc) }, Operand { view: y, columns: Some(yc) });
        cuda::zip(cuda, op, x, y, out, &faults)
    }))
}

pub fn gather_rows(on: &On<'_>, x: Rows<'_>, index: &[u32], mut out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::gather_rows(cpu, x, index, out)),
        On::Cuda(cuda) => {
            let from = floats(cuda, used(&x));
            let mut batch = Batch::new(cuda, &[]).unwrap();
            let blocks = vec![0; x.rows.div_ceil(BLOCK)];
            batch.fill(&[BatchSeq { rows: x.rows, first_position: 0, blocks: &blocks }], index, &[]).unwrap();
            done(with_out(cuda, &mut out, |out| cuda::select_rows(cuda, view(&from, &x), &batch, out)))
        }
    }
}

pub fn argmax(on: &On<'_>, x: Rows<'_>, out: &mut [u32]) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::argmax(cpu, x, out)),
        On::Cuda(cuda) => {
            let (from, to) = (floats(cuda, used(&x)), cuda.allocate(out.len() * 8).unwrap());
            done(cuda::argmax(cuda, view(&from, &x), Vector::new(&to)))?;
            let mut bytes = vec![0; out.len() * 8];
            to.read(0, &mut bytes).unwrap();
            out.iter_mut()
                .zip(bytes.as_chunks::<8>().0)
                .for_each(|(out, b)| *out = u32::try_from(i64::from_ne_bytes(*b)).unwrap());
            Ok(())
        }
    }
}

pub fn embed(on: &On<'_>, table: WeightRef<'_>, ids: &[u32], mut out: RowsMut<'_>) -> Done {
    match on {
        On::Cpu(cpu) => done(cpu::embed(cpu, table, ids, out)),
        On::Cuda(cuda) => {
            let (memory, dtype) = weight(cuda, table);
            let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
            let (ids, faults) = (cuda.upload(&flat(&wide, i64::to_ne_bytes)).unwrap(), Faults::new(cuda).unwrap());
            done(with_out(cuda, &mut out, |out| {
                cuda::embed(cuda, cuda::Weight::new(&memory, dtype), Vector::new(&ids), out, &faults)?;
                faults.take()
            }))
        }
    }
}
