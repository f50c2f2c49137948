//! The executor as the engine sees it.

use plugin_api::LengthDependence;
use std::collections::BTreeMap;

use plugin_api::{AttentionOptions, Builder, DType, Dim, Graph, Model};

use super::Random;
use crate::exec::reference::{Inputs, Limits, ReferenceExecutor, Tensor, eval};
use crate::exec::{BlockId, ExecError, Executor, LogitRows, PrefixCaching, Step, StepSeq};

const VOCABULARY: usize = 11;
const WIDTH: usize = 6;
const LIMITS: Limits = Limits { max_tokens: 16, max_seqs: 3 };

/// Embedding, attention layers with these windows, head; scaled by the context length if asked.
fn model(windows: &[Option<u32>], reads_length: bool) -> Model {
    let mut b = Builder::new();
    let (ids, table) = (b.token_ids(), b.weight("embed", [VOCABULARY, WIDTH]));
    let mut x = b.embedding(ids, table);
    for (layer, &window) in windows.iter().enumerate() {
        let q = b.split_heads(x, 3, 2);
        let options = AttentionOptions { window, ..Default::default() };
        let y = b.attention(layer, [q, q, q], 1.0, options);
        let y = b.merge_heads(y);
        x = b.add(x, y);
    }
    if reads_length {
        let length = b.context_length(8, true);
        let length = b.cast(length, DType::Float);
        let length = b.reshape(length, [Dim::T(), 1usize.into()]);
        x = b.mul(x, length);
    }
    let x = b.select_outputs(x);
    let logits = b.linear(x, table);
    b.output("logits", logits);
    let graphs: BTreeMap<String, Graph> = [("decode".to_owned(), b.finish().unwrap())].into();
    Model { architecture: "Tiny".into(), context_length: 64, graphs }
}

fn weights(_: &str) -> Result<Tensor, String> {
    Ok(Random::new(20).tensor(&[VOCABULARY, WIDTH]))
}

fn executor(model: &Model) -> ReferenceExecutor {
    ReferenceExecutor::new(model, &weights, LIMITS).unwrap()
}

/// The logits of the positions `rows` of a sequence, computed whole.
fn whole(model: &Model, tokens: &[u32], prompt_len: usize, rows: &[usize]) -> Vec<f32> {
    let out = eval(&model.graphs["decode"], &Inputs::sequence(tokens, prompt_len, rows), &weights).unwrap();
    out[0].1.as_f32().unwrap().to_vec()
}

const BLOCKS: [BlockId; 2] = [3, 5];

fn seq<'a>(id: u64, tokens: &'a [u32], computed: usize, logits: LogitRows) -> StepSeq<'a> {
    StepSeq { id, tokens, computed, context_len: 4, blocks: &BLOCKS, logits }
}

#[test]
fn the_spec_follows_from_the_graph() {
    let spec = |windows: &[Option<u32>], reads_length| executor(&model(windows, reads_length)).spec().clone();
    let plain = spec(&[None, None], false);
    assert_eq!((plain.row_width, plain.max_tokens, plain.max_seqs), (VOCABULARY, 16, 3));
    assert_eq!(plain.kv_bytes_per_block, 2 * 3 * (2 + 2) * 16 * 4);
    assert_eq!((plain.window, plain.prefix_cache), (None, PrefixCaching::Shared));
    assert_eq!(spec(&[Some(4), Some(9)], false).window, Some(9));
    assert_eq!(spec(&[Some(4), None], false).window, None);
    assert_eq!((spec(&[], false).window, spec(&[], false).kv_bytes_per_block), (None, 1));
    assert_eq!(spec(&[None], true).by_length, Some(LengthDependence { above: 8, growing: true }));
}

