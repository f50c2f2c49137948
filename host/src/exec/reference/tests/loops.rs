//! Primitives on larger shapes against naive loops over coordinates in f64; symbolic sizes; leaves; errors.

use plugin_api::{Builder, ConstData, DType, Dim, InputKind, Op, Value};

use super::{Fixture, Random, Tensor, assert_close, at, coordinates, run_op, tensor_of};
use crate::exec::reference::{EvalError, Inputs, Prepared, eval, eval_values};

fn check(op: Op, inputs: &[Tensor], expected: Tensor) {
    let what = op.to_string();
    assert_close(&what, &run_op(op, inputs).unwrap(), &expected, 2e-7);
}

/// The coordinate in `t` that numpy's broadcasting reads for the coordinate `c` of the result.
fn stretched(t: &Tensor, c: &[usize]) -> f64 {
    let tail = &c[c.len() - t.shape.len()..];
    at(t, &tail.iter().zip(&t.shape).map(|(&i, &n)| if n == 1 { 0 } else { i }).collect::<Vec<_>>())
}

#[test]
fn binary_ops_broadcast_like_numpy() {
    let mut random = Random::new(1);
    let shapes: [(&[usize], &[usize], &[usize]); 6] = [
        (&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]),
        (&[2, 3, 4], &[3, 1], &[2, 3, 4]),
        (&[1], &[2, 3], &[2, 3]),
        (&[2, 1, 4], &[1, 3, 1], &[2, 3, 4]),
        (&[], &[5], &[5]),
        (&[0, 3], &[1, 3], &[0, 3]),
    ];
    for (a, b, out) in shapes {
        let (a, b) = (random.tensor(a), random.tensor(b));
        let inputs = [a.clone(), b.clone()];
        check(Op::Add, &inputs, tensor_of(out, |c| stretched(&a, c) + stretched(&b, c)));
        check(Op::Sub, &inputs, tensor_of(out, |c| stretched(&a, c) - stretched(&b, c)));
        check(Op::Mul, &inputs, tensor_of(out, |c| stretched(&a, c) * stretched(&b, c)));
        check(Op::Max, &inputs, tensor_of(out, |c| stretched(&a, c).max(stretched(&b, c))));
        let less = coordinates(out).iter().map(|c| stretched(&a, c) < stretched(&b, c)).collect();
        check(Op::Lt, &inputs, Tensor::bool(out, less));
    }
}

#[test]
fn reductions_work_along_every_axis() {
    let x = Random::new(2).tensor(&[3, 4, 5]);
    for axis in 0..3 {
        for keep in [false, true] {
            let mut shape = x.shape.clone();
            let n = shape[axis];
            if keep {
                shape[axis] = 1;
            } else {
                shape.remove(axis);
            }
            let lane = |c: &[usize]| -> Vec<f64> {
                let mut full = c.to_vec();
                if !keep {
                    full.insert(axis, 0);
                }
                (0..n).map(|i| (full[axis] = i, at(&x, &full)).1).collect()
            };
            let input = [x.clone()];
            check(Op::Sum { axis, keep }, &input, tensor_of(&shape, |c| lane(c).iter().sum()));
            check(
                Op::ReduceMax { axis, keep },
                &input,
                tensor_of(&shape, |c| lane(c).into_iter().fold(-9.0, f64::max)),
            );
            check(Op::ReduceMin { axis, keep }, &input, tensor_of(&shape, |c| lane(c).into_iter().fold(9.0, f64::min)));
            let argmax = |c: &Vec<usize>| {
                let lane = lane(c);
                (0..n).rev().max_by(|&i, &j| lane[i].total_cmp(&lane[j])).unwrap() as i64
            };
            let expected = Tensor::i64(shape.clone(), coordinates(&shape).iter().map(argmax).collect());
            check(Op::Argmax { axis, keep }, &input, expected);
        }
        let expected = tensor_of(&x.shape, |c| {
            let mut up_to = c.to_vec();
            (0..=c[axis]).map(|i| (up_to[axis] = i, at(&x, &up_to)).1).sum()
        });
        check(Op::Cumsum { axis }, std::slice::from_ref(&x), expected);
    }
}

