//! Every format: what texts mean, and that it does not matter how they are cut.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What a text amounts to: content, reasoning, and calls.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sum {
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
}

fn run<'a>(plan: &Plan, pieces: impl IntoIterator<Item = &'a str>) -> Sum {
    let mut parser = Parser::new(plan);
    let mut sum = Sum::default();
    let mut add = |events: Vec<Event>| {
        for event in events {
            match event {
                Event::Content(text) => sum.content += &text,
                Event::Reasoning(text) => sum.reasoning += &text,
                Event::Call(name) => sum.calls.push((name, String::new())),
                Event::Arguments(text) => sum.calls.last_mut().expect("a call comes first").1 += &text,
            }
        }
    };
    for piece in pieces {
        add(parser.push(piece));
    }
    add(parser.finish());
    sum
}

fn auto(format: ToolFormat) -> Plan {
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"}}}}},
        {"type": "function", "function": {"name": "now"}},
    ]);
    let schemas = Schemas::new(tools.as_array().map(Vec::as_slice).unwrap_or_default());
    Plan { tools: Tools::Auto(format), schemas, reasoning: None }
}

fn tags(text: &str) -> ReasoningFormat {
    text.parse().unwrap()
}

fn reasons(format: ReasoningFormat, begun: bool) -> Plan {
    Plan { reasoning: Some((format, begun)), ..Plan::default() }
}

/// A text, and what it means: content, reasoning, calls with their arguments as JSON.
type Case = (Plan, &'static str, &'static str, &'static str, Vec<(&'static str, Value)>);

const V3: &str = "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Köln\"}\n\
                  ```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\
                  <｜tool▁calls▁end｜>";
const V31: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"a{b\"}<｜tool▁call▁end｜>\
                   <｜tool▁calls▁end｜>";
