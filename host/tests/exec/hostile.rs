//! Graphs that no model has: whatever a plugin returns ends in an error or works, soon, and in little memory. A
//! panic, an abort or minutes of work in any of these would be those of the server.

use std::time::{Duration, Instant};

use host::exec::cpu::{CpuExecutor, plan};
use host::exec::reference::{Inputs, eval};
use host::exec::{Dtype, Executor, KvCacheDtype, LogitRows, Step, StepSeq};
use host::graph::optimise;
use plugin_api::{AttentionOptions, Builder, ConstData, DType, Dim, Graph, Model, Op, SpecError, Value, spec};

use super::support::*;

fn finish(make: impl FnOnce(&mut Builder, Value) -> Value) -> Result<Graph, SpecError> {
    let mut b = Builder::new();
    let (ids, table) = (b.token_ids(), b.weight("embed", [9, 4]));
    let x = b.embedding(ids, table);
    let y = make(&mut b, x);
    let y = b.select_outputs(y);
    b.output("logits", y);
    b.finish()
}

/// What happens to a graph between the plugin and the first token; the error if it is refused.
fn serve(graph: &Graph) -> Result<Vec<f32>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    spec::verify_graph("decode", graph).map_err(|e| text(&e))?;
    let graph = optimise(graph).map_err(|e| text(&e))?;
    let weights = checkpoint(&graph, 1, Stored::F32);
    plan(&graph, &weights, Dtype::Float32, None).map_err(|e| text(&e))?;
    let mut executor =
        CpuExecutor::new(&graph, &weights, &options(Dtype::Float32, KvCacheDtype::Float32)).map_err(|e| text(&e))?;
    executor.allocate_cache(4).map_err(|e| text(&e))?;
    let seq = StepSeq { id: 1, tokens: &[1, 2, 3], computed: 0, context_len: 3, blocks: &[2], logits: LogitRows::Last };
    executor.execute(&Step { seqs: &[seq] }).map(<[f32]>::to_vec).map_err(|e| text(&e))
}

fn within(limit: Duration, what: &str, run: impl FnOnce()) {
    let start = Instant::now();
    run();
    assert!(start.elapsed() < limit, "{what} took {:?}", start.elapsed());
}

fn assert_refused(what: &str, result: Result<Vec<f32>, String>, words: &[&str]) {
    let e = match result {
        Err(e) => e,
        Ok(_) => panic!("{what} was accepted"),
    };
    assert!(e.len() < 2000, "{what}: a message of {} bytes", e.len());
    for word in words {
        assert!(e.contains(word), "{what}: `{e}` does not say `{word}`");
    }
}

#[test]
fn long_chains_are_served() {
    let dynamic = finish(|b, x| {
        // Alternating, so that no pass can drop it.
        (0..10_000).fold(x, |y, i| if i % 2 == 0 { b.op(Op::Sin, &[y]) } else { b.op(Op::Neg, &[y]) })
    });
    let fixed = finish(|b, x| {
        let w = b.weight("w", [4]);
        let w = (0..20_000).fold(w, |y, i| if i % 2 == 0 { b.op(Op::Sin, &[y]) } else { b.op(Op::Neg, &[y]) });
        b.add(x, w)
    });
    let shapes = finish(|b, x| {
        (0..20_000).fold(x, |y, i| {
            if i % 2 == 0 { b.reshape(y, [Dim::T(), 2usize.into(), 2usize.into()]) } else { b.permute(y, [0, 2, 1]) }
        })
    });
    // Every value is alive at once.
    let wide = finish(|b, x| {
        let parts: Vec<Value> = (0..5_000)
            .map(|i| {
                let c = b.scalar(DType::Float, i as f32);
                b.add(x, c)
            })
            .collect();
        let all = b.concat(1, &parts);
        b.slice(all, 1, 0usize, 4usize)
    });
    let linears = finish(|b, x| {
        let parts: Vec<Value> = (0..2_000)
            .map(|i| {
                let w = b.weight(&format!("w{i}"), [4, 4]);
                b.linear(x, w)
            })
            .collect();
        b.concat(1, &parts)
    });
    for (what, g) in [("dynamic", dynamic), ("static", fixed), ("shapes", shapes), ("wide", wide), ("linears", linears)]
    {
        within(Duration::from_secs(20), what, || {
            let y = serve(&g.unwrap()).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(y.iter().all(|v| v.is_finite()), "{what}");
        });
    }
}