#[test]
fn shapes_move_the_right_elements() {
    let x = Random::new(3).tensor(&[3, 4, 5]);
    let input = [x.clone()];
    for axes in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let shape: Vec<usize> = axes.iter().map(|&a| x.shape[a]).collect();
        let expected = tensor_of(&shape, |c| {
            let mut from = [0; 3];
            axes.iter().zip(c).for_each(|(&a, &i)| from[a] = i);
            at(&x, &from)
        });
        check(Op::Permute { axes: axes.to_vec() }, &input, expected);
    }
    for (axis, start, end, step) in [(0, 1, 3, 1), (1, 0, 4, 2), (1, 1, 4, 2), (2, 2, 5, 1), (2, 0, 5, 4), (2, 5, 5, 3)]
    {
        let mut shape = x.shape.clone();
        shape[axis] = (start..end).step_by(step).count();
        let expected = tensor_of(&shape, |c| {
            let mut from = c.to_vec();
            from[axis] = start + c[axis] * step;
            at(&x, &from)
        });
        check(Op::Slice { axis, start: start.into(), end: end.into(), step }, &input, expected);
    }
    for axis in 0..3 {
        let mut shape = x.shape.clone();
        shape[axis] = 2;
        let y = Random::new(4).tensor(&shape);
        shape[axis] += x.shape[axis];
        let expected = tensor_of(&shape, |c| {
            let mut from = c.to_vec();
            if c[axis] < x.shape[axis] {
                return at(&x, c);
            }
            from[axis] -= x.shape[axis];
            at(&y, &from)
        });
        check(Op::Concat { axis }, &[x.clone(), y], expected);
    }
}

#[test]
fn indexing_reads_and_writes_the_right_elements() {
    let mut random = Random::new(5);
    let x = random.tensor(&[3, 4, 5]);
    for axis in 0..3 {
        let n = x.shape[axis];
        let index = random.index(&[2, 3], n);
        let mut shape = x.shape.clone();
        shape.splice(axis..=axis, [2, 3]);
        let expected = tensor_of(&shape, |c| {
            let mut from = c.to_vec();
            from.splice(axis..axis + 2, [at(&index, &c[axis..axis + 2]) as usize]);
            at(&x, &from)
        });
        check(Op::Take { axis }, &[x.clone(), index], expected);

        let mut shape = x.shape.clone();
        shape[axis] = 7;
        let index = random.index(&shape, n);
        let target = |c: &[usize]| {
            let mut to = c.to_vec();
            to[axis] = at(&index, c) as usize;
            to
        };
        check(Op::Gather { axis }, &[x.clone(), index.clone()], tensor_of(&shape, |c| at(&x, &target(c))));

        let values = random.tensor(&shape);
        let (mut set, mut sum) = (x.clone(), x.clone());
        for c in coordinates(&shape) {
            let to = target(&c).iter().zip(&x.shape).fold(0, |flat, (i, n)| flat * n + i);
            if let (ConstData::F32(set), ConstData::F32(sum)) = (&mut set.data, &mut sum.data) {
                set[to] = at(&values, &c) as f32;
                sum[to] += at(&values, &c) as f32;
            }
        }
        let inputs = [x.clone(), index, values];
        check(Op::Scatter { axis }, &inputs, set);
        check(Op::ScatterAdd { axis }, &inputs, sum);
    }
}

#[test]
fn matrices_multiply_with_leading_dimensions_stretched() {
    let mut random = Random::new(6);
    let shapes: [(&[usize], &[usize], &[usize]); 7] = [
        (&[4, 300], &[300, 5], &[4, 5]),
        (&[2, 3, 4], &[4, 5], &[2, 3, 5]),
        (&[3, 4], &[2, 4, 5], &[2, 3, 5]),
        (&[2, 1, 3, 4], &[6, 4, 5], &[2, 6, 3, 5]),
        (&[3, 4], &[1, 1, 4, 5], &[1, 1, 3, 5]),
        (&[1, 4], &[4, 1], &[1, 1]),
        (&[2, 3, 0], &[2, 0, 5], &[2, 3, 5]),
    ];
    for (a, b, out) in shapes {
        let (a, b) = (random.tensor(a), random.tensor(b));
        let expected = tensor_of(out, |c| {
            let (lead, [i, j]) = (&c[..c.len() - 2], [c[c.len() - 2], c[c.len() - 1]]);
            let element = |t: &Tensor, p: usize, q: usize| {
                let mut full = lead[lead.len() + 2 - t.shape.len()..].to_vec();
                full.iter_mut().zip(&t.shape).for_each(|(i, &n)| *i = if n == 1 { 0 } else { *i });
                full.extend([p, q]);
                at(t, &full)
            };
            (0..a.shape[a.shape.len() - 1]).map(|k| element(&a, i, k) * element(&b, k, j)).sum()
        });
        check(Op::Matmul, &[a, b], expected);
    }
}

