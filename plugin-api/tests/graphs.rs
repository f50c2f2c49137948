//! The IR as its users see it: building, printing, reading, verifying.

use plugin_api::op::Activation;
use plugin_api::{AttentionOptions, Builder, DType, Dim, Graph, Model, Op, ParseError, Type, define, spec};

/// One of everything that is composite, in one small model.
fn sample() -> Model {
    let mut b = Builder::new();
    let ids = b.token_ids();
    let table = b.weight("embed.weight", [32, 16]);
    let x = b.embedding(ids, table);
    let positions = b.positions();
    let positions = b.cast(positions, DType::F32);
    let frequencies = b.constant(vec![1.0, 0.5]);
    let positions = b.reshape(positions, [Dim::T(), 1usize.into()]);
    let angles = b.mul(positions, frequencies);
    let (cos, sin) = (b.op(Op::Cos, &[angles]), b.op(Op::Sin, &[angles]));
    let x = b.scope("layers.0", |b| {
        let w = b.weight("norm.weight", [16]);
        let bias = b.weight("norm.bias", [16]);
        let h = b.layer_norm(x, w, bias, 1e-5);
        let h = b.rms_norm(h, w, 1e-6);
        let wq = b.weight("q.weight", [16, 16]);
        let q = b.linear_bias(h, wq, bias);
        let q = b.split_heads(q, 4, 4);
        let wkv = b.weight("kv.weight", [16, 16]);
        let kv = b.linear(h, wkv);
        let kv = b.split_last(kv, &[8, 8]);
        let (k, v) = (b.split_heads(kv[0], 2, 4), b.split_heads(kv[1], 2, 4));
        let q = b.rope(q, (cos, sin), false);
        let k = b.rope(k, (cos, sin), true);
        let sinks = b.weight("sinks", [4]);
        let slopes = b.constant(vec![0.5, 0.25, 0.125, 0.0625]);
        let options = AttentionOptions {
            window: Some(8),
            softcap: Some(30.0),
            sinks: Some(sinks),
            alibi: Some(slopes),
            ..Default::default()
        };
        let a = b.attention(0, [q, k, v], 0.5, options);
        let a = b.merge_heads(a);
        let x = b.add(x, a);
        let g = b.activation(x, Activation::Gelu);
        b.gated(g, x, Activation::Silu)
    });
    let x = b.select_outputs(x);
    let x = b.op(Op::Softmax, &[x]);
    let logits = b.linear(x, table);
    b.output("logits", logits);
    model(b.finish().expect("well-formed"))
}

fn model(graph: Graph) -> Model {
    Model { architecture: "Sample".into(), context_length: 64, graphs: [("decode".to_owned(), graph)].into() }
}

#[test]
fn a_model_reads_as_it_prints() {
    let model = sample();
    spec::verify(&model).expect("verifies");
    let text = model.to_text();
    assert_eq!(Model::parse(&text).expect("parses"), model);
    insta::assert_snapshot!(text);
}

#[test]
fn every_definition_is_made_of_primitives_and_keeps_the_type() {
    let graph = sample().graphs["decode"].clone();
    let expanded = define::expand(&graph).expect("expands");
    assert!(expanded.nodes.iter().all(|n| !n.op.is_composite()));
    assert_eq!(expanded.ty(expanded.output("logits").unwrap()), graph.ty(graph.output("logits").unwrap()));
    spec::verify(&model(expanded)).expect("verifies");
}

#[test]
fn the_first_mistake_is_reported_with_op_shapes_and_scope() {
    let mut b = Builder::new();
    let x = b.weight("x", [4, 8]);
    b.scope("layers.3.mlp", |b| {
        let w = b.weight("up.weight", [16, 9]);
        let y = b.linear(x, w);
        b.reshape(y, [1usize]) // follows a mistake: not reported
    });
    let message = b.finish().unwrap_err().to_string();
    assert_eq!(
        message,
        "node %2 (layers.3.mlp) = linear of (float[4,8], float[16,9]): the input ends in [4,8], the weight in 9"
    );
}

