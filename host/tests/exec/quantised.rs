//! Quantised weights in the executor: every kind of linear layer, near the reference, and with the same bits in every way.

use host::exec::cpu::{StaticForm, plan, quantised};
use host::exec::{Dtype, KvCacheDtype, Quantization};
use host::graph::optimise;
use plugin_api::{Activation, Builder, Dim, Graph, Op};

use super::support::*;

/// A tied head, plain and transposed weights, an activation, heads by parts, and experts.
fn graph() -> Graph {
    let mut b = Builder::new();
    let (ids, table) = (b.token_ids(), b.weight("embed", [97, 64]));
    let x = b.embedding(ids, table);
    // The router sees exact inputs and must itself be exact, or tokens get other experts.
    let router = b.weight("router", [70, 64]);
    let scores = b.linear(x, router);
    let choices = b.op(Op::TopK { k: 2 }, &[scores]);
    let experts = b.weight("experts", [70, 64, 64]);
    let y = b.grouped_linear(x, choices, experts, None);
    let y = b.op(Op::Sum { axis: 1, keep: false }, &[y]);
    let (up, down) = (b.weight("up", [96, 64]), b.weight("down", [96, 64]));
    let down = b.permute(down, [1, 0]);
    let h = b.linear(y, up);
    let h = b.activation(h, Activation::Silu);
    let h = b.linear(h, down);
    let y = b.add(y, h);
    let parts = b.reshape(y, [Dim::T(), 2usize.into(), 32usize.into()]);
    let w = b.weight("by_parts", [64, 32]);
    let parts = b.linear(parts, w);
    let y = b.reshape(parts, [Dim::T(), 128usize.into()]);
    let w = b.weight("last", [64, 128]);
    let y = b.linear(y, w);
    let y = b.select_outputs(y);
    let logits = b.linear(y, table);
    b.output("logits", logits);
    b.finish().unwrap()
}

#[test]
fn quantised_layers_are_near_the_reference_in_every_way() {
    let graph = optimise(&graph()).unwrap();
    let mut random = Random(3);
    let seqs: Vec<Vec<u32>> = [7, 1, 12].iter().map(|&n| random.tokens(n, 97)).collect();
    for stored in [Stored::Bf16, Stored::F32, Stored::Mixed] {
        let weights = checkpoint(&graph, 5, stored);
        for (quantization, tolerance) in [(Quantization::Int8, 0.04), (Quantization::Int4, 0.4)] {
            for dtype in [Dtype::Bfloat16, Dtype::Float32] {
                let mut options = options(dtype, KvCacheDtype::Float32);
                options.quantization = Some(quantization);
                let what = format!("{quantization:?}, {stored:?}, {dtype:?}");
                check_executor(&what, &graph, &weights, (&options, tolerance), &seqs).unwrap();
            }
        }
    }
}

#[test]
fn embeddings_and_routers_stay_as_they_are() {
    let graph = optimise(&graph()).unwrap();
    let weights = checkpoint(&graph, 5, Stored::Bf16);
    let of = |quantization| {
        let (graph, plan) = plan(&graph, &weights, Dtype::Bfloat16, quantization).unwrap();
        let tables = plan.statics.iter().filter(|s| s.form == StaticForm::Table).count();
        (tables, quantised(&graph, &plan, &weights, Dtype::Bfloat16, quantization))
    };
    let (tables, none) = of(None);
    assert_eq!((tables, none.matrices, none.bytes), (0, 0, 0));
    // The head, up, down, by_parts, last, experts: not the router, nor the table that is the head as well.
    let (tables, int8) = of(Some(Quantization::Int8));
    assert_eq!((tables, int8.matrices), (1, 6));
    let elements = 97 * 64 + 96 * 64 + 64 * 96 + 64 * 32 + 64 * 128 + 70 * 64 * 64;
    assert_eq!(int8.plain_bytes, elements * 2);
    assert!(int8.bytes > elements && int8.bytes < elements * 11 / 10, "{int8:?}");
    let (_, int4) = of(Some(Quantization::Int4));
    assert_eq!(int4.matrices, 6);
    // Rows as short as these have more scales than they need.
    assert!(int4.bytes < elements * 9 / 10, "{int4:?}");
}