const HARMONY: &str = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary\
                       to=functions.weather <|constrain|>json<|message|>{\"city\": \"Bonn\"}<|call|>";

fn json_cases() -> Vec<Case> {
    let (hermes, llama, mistral) = (ToolFormat::Hermes, ToolFormat::Llama3Json, ToolFormat::Mistral);
    let bonn = || json!({"city": "Bonn", "days": 2});
    vec![
        (auto(hermes), "Just <text> {}.", "Just <text> {}.", "", vec![]),
        (
            auto(hermes),
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\", \"days\": 2}}\n</tool_call>\n\
             <tool_call>\n{\"arguments\": {}, \"name\": \"now\"}\n</tool_call>\n",
            "Let me see.",
            "",
            vec![("weather", bonn()), ("now", json!({}))],
        ),
        (
            auto(hermes),
            "<tool_call>{\"name\": \"weather\", \"arguments\": \"{\\\"city\\\": \\\"</tool_call>\\\"}\"}</tool_call> bye",
            " bye",
            "",
            vec![("weather", json!({"city": "</tool_call>"}))],
        ),
        (auto(hermes), "<tool_call>{\"name\": \"now\"}", "", "", vec![("now", json!({}))]),
        (auto(hermes), "<tool_call>{\"nam\": 1}</tool_call>", "{\"nam\": 1}", "", vec![]),
        (
            auto(llama),
            " {\"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\", \"days\": 2}}; {\"name\": \"now\", \"parameters\": {}}",
            "",
            "",
            vec![("weather", bonn()), ("now", json!({}))],
        ),
        (
            auto(llama),
            "<|python_tag|>{\"type\": \"function\", \"name\": \"now\", \"parameters\": null}",
            "",
            "",
            vec![("now", json!({}))],
        ),
        (auto(llama), "\n{\"answer\": [1, 2]} is it.", "\n{\"answer\": [1, 2]} is it.", "", vec![]),
        (auto(llama), "No, {\"name\": \"x\"}", "No, {\"name\": \"x\"}", "", vec![]),
        (
            auto(mistral),
            "Well. [TOOL_CALLS][{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\", \"days\": 2}}, {\"name\": \"now\", \
             \"arguments\": {}}]",
            "Well.",
            "",
            vec![("weather", bonn()), ("now", json!({}))],
        ),
        (
            auto(mistral),
            "[TOOL_CALLS]weather[ARGS]{\"city\": \"]\"}[TOOL_CALLS]now{}",
            "",
            "",
            vec![("weather", json!({"city": "]"})), ("now", json!({}))],
        ),
        (
            Plan { tools: Tools::Named("weather".into()), ..Plan::default() },
            " {\"city\": \"Bonn\", \"days\": 2}\n",
            "",
            "",
            vec![("weather", bonn())],
        ),
        (
            Plan { tools: Tools::Required, ..Plan::default() },
            "[{\"name\": \"weather\", \"parameters\": {\"city\": \"Bonn\", \"days\": 2}}, {\"name\": \"now\", \"parameters\": {}}]",
            "",
            "",
            vec![("weather", bonn()), ("now", json!({}))],
        ),
    ]
}

fn other_cases() -> Vec<Case> {
    use ToolFormat::{DeepseekV3, Glm4, Harmony, Pythonic, Qwen3Xml};
    vec![
        (
            auto(Qwen3Xml),
            "I will.\n<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
             <parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "I will.",
            "",
            vec![("weather", json!({"city": "12", "days": 3, "exact": true})), ("now", json!({}))],
        ),
        (
            auto(Qwen3Xml),
            "<function=weather><parameter=city>a\n<b>\n\"c\"</parameter></function>",
            "",
            "",
            vec![("weather", json!({"city": "a\n<b>\n\"c\""}))],
        ),
        (
            auto(Glm4),
            "Ok\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n<arg_key>days</arg_key>\n\
             <arg_value>two</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
            "Ok",
            "",
            vec![("weather", json!({"city": "Bonn", "days": "two"})), ("now", json!({}))],
        ),
        (auto(DeepseekV3), V3, "Hm.", "", vec![("weather", json!({"city": "Köln"})), ("now", json!({}))]),
        (auto(DeepseekV3), V31, "", "", vec![("weather", json!({"city": "a{b"}))]),
        (
            auto(Pythonic),
            "<|python_start|>[weather(city='B\\'onn', days=-2, exact=True), a.now(), weather(city=[1, {'x': None}])]<|python_end|>",
            "",
            "",
            vec![
                ("weather", json!({"city": "B'onn", "days": -2, "exact": true})),
                ("a.now", json!({})),
                ("weather", json!({"city": [1, {"x": null}]})),
            ],
        ),
        (auto(Pythonic), "[weather] is (fine)", "[weather] is (fine)", "", vec![]),
        (auto(Pythonic), "[weather(city=oops)]", "[weather(city=oops)]", "", vec![]),
        (auto(Pythonic), "Hello [now()]", "Hello [now()]", "", vec![]),
        (auto(Harmony), HARMONY, "", "Think.", vec![("weather", json!({"city": "Bonn"}))]),
        (
            reasons(ReasoningFormat::Harmony, false),
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>",
            "B",
            "A",
            vec![],
        ),
        (auto(Harmony), "No channels <here>", "No channels <here>", "", vec![]),
        (
            reasons(ReasoningFormat::Qwen3, false),
            "\n<think>\nHm, so.\n\n</think>\n\nYes </think>.",
            "Yes </think>.",
            "Hm, so.",
            vec![],
        ),
        (reasons(ReasoningFormat::Qwen3, false), " <thin> air", " <thin> air", "", vec![]),
        (reasons(ReasoningFormat::Qwen3, true), "a < b </think>c", "c", "a < b", vec![]),
        (reasons(ReasoningFormat::DeepseekR1, false), "a</think> c", "c", "a", vec![]),
        (reasons(ReasoningFormat::DeepseekR1, true), "<think>a", "", "a", vec![]),
        (reasons(ReasoningFormat::Mistral, false), "[THINK]a[/THINK]b", "b", "a", vec![]),
        (reasons(ReasoningFormat::SeedOss, false), "<seed:think>a</think></seed:think>b", "b", "a</think>", vec![]),
        (reasons(tags("tags:<r>,</r>"), false), " <r> a<r> </r> b</r>", "b</r>", "a<r>", vec![]),
        (reasons(tags("tags:<r>,</r>"), false), "a</r>b", "a</r>b", "", vec![]),
        (reasons(tags("tags:<r>,</r>"), true), "a</r>b", "b", "a", vec![]),
        (reasons(tags("tags:,|done|"), true), " a |done| b", "b", "a", vec![]),
        (
            Plan { reasoning: Some((ReasoningFormat::Qwen3, true)), ..auto(ToolFormat::Hermes) },
            "Use <tool_call>.</think>\n<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>",
            "",
            "Use <tool_call>.",
            vec![("now", json!({}))],
        ),
    ]
}

#[test]
fn texts_mean_what_they_should() {
    for (plan, text, content, reasoning, calls) in json_cases().into_iter().chain(other_cases()) {
        let sum = run(&plan, [text]);
        assert_eq!((sum.content.as_str(), sum.reasoning.as_str()), (content, reasoning), "{text}");
        let parse = |text: &str| serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let got: Vec<(&str, Value)> = sum.calls.iter().map(|(name, text)| (name.as_str(), parse(text))).collect();
        assert_eq!(got, calls, "{text}");
    }
}

/// Cuts a text at every place whose turn it is.
fn cut<'a>(text: &'a str, cuts: &[bool]) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (index, (at, _)) in text.char_indices().enumerate().skip(1) {
        if cuts[index % cuts.len()] {
            pieces.push(&text[start..at]);
            start = at;
        }
    }
    pieces.push(&text[start..]);
    pieces
}