#[test]
fn doubling_is_not_exponential() {
    let dynamic = finish(|b, x| (0..200).fold(x, |y, _| b.add(y, y)));
    let fixed = finish(|b, x| {
        let w = b.weight("w", [4]);
        let w = (0..200).fold(w, |y, _| b.add(y, y));
        b.mul(x, w)
    });
    let matrices = finish(|b, x| {
        let w = b.weight("w", [4, 4]);
        let w = (0..200).fold(w, |y, _| b.matmul(y, y));
        b.linear(x, w)
    });
    for g in [dynamic, fixed, matrices] {
        within(Duration::from_secs(5), "doubling", || assert_eq!(serve(&g.unwrap()).unwrap().len(), 4));
    }
}

#[test]
fn enormous_values_are_refused_before_they_are_made() {
    let big = |n: u32| Dim::from(1usize << n);
    let sum = |b: &mut Builder, x: Value, y: Value| {
        let rank = b.ty(y).shape.rank();
        let mut y = b.cast(y, DType::Float);
        for axis in (0..rank).rev() {
            y = b.op(Op::Sum { axis, keep: false }, &[y]);
        }
        b.add(x, y)
    };
    // Refused by the specification.
    type Make<'a> = Box<dyn Fn(&mut Builder, Value) -> Value + 'a>;
    let cases: Vec<(&str, &str, Make<'_>)> = vec![
        (
            "iota over 2^40",
            "limit is 68719476736",
            Box::new(|b, x| {
                let i = b.iota(big(40));
                sum(b, x, i)
            }),
        ),
        (
            "a square of 2^20",
            "limit is 68719476736",
            Box::new(|b, x| {
                let one = b.scalar(DType::Float, 1.0);
                let y = b.op(Op::Broadcast { shape: vec![big(20), big(20)] }, &[one]);
                sum(b, x, y)
            }),
        ),
        (
            "2^40 for each token",
            "limit is 268435456 for each token",
            Box::new(|b, x| {
                let y = b.reshape(x, [Dim::T(), 4usize.into(), 1usize.into()]);
                b.op(Op::Broadcast { shape: vec![Dim::T(), 4usize.into(), big(40)] }, &[y])
            }),
        ),
        (
            "many dimensions",
            "17 dimensions, the limit is 16",
            Box::new(|b, x| {
                b.reshape(
                    x,
                    [vec![Dim::T(), 4usize.into()], vec![1usize.into(); 15]]
                        .concat()
                        .into_iter()
                        .collect::<plugin_api::Shape>(),
                )
            }),
        ),
        // Within the specification, refused by the executor.
        (
            "iota over 2^35",
            "the limit is",
            Box::new(|b, x| {
                let i = b.iota(big(35));
                sum(b, x, i)
            }),
        ),
        (
            "an outer sum of 2^34",
            "be in memory at once",
            Box::new(|b, x| {
                let i = b.iota(big(17));
                let j = b.reshape(i, [big(17), 1usize.into()]);
                let y = b.add(i, j);
                sum(b, x, y)
            }),
        ),
        (
            "an outer product of 2^34, by matmul",
            "the limit is",
            Box::new(|b, x| {
                let i = b.iota(big(17));
                let i = b.cast(i, DType::Float);
                let r = b.reshape(i, [big(17), 1usize.into()]);
                let c = b.reshape(i, [Dim::from(1usize), big(17)]);
                let y = b.matmul(r, c);
                sum(b, x, y)
            }),
        ),
        (
            "hours of work",
            "have to be computed",
            Box::new(|b, x| {
                let one = b.scalar(DType::Float, 0.0);
                let m = b.op(Op::Broadcast { shape: vec![big(12), big(12)] }, &[one]);
                let y = (0..50).fold(m, |y, _| b.matmul(y, m));
                sum(b, x, y)
            }),
        ),
        (
            "2^28 for each token",
            "lower --max-num-batched-tokens",
            Box::new(|b, x| {
                let y = b.reshape(x, [Dim::T(), 4usize.into(), 1usize.into()]);
                b.op(Op::Broadcast { shape: vec![Dim::T(), 4usize.into(), big(26)] }, &[y])
            }),
        ),
        (
            "wide broadcasts",
            "the limit is",
            Box::new(|b, x| {
                let c = b.iota(big(26));
                let c = b.cast(c, DType::Float);
                let s = b.slice(x, 1, 0usize, 1usize);
                let y = b.add(c, s);
                let y = b.add(y, c);
                b.slice(y, 1, 0usize, 4usize)
            }),
        ),
    ];
    for (what, word, make) in cases {
        within(Duration::from_secs(10), what, || {
            let result = finish(|b, x| make(b, x)).map_err(|e| e.to_string()).and_then(|g| serve(&g));
            assert_refused(what, result, &[word]);
        });
    }
}