/// Transposed views take another path than rows in order.
#[test]
fn a_transposed_matrix_multiplies_as_its_copy() {
    let mut random = Random::new(7);
    for shape in [vec![5, 4], vec![2, 5, 4]] {
        let (x, w) = (random.tensor(&[3, 4]), random.tensor(&shape));
        let mut f = Fixture::default();
        let (xv, wv) = (f.literal(&x), f.literal(&w));
        let axes = if shape.len() == 2 { vec![1, 0] } else { vec![0, 2, 1] };
        let wt = f.b.permute(wv, axes);
        let y = f.b.matmul(xv, wt);
        let got = f.run(y, 0, &[]).unwrap();
        let expected = tensor_of(&got.shape.clone(), |c| {
            let (i, j) = (c[c.len() - 2], c[c.len() - 1]);
            let row = |k| c[..c.len() - 2].iter().copied().chain([j, k]).collect::<Vec<_>>();
            (0..4).map(|k| at(&x, &[i, k]) * at(&w, &row(k))).sum()
        });
        assert_close("x w^T", &got, &expected, 2e-7);
    }
}

#[test]
fn inputs_and_symbolic_sizes_follow_the_step() {
    let graph = |build: fn(&mut Builder) -> Value| {
        let mut b = Builder::new();
        let y = build(&mut b);
        b.output("y", y);
        b.finish().unwrap()
    };
    let run = |build, inputs: &Inputs| {
        eval(&graph(build), inputs, &|_| Err("none".into())).map(|mut out| out.remove(0).1).map_err(|e| e.to_string())
    };
    let inputs = Inputs::sequence(&[7, 8, 9, 10], 2, &[3, 0]);
    assert_eq!(run(|b| b.token_ids(), &inputs), Ok(Tensor::i64([4], vec![7, 8, 9, 10])));
    assert_eq!(run(|b| b.positions(), &inputs), Ok(Tensor::i64([4], vec![0, 1, 2, 3])));
    assert_eq!(run(|b| b.context_length(4, false), &inputs), Ok(Tensor::i64([4], vec![2; 4])));
    assert_eq!(run(|b| b.iota(Dim::R()), &inputs), Ok(Tensor::i64([2], vec![0, 1])));
    let selected = |b: &mut Builder| {
        let ids = b.token_ids();
        b.select_outputs(ids)
    };
    assert_eq!(run(selected, &inputs), Ok(Tensor::i64([2], vec![10, 7])));
    assert_eq!(run(selected, &Inputs::prompt(&[5], &[])), Ok(Tensor::i64([0], vec![])));
    let tail = |b: &mut Builder| {
        let ids = b.token_ids();
        let start = Dim::T().sub(&Dim::from(3usize)).unwrap();
        b.slice(ids, 0, start, Dim::T())
    };
    assert_eq!(run(tail, &inputs), Ok(Tensor::i64([3], vec![8, 9, 10])));
    let message = run(tail, &Inputs::prompt(&[5], &[])).unwrap_err();
    assert!(message.contains("T-3 is negative at T=1"), "{message}");
    let beyond = |b: &mut Builder| {
        let ids = b.token_ids();
        b.scope("tail", |b| b.slice(ids, 0, 2usize, 4usize))
    };
    assert_eq!(run(beyond, &inputs), Ok(Tensor::i64([2], vec![9, 10])));
    let message = run(beyond, &Inputs::prompt(&[5, 6, 7], &[])).unwrap_err();
    assert!(message.contains("node %1 (tail)") && message.contains("slice 2..4 is not within 0..3"), "{message}");
    // Of constant type, but which elements it is depends on the step: must not be folded.
    let moving = |b: &mut Builder| {
        let numbers = b.constant(vec![0.0, 1.0, 2.0, 3.0, 4.0]);
        b.slice(numbers, 0, Dim::T(), Dim::T().add(&Dim::from(2usize)).unwrap())
    };
    assert_eq!(run(moving, &Inputs::prompt(&[5, 6, 7], &[])), Ok(Tensor::f32([2], vec![3.0, 4.0])));
    let none = Inputs::prompt(&[], &[]);
    assert_eq!(run(|b| b.positions(), &none), Ok(Tensor::i64([0], vec![])));
}