#[test]
fn every_character_alone_gives_the_same() {
    for (plan, text, ..) in json_cases().into_iter().chain(other_cases()) {
        assert_eq!(run(&plan, cut(text, &[true])), run(&plan, [text]), "{text}");
    }
}

/// Every format there is, alone and one behind the other.
fn plans() -> Vec<Plan> {
    let mut plans: Vec<Plan> = ToolFormat::NAMES.iter().map(|(format, _)| auto(*format)).collect();
    plans.push(Plan { tools: Tools::Named("f".into()), ..Plan::default() });
    plans.push(Plan { tools: Tools::Required, ..Plan::default() });
    let named = ReasoningFormat::NAMES.iter().map(|(format, _)| format.clone());
    for format in named.chain([tags("tags:<r>,</r>"), tags("tags:,</think>")]) {
        plans.push(reasons(format.clone(), false));
        plans.push(Plan { reasoning: Some((format, true)), ..auto(ToolFormat::Hermes) });
    }
    plans
}

/// Pieces of all formats, whole and broken, in any order.
const FRAGMENTS: [&str; 62] = [
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "text",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "{\"name\": \"f\", ",
    "\"arguments\": {",
    "\"parameters\": \"x\"",
    "\"name\":",
    "\"f\"",
    ",",
    ";",
    ":",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<function=f>",
    "</function>",
    "<parameter=a>",
    "</parameter>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function",
    "<｜tool▁sep｜>",
    "```json\n",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "f(a=1)",
    "f(",
    "a='b'",
    ")",
    "<|python_start|>",
    "<|python_end|>",
    "<|channel|>",
    "analysis",
    "commentary to=functions.f",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|start|>",
    "assistant",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<seed:think>",
    "</seed:think>",
    "<r>",
    "</r>",
    "é",
    "<",
    "thin",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_split_gives_the_same(
        which in 0usize..1000,
        parts in prop::collection::vec(0usize..FRAGMENTS.len(), 0..24),
        cuts in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let text: String = parts.iter().map(|&part| FRAGMENTS[part]).collect();
        let plans = plans();
        let plan = &plans[which % plans.len()];
        prop_assert_eq!(run(plan, cut(&text, &cuts)), run(plan, [text.as_str()]), "{:?}", plan);
    }

    #[test]
    fn any_split_of_the_real_thing_gives_the_same(case in 0usize..1000, cuts in prop::collection::vec(any::<bool>(), 1..40)) {
        let cases: Vec<Case> = json_cases().into_iter().chain(other_cases()).collect();
        let (plan, text, ..) = &cases[case % cases.len()];
        prop_assert_eq!(run(plan, cut(text, &cuts)), run(plan, [*text]));
    }
}