#[test]
fn sizes_of_zero_are_errors_or_work() {
    let empty: Vec<(&str, Result<Graph, SpecError>)> = vec![
        ("an empty slice", finish(|b, x| b.slice(x, 1, 2usize, 2usize))),
        (
            "an empty table",
            finish(|b, _| {
                let (i, w) = (b.token_ids(), b.weight("none", [0, 4]));
                b.embedding(i, w)
            }),
        ),
        (
            "rows of nothing",
            finish(|b, _| {
                let (i, w) = (b.token_ids(), b.weight("thin", [9, 0]));
                b.embedding(i, w)
            }),
        ),
        (
            "a linear to nothing",
            finish(|b, x| {
                let w = b.weight("w", [0, 4]);
                b.linear(x, w)
            }),
        ),
        (
            "a linear from nothing",
            finish(|b, x| {
                let (x, w) = (b.slice(x, 1, 1usize, 1usize), b.weight("w", [3, 0]));
                b.linear(x, w)
            }),
        ),
        (
            "the norm of nothing",
            finish(|b, x| {
                let (x, w) = (b.slice(x, 1, 1usize, 1usize), b.weight("w", [0]));
                b.rms_norm(x, w, 1e-5)
            }),
        ),
        (
            "the largest of nothing",
            finish(|b, x| {
                let x = b.slice(x, 1, 1usize, 1usize);
                b.op(Op::ReduceMax { axis: 1, keep: true }, &[x])
            }),
        ),
        (
            "no heads",
            finish(|b, x| {
                let x = b.slice(x, 1, 1usize, 1usize);
                let q = b.reshape(x, [Dim::T(), 0usize.into(), 2usize.into()]);
                let y = b.attention(0, [q, q, q], 1.0, AttentionOptions::default());
                b.merge_heads(y)
            }),
        ),
        (
            "heads of nothing",
            finish(|b, x| {
                let x = b.slice(x, 1, 1usize, 1usize);
                let q = b.reshape(x, [Dim::T(), 2usize.into(), 0usize.into()]);
                let y = b.attention(0, [q, q, q], 1.0, AttentionOptions::default());
                b.merge_heads(y)
            }),
        ),
        (
            "an integer divided by zero",
            finish(|b, x| {
                let (i, zero) = (b.token_ids(), b.int(0));
                let i = b.div(i, zero);
                let i = b.cast(i, DType::Float);
                let i = b.reshape(i, [Dim::T(), 1usize.into()]);
                b.add(x, i)
            }),
        ),
        (
            "a table index out of range",
            finish(|b, _| {
                let (i, n, w) = (b.token_ids(), b.int(100), b.weight("w", [9, 4]));
                let i = b.add(i, n);
                b.embedding(i, w)
            }),
        ),
        (
            "a negative table index",
            finish(|b, _| {
                let (i, w) = (b.token_ids(), b.weight("w", [9, 4]));
                let i = b.op(Op::Neg, &[i]);
                b.embedding(i, w)
            }),
        ),
    ];
    for (what, graph) in empty {
        match graph.map_err(|e| e.to_string()).and_then(|g| serve(&g)) {
            Ok(y) => assert!(y.len() <= 4, "{what}"),
            Err(e) => assert!(!e.is_empty() && e.len() < 2000, "{what}: {e}"),
        }
    }
}