#[test]
fn bad_inputs_and_weights_are_errors_that_name_them() {
    let mut f = Fixture::default();
    let x = f.b.scope("model.embed", |b| {
        let (ids, table) = (b.token_ids(), b.weight("weight", [3, 2]));
        b.embedding(ids, table)
    });
    f.b.output("x", x);
    let graph = f.b.finish().unwrap();
    let good = |_: &str| Ok(Tensor::f32([3, 2], vec![0.0; 6]));
    let fails = |inputs: &Inputs, weights: &dyn Fn(&str) -> Result<Tensor, String>, part: &str| {
        let message = eval(&graph, inputs, weights).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    let inputs = Inputs::prompt(&[0, 2], &[1]);
    eval(&graph, &inputs, &good).unwrap();
    fails(&Inputs::prompt(&[0, 3], &[]), &good, "(model.embed) = take(axis:0): index 3 is out of range, axis 0 has 3");
    fails(&Inputs::prompt(&[0, u32::MAX], &[]), &good, "index 4294967295 is out of range");
    fails(&Inputs::prompt(&[0, 1], &[2]), &good, "row 2 is wanted of 2 tokens");
    fails(&Inputs { positions: vec![0], ..inputs.clone() }, &good, "1 positions for 2 token ids");
    fails(&Inputs { context_length: vec![], ..inputs.clone() }, &good, "0 context lengths for 2");
    fails(
        &inputs,
        &|_| Err("is not in the checkpoint".into()),
        "weight `model.embed.weight`: is not in the checkpoint",
    );
    fails(&inputs, &|_| Ok(Tensor::f32([2, 3], vec![0.0; 6])), "has shape [2, 3], the graph expects [3, 2]");
    fails(&inputs, &|_| Ok(Tensor::bool([3, 2], vec![true; 6])), "must be given as float");
    fails(&inputs, &|_| Ok(Tensor::f32([3, 2], vec![0.0; 5])), "weight `model.embed.weight`");
}

#[test]
fn a_graph_that_is_not_well_formed_is_not_run() {
    let mut f = Fixture::default();
    let (a, b) = (f.literal(&Tensor::f32([2], vec![1.0, 2.0])), f.b.positions());
    f.b.output("y", a);
    let mut graph = f.b.finish().unwrap();
    graph.nodes[0].inputs = vec![b];
    let error = eval(&graph, &Inputs::prompt(&[], &[]), &|_| Err("none".into())).unwrap_err();
    assert!(matches!(error, EvalError::Spec(_)), "{error}");
}

#[test]
fn weights_are_read_once_and_only_where_needed() {
    let mut b = Builder::new();
    let (first, again, unused) = (b.weight("w", [2]), b.weight("w", [2]), b.weight("unused", [2]));
    let doubled = b.add(first, again);
    b.add(unused, doubled);
    let positions = b.positions();
    let positions = b.cast(positions, DType::Float);
    let positions = b.reshape(positions, [Dim::T(), 1usize.into()]);
    let y = b.mul(positions, doubled);
    b.output("y", y);
    b.output("doubled", doubled);
    let graph = b.finish().unwrap();
    let reads = std::cell::RefCell::new(Vec::new());
    let prepared = Prepared::new(&graph, &|name| {
        reads.borrow_mut().push(name.to_owned());
        Ok(Tensor::f32([2], vec![1.0, 2.0]))
    })
    .unwrap();
    for t in [0usize, 1, 3] {
        let out = prepared.run(&Inputs::prompt(&vec![0; t], &[])).unwrap();
        let rows = (0..t).flat_map(|p| [2.0 * p as f32, 4.0 * p as f32]).collect();
        assert_eq!(out[0], ("y".to_owned(), Tensor::f32([t, 2], rows)));
        assert_eq!(out[1], ("doubled".to_owned(), Tensor::f32([2], vec![2.0, 4.0])));
    }
    assert_eq!(*reads.borrow(), ["w"]);
}

#[test]
fn any_value_can_be_looked_at() {
    let mut b = Builder::new();
    let w = b.weight("w", [1]);
    let kind = InputKind::Positions;
    let p = b.op(Op::Input { kind }, &[]);
    let p = b.cast(p, DType::Float);
    let y = b.mul(p, w);
    let z = b.op(Op::Softmax, &[y]);
    b.output("z", z);
    let graph = b.finish().unwrap();
    let source = |_: &str| Ok(Tensor::f32([1], vec![3.0]));
    let got = eval_values(&graph, &[y, w, p], &Inputs::prompt(&[0, 0], &[]), &source).unwrap();
    let expected = [vec![0.0, 3.0], vec![3.0], vec![0.0, 1.0]].map(|v| Tensor::f32([v.len()], v));
    assert_eq!(got, expected);
}
