#!/usr/bin/env python3
"""Renders every template of this folder with Python's Jinja, set up as in transformers, and writes golden.json.

Needs only jinja2 (golden.json was made with 3.1.6). Run it in this folder.
"""
import datetime, glob, json, os
import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(Exception):
    pass


class GenerationTag(Extension):
    """{% generation %}...{% endgeneration %}: the body, in a scope of its own."""
    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise Refused(message)


def main():
    cases = json.load(open("cases.json", encoding="utf-8"))
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[GenerationTag, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    now = datetime.datetime.fromtimestamp(cases["now"], datetime.timezone.utc)
    env.globals["strftime_now"] = now.strftime
    golden = {}
    for path in sorted(glob.glob("*.jinja")):
        template = env.from_string(open(path, encoding="utf-8").read())
        for name, messages in cases["conversations"].items():
            for i, variant in enumerate(cases["variants"]):
                try:
                    out = {"text": template.render(
                        messages=messages, tools=cases["tools"] if variant["tools"] else None, documents=None,
                        add_generation_prompt=variant["add_generation_prompt"], **cases["tokens"], **variant["extra"])}
                except Refused as e:
                    out = {"refused": str(e)}
                except (jinja2.TemplateError, TypeError) as e:
                    out = {"error": type(e).__name__}
                golden[f"{os.path.splitext(path)[0]}/{name}/{i}"] = out
    with open("golden.json", "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print(len(golden), "outputs", {k: sum(k in v for v in golden.values()) for k in ("text", "refused", "error")})


if __name__ == "__main__":
    main()