#[test]
fn whole_models_are_checked() {
    let model = |make: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        make(&mut b);
        Model {
            architecture: "X".into(),
            context_length: 8,
            graphs: [("decode".to_owned(), b.finish().unwrap())].into(),
        }
    };
    let logits = |b: &mut Builder, n: usize| {
        let (i, w) = (b.token_ids(), b.weight("w", [9, 4]));
        let x = b.embedding(i, w);
        let x = b.slice(x, 1, 0usize, n);
        let x = b.select_outputs(x);
        b.output("logits", x);
    };
    assert_eq!(spec::verify(&model(&|b| logits(b, 4))), Ok(()));
    let nothing = spec::verify(&model(&|b| logits(b, 0))).unwrap_err().to_string();
    assert!(nothing.contains("float[R,0]"), "{nothing}");
    let twice = spec::verify(&model(&|b| {
        logits(b, 4);
        logits(b, 4)
    }))
    .unwrap_err()
    .to_string();
    assert!(twice.contains("two outputs `logits`"), "{twice}");
}

/// A text may be long, what is kept of it may not be much longer.
#[test]
fn texts_cannot_make_the_parser_work_for_ever() {
    let model =
        |line: &str| format!("host-graph 1.0\narchitecture \"X\"\ncontext_length 8\ngraph decode\n{line}\nend\n");
    let list = |item: &str, n: usize| vec![item; n].join(",");
    let powers = (1..200).map(|i| vec!["T"; i].join("*")).collect::<Vec<_>>().join("+");
    let cases = [
        ("a type of many dimensions", format!("  %0 float[{}] = weight(name:\"w\",shape:[1])", list("1", 1_000_000))),
        (
            "an attribute of many dimensions",
            format!("  %0 i64[T] = input(kind:token_ids)\n  %1 i64[T] = reshape(shape:[{}]) %0", list("1", 1_000_000)),
        ),
        ("a dimension of many terms", format!("  %0 i64[{powers}] = iota(len:\"{powers}\")")),
        ("a long name", format!("  %0 float[1] = weight(name:\"{}\",shape:[1])", "w".repeat(1_000_000))),
        (
            "a literal that does not fit",
            format!("  %0 f32[2] = const(dtype:f32,shape:[2],data:f32([{}]))", list("1.0", 100_000)),
        ),
        ("nesting", format!("  %0 f32[2] = const({}", "(".repeat(1_000_000))),
        ("many inputs", format!("  %0 i64[T] = input(kind:token_ids)\n  %1 i64[T] = add{}", " %0".repeat(1_000_000))),
    ];
    for (what, line) in cases {
        within(Duration::from_secs(10), what, || {
            let e = Model::parse(&model(&line)).unwrap_err().to_string();
            assert!(e.len() < 3_000, "{what}: a message of {} bytes", e.len());
        });
    }
}

/// Composites are replaced by their definitions where there is no kernel, up to a limit.
#[test]
fn definitions_do_not_grow_without_end() {
    let g = finish(|b, x| {
        let s = b.weight("s", [4]);
        (0..500).fold(x, |y, _| {
            let y = b.reshape(y, [Dim::T(), 2usize.into(), 2usize.into()]);
            let n = b.slice(s, 0, 0usize, 2usize);
            let y = b.rms_norm(y, n, 1e-5);
            b.reshape(y, [Dim::T(), 4usize.into()])
        })
    });
    within(Duration::from_secs(20), "500 norms of heads", || assert_eq!(serve(&g.unwrap()).unwrap().len(), 4));
}

/// The reference may be asked to run them too.
#[test]
fn the_reference_refuses_what_it_cannot_hold() {
    let mut b = Builder::new();
    let i = b.iota(1usize << 36);
    let total = b.op(Op::Sum { axis: 0, keep: false }, &[i]);
    b.output("y", total);
    let g = b.finish().unwrap();
    let none = |_: &str| Err("none".to_owned());
    let e = eval(&g, &Inputs::prompt(&[1], &[]), &none).unwrap_err().to_string();
    assert!(e.contains("limit"), "{e}");
    // Nothing was made of a literal that is shorter than its shape either.
    let short = Op::Const { dtype: DType::I64, shape: vec![1 << 40], data: ConstData::I64(vec![1]) };
    assert!(spec::infer(&short, &[]).unwrap_err().contains("do not fill"));
}