/// (change of the sample's text, part of the message)
#[test]
fn broken_text_gives_a_clear_error() {
    let text = sample().to_text();
    let cases: &[(&str, &str, &str)] = &[
        ("host-graph 1.1", "host-graph 2.0", "IR version 2.0, this host reads 1.0"),
        ("host-graph 1.1", "host-graph 0.9", "rebuild the plugin"),
        ("host-graph 1.1", "{\"json\": 1}", "not a graph"),
        ("= layer_norm(eps:", "= layer_form(eps:", "unknown op `layer_form`"),
        ("= layer_norm(eps:", "= layer_norm(epsilon:", "epsilon"),
        ("rms_norm(eps:1e-6", "rms_norm(eps:1e-6,extra:1", "extra"),
        ("%1 float[32,16]", "%1 float[32,17]", "gives float[32,16], declared is float[32,17]"),
        ("%1 float[32,16]", "%7 float[32,16]", "the next node is %1"),
        ("= embedding %0 %1", "= embedding %0 %9", "not computed before"),
        ("= embedding %0 %1", "= embedding %0", "takes 2..=2 inputs, got 1"),
        ("context_length 64", "context_length -1", "not a length"),
        ("end\n", "", "truncated"),
        ("window:Some(8)", "window:Some(0)", "sees nothing"),
    ];
    for (from, to, expected) in cases {
        assert!(text.contains(from), "{from}");
        let error = Model::parse(&text.replacen(from, to, 1)).unwrap_err();
        assert!(error.to_string().contains(expected), "{from} -> {to}: {error}");
    }
    assert!(matches!(Model::parse_bytes(&[0xff, 0xfe]), Err(ParseError::NotText(0))));
}

#[test]
fn a_newer_minor_is_read_unless_it_uses_a_new_op() {
    let text = sample().to_text().replacen("host-graph 1.1", "host-graph 1.7", 1);
    Model::parse(&text).expect("all ops are known");
    let text = text.replacen("= layer_norm(eps:", "= warp_norm(eps:", 1);
    let error = Model::parse(&text).unwrap_err().to_string();
    assert!(error.contains("unknown op `warp_norm`; the graph is of IR version 1.7, this host knows 1.1"), "{error}");
}

#[test]
fn verify_rejects_what_no_single_line_shows() {
    let mut two = sample();
    let g = two.graphs.get_mut("decode").unwrap();
    let attention = g.nodes.iter().find(|n| matches!(n.op, Op::Attention { .. })).unwrap().clone();
    g.push(attention.op, attention.inputs, "again").unwrap();
    assert!(spec::verify(&two).unwrap_err().to_string().contains("state 0 is already used"));

    let mut none = sample();
    none.graphs.get_mut("decode").unwrap().outputs.clear();
    assert!(spec::verify(&none).unwrap_err().to_string().contains("no output `logits`"));

    let mut lying = sample();
    let g = lying.graphs.get_mut("decode").unwrap();
    g.nodes[0].ty = Type::new(DType::Bool, [Dim::T()]);
    assert!(spec::verify(&lying).is_err());

    let mut forward = sample();
    let g = forward.graphs.get_mut("decode").unwrap();
    let last = plugin_api::Value(g.nodes.len() as u32 - 1);
    g.nodes[2].inputs[0] = last;
    assert!(spec::verify(&forward).unwrap_err().to_string().contains("not computed before"));
}

proptest::proptest! {
    /// Whatever bytes a plugin returns, reading and verifying them ends in a value, not in a panic.
    #[test]
    fn damaged_text_never_panics(at in 0usize..4000, byte in 0u8..255, cut in 0usize..4000) {
        let mut bytes = sample().to_text().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        for bytes in [&bytes[..], &bytes[..cut.min(bytes.len())]] {
            if let Ok(model) = Model::parse_bytes(bytes) {
                let _ = spec::verify(&model);
                for graph in model.graphs.values() {
                    let _ = define::expand(graph);
                }
            }
        }
    }
}