#[test]
fn steps_give_the_rows_that_were_asked_for_in_order() {
    let model = model(&[None, Some(3)], true);
    let mut e = executor(&model);
    e.allocate_cache(8).unwrap();
    let (a, b, c) = ([1, 2, 3, 4, 5, 6], [7, 8, 9], [10, 0, 10, 0, 10]);
    let seqs = [
        seq(1, &a, 5, LogitRows::Last),
        seq(2, &b, 0, LogitRows::None),
        seq(3, &c, 2, LogitRows::From(1)), // position 1 was computed before
    ];
    let got = e.execute(&Step { seqs: &seqs }).unwrap().to_vec();
    let expected = [whole(&model, &a, 4, &[5]), whole(&model, &c, 4, &[2, 3, 4])].concat();
    assert_eq!(got, expected);
    // The next step starts from nothing, and beyond the end there is no row.
    let seqs = [seq(2, &b, 0, LogitRows::From(1)), seq(3, &c, 4, LogitRows::From(5))];
    assert_eq!(e.execute(&Step { seqs: &seqs }).unwrap(), whole(&model, &b, 4, &[1, 2]));
    assert_eq!(e.execute(&Step { seqs: &[] }).unwrap(), &[] as &[f32]);
}

#[test]
fn a_row_does_not_depend_on_how_a_sequence_was_cut() {
    let model = model(&[None, Some(3)], false);
    let mut e = executor(&model);
    let tokens: Vec<u32> = (0..12).map(|i| i * 7 % 11).collect();
    let all = whole(&model, &tokens, 12, &(0..12).collect::<Vec<_>>());
    for p in 0..12 {
        let got = e.execute(&Step { seqs: &[seq(1, &tokens[..=p], p, LogitRows::Last)] }).unwrap();
        assert_eq!(got, &all[p * VOCABULARY..(p + 1) * VOCABULARY], "position {p}");
    }
}

#[test]
fn malformed_steps_are_errors() {
    let mut e = executor(&model(&[None], false));
    let long: Vec<u32> = vec![1; 33];
    let one = |tokens, computed| vec![seq(1, tokens, computed, LogitRows::Last)];
    let many = |n: u64, tokens| (0..n).map(|id| seq(id, tokens, 0, LogitRows::None)).collect::<Vec<_>>();
    let cases = [
        (one(&long[..5], 5), "none is new"),
        (one(&[], 0), "none is new"),
        (one(&long, 32), "2 blocks for 33 tokens"),
        (one(&long[..17], 0), "17 new tokens, the limit is 16"),
        (many(4, &long[..1]), "4 sequences, the limit is 3"),
        (vec![one(&long[..1], 0)[0], one(&long[..2], 0)[0]], "sequence 1 is there twice"),
    ];
    for (seqs, part) in cases {
        match e.execute(&Step { seqs: &seqs }) {
            Err(ExecError::BadStep(message)) => assert!(message.contains(part), "{message}"),
            other => panic!("{part}: {other:?}"),
        }
    }
    let error = e.execute(&Step { seqs: &[seq(1, &[11], 0, LogitRows::Last)] }).unwrap_err().to_string();
    assert!(error.contains("index 11 is out of range, axis 0 has 11"), "{error}");
}

#[test]
fn a_model_that_is_not_well_formed_is_refused() {
    let mut wrong = model(&[None], false);
    wrong.graphs.clear();
    let error = ReferenceExecutor::new(&wrong, &weights, LIMITS).err().expect("refused").to_string();
    assert!(error.contains("no graph `decode`"), "{error}");
}

/// Integers are read exactly, or as floats if the graph says so; floats are never read as integers.
#[test]
fn stored_integers_are_read_as_the_graph_wants_them() {
    let run = |dtype: DType, stored: Tensor| {
        let mut b = Builder::new();
        let op = plugin_api::Op::Weight { name: "ids".into(), shape: vec![2], dtype };
        let w = b.op(op, &[]);
        b.output("w", w);
        eval(&b.finish().unwrap(), &Inputs::prompt(&[], &[]), &|_| Ok(stored.clone())).map(|mut out| out.remove(0).1)
    };
    let (large, half) = (Tensor::i64([2], vec![(1 << 53) + 1, -3]), Tensor::f32([2], vec![0.5, 1.0]));
    assert_eq!(run(DType::I64, large.clone()).unwrap(), large);
    assert_eq!(run(DType::Float, large).unwrap(), Tensor::f32([2], vec![9_007_199_254_740_992.0, -3.0]));
    let error = run(DType::I64, half).unwrap_err().to_string();
    assert!(error.contains("weight `ids`: is stored as floats, the graph reads integers"), "{error}");
}
