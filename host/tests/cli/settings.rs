//! Flags, environment and host.toml: which wins, and what is refused.

use crate::program::{Output, Place, finish, says};

/// The command line is refused as clap does it.
#[track_caller]
fn misused(output: &Output, words: &[&str]) {
    assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{output:?}");
    assert!(output.stderr.starts_with("error: "), "{output:?}");
    says(&output.stderr, words);
}

#[test]
fn settings_that_do_not_fit_the_model() {
    let place = Place::new();
    let serve = |more: &[&str]| {
        let mut command = place.host(&[&["serve", "--port", "0"], more].concat());
        finish(command.env("HOST_LOG_LEVEL", "error"), b"")
    };
    serve(&["--max-model-len", "5000"]).fails(&["--max-model-len is 5000", "made for 1024 tokens"]);
    serve(&["--kv-cache-memory", "1KiB"]).fails(&["--kv-cache-memory is 1024 bytes", "one block", "at least"]);
    serve(&["--kv-cache-memory", "1MiB", "--max-model-len", "1024"])
        .fails(&["--max-model-len is 1024", "--kv-cache-memory"]);
    serve(&["--kv-cache-memory", "1000TiB"]).fails(&["KV cache", "not enough memory"]);
    serve(&["--plugins-dir", "/nowhere"]).fails(&["--plugins-dir /nowhere", "No such file"]);
    serve(&["--chat-template", "gone.jinja"]).fails(&["--chat-template gone.jinja", "No such file"]);
    serve(&["--log-level", "loud=very"]).fails(&["--log-level loud=very", "expected error, warn, info"]);
}

#[test]
fn wrong_flags_name_the_nearest() {
    let place = Place::new();
    misused(&place.run(&["serve", "--max-model-length", "7"]), &["'--max-model-length'", "'--max-model-len'"]);
    misused(&place.run(&["sevre"]), &["'sevre'", "'serve'"]);
    misused(&place.run(&["serve", "--port", "65536"]), &["'65536'", "--port", "0..=65535"]);
    misused(&place.run(&["serve", "--dtype", "int8"]), &["'int8'", "--dtype", "float32", "bfloat16"]);
    misused(&place.run(&["serve", "--kv-cache-memory", "4 gigs"]), &["--kv-cache-memory", "GiB"]);
    misused(&place.run(&["serve", "--max-num-seqs", "0"]), &["--max-num-seqs", "at least 1"]);
    misused(&place.run(&["generate", "--prompt-token-ids", "1,x"]), &["`x` is not a token id"]);
    misused(&place.run(&["generate", "--system", "x"]), &["--chat"]);
}

/// The model's name in `host generate --json` would not show it, but `host inspect` shows the dtype.
fn dtype(place: &Place, variables: &[(&str, &str)], args: &[&str]) -> String {
    let output = finish(place.host(&[&["inspect"], args].concat()).envs(variables.iter().copied()), b"");
    let line = output.good().lines().find_map(|line| line.strip_prefix("dtype")).unwrap().trim();
    line.split(',').next().unwrap().to_owned()
}

#[test]
fn flags_win_over_the_environment_and_that_over_host_toml() {
    let place = Place::new();
    let environment = [("HOST_DTYPE", "float16")];
    assert_eq!(dtype(&place, &[], &[]), "bfloat16");
    place.put("host.toml", "[inspect]\ndtype = \"float32\"\n");
    assert_eq!(dtype(&place, &[], &[]), "float32");
    assert_eq!(dtype(&place, &environment, &[]), "float16");
    assert_eq!(dtype(&place, &environment, &["--dtype", "bfloat16"]), "bfloat16");
    place.put("other.toml", "dtype = \"float16\"\n");
    assert_eq!(dtype(&place, &[], &["--config", "other.toml"]), "float16");
    assert_eq!(dtype(&place, &[("HOST_CONFIG", "other.toml")], &[]), "float16");
    std::fs::remove_file(place.path("host.toml")).unwrap();
    place.put(".config/host/host.toml", "dtype = \"float16\"\n");
    assert_eq!(dtype(&place, &[], &[]), "float16");
}

#[test]
fn a_wrong_host_toml_is_named() {
    let place = Place::new();
    let with = |text: &str| {
        place.put("host.toml", text);
        place.run(&["inspect"])
    };
    with("dtyp = \"float32\"").fails(&["host.toml", "unknown key `dtyp`", "did you mean `dtype`?"]);
    with("dtype = {a = 1}").fails(&["host.toml", "`dtype` is", "it must be a string"]);
    let output = with("dtype = [");
    assert_eq!(output.code, Some(1));
    says(&output.stderr, &["error: ", "host.toml", "line 1"]);
    misused(&with("dtype = \"int8\""), &["'int8'", "--dtype", "Settings are also read from host.toml."]);
    std::fs::remove_file(place.path("host.toml")).unwrap();
    place.run(&["inspect", "--config", "gone.toml"]).fails(&["gone.toml", "No such file"]);
}

#[test]
fn switches_in_the_environment_take_what_people_write() {
    let place = Place::new();
    let tokenizer = |value: &str| {
        let output = finish(place.host(&["inspect"]).env("HOST_SKIP_TOKENIZER_INIT", value), b"");
        output.good().lines().find(|line| line.starts_with("tokenizer")).unwrap().to_owned()
    };
    for (value, skipped) in [("1", true), ("true", true), ("yes", true), ("0", false), ("false", false)] {
        assert_eq!(tokenizer(value).ends_with("none"), skipped, "{value}");
    }
    misused(&finish(place.host(&["inspect"]).env("HOST_THREADS", "many"), b""), &["'many'", "--threads"]);
}