#[test]
fn arguments_stream_as_they_are_written() {
    let mut parser = Parser::new(&auto(ToolFormat::Hermes));
    assert_eq!(parser.push("<tool_call>{\"name\": \"weather\", \"argum"), [Event::Call("weather".into())]);
    assert_eq!(parser.push("ents\": {\"ci"), [Event::Arguments("{\"ci".into())]);
    assert_eq!(parser.push("ty\": \"B"), [Event::Arguments("ty\": \"B".into())]);
    assert_eq!(parser.push("onn\"}}"), [Event::Arguments("onn\"}".into())]);
    assert_eq!(parser.push("</tool_call>"), []);
    let mut parser = Parser::new(&auto(ToolFormat::Hermes));
    assert_eq!(parser.push("Hello <"), [Event::Content("Hello".into())]);
    assert_eq!(parser.push("b"), [Event::Content(" <b".into())]);
}

#[test]
fn names_and_templates_choose_formats() {
    // vLLM's names for the formats that are here.
    for name in [
        "hermes",
        "llama3_json",
        "llama4_json",
        "llama4_pythonic",
        "pythonic",
        "olmo3",
        "mistral",
        "qwen3_xml",
        "qwen3_coder",
        "mimo",
        "deepseek_v3",
        "deepseek_v31",
        "glm45",
        "glm47",
        "openai",
        "glm4",
        "gpt_oss",
    ] {
        let format: ToolFormat = name.parse().unwrap();
        assert_eq!(format.to_string().parse(), Ok(format), "{name}");
    }
    for name in [
        "deepseek_r1",
        "deepseek_v3",
        "qwen3",
        "glm45",
        "glm47",
        "mimo",
        "mistral",
        "openai_gptoss",
        "seed_oss",
        "step3",
        "minimax_m2",
        "gpt_oss",
        "tags:<a>,</a>",
        "tags:,</a>",
    ] {
        let format: ReasoningFormat = name.parse().unwrap();
        assert_eq!(format.to_string().parse(), Ok(format), "{name}");
    }
    assert_eq!("qwen3_coder".parse(), Ok(ToolFormat::Qwen3Xml));
    assert_eq!(ToolFormat::Qwen3Xml.to_string(), "qwen3_xml");
    assert_eq!(tags("tags: <a> , </a> "), tags("tags:<a>,</a>"));
    assert_eq!(ToolFormat::of_template("… <tool_call>{\"name\" …"), Some(ToolFormat::Hermes));
    assert_eq!(ToolFormat::of_template("<tool_call><function=x><parameter=y>"), Some(ToolFormat::Qwen3Xml));
    assert_eq!(ToolFormat::of_template("plain"), None);
    assert_eq!(ReasoningFormat::of_template("a </think> b"), Some(ReasoningFormat::Qwen3));
    assert_eq!(ReasoningFormat::of_template("a </seed:think> b"), Some(ReasoningFormat::SeedOss));
    assert_eq!(ReasoningFormat::of_template("plain"), None);
}

#[test]
fn unknown_names_are_refused_with_the_nearest_and_the_list() {
    let error = "herms".parse::<ToolFormat>().unwrap_err();
    assert!(error.contains("did you mean hermes?") && error.contains("llama4_pythonic"), "{error}");
    let error = "nonsense".parse::<ReasoningFormat>().unwrap_err();
    assert!(!error.contains("did you mean") && error.contains("deepseek_r1") && error.contains("tags:"), "{error}");
    let error = "deepseek-r1".parse::<ReasoningFormat>().unwrap_err();
    assert!(error.contains("did you mean deepseek_r1?"), "{error}");
    for bad in ["tags:", "tags:<a>", "tags:<a>,", "tags:<a>,</a>,<b>", "tags:,"] {
        let error = bad.parse::<ReasoningFormat>().unwrap_err();
        assert!(error.contains("tags:<think>,</think>"), "{error}");
    }
}
