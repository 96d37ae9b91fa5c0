"""Invalid batches and agents files, each with a part of the error that it must raise."""

from __future__ import annotations

import gzip
from typing import NamedTuple

GOOD = b'{"agent_id":"a","input":"x"}'


def with_value(value: bytes) -> bytes:
    """Return a request that is valid except, possibly, for one value deep inside."""
    return b'{"agent_id":"a","input":"x","client_tools":[{"name":"t","parameters":{"v":%s}}]}' % value


class Bad(NamedTuple):
    """An invalid request and a part of the error; `in_body` if the error differs inside a whole JSON body."""

    request: bytes
    reason: str
    in_body: str = ""


BAD_REQUESTS = {
    "not-json": Bad(b"hello", "not JSON: "),
    "cut-off": Bad(b'{"agent_id":"a",', "not JSON: "),
    "two-on-a-line": Bad(GOOD + b" " + GOOD, "not JSON: "),
    "a-list": Bad(b"[1]", "a request is a JSON object, not list"),
    "a-string": Bad(b'"hello"', "a request is a JSON object, not str"),
    "bad-input": Bad(b'{"agent_id":"a","input":5}', "input: Input should be a valid string"),
    "bad-part": Bad(b'{"agent_id":"a","input":[{"type":"text"}]}', "input[0].text: Field required"),
    "unknown-part": Bad(b'{"agent_id":"a","input":[{"type":"smell"}]}', "input[0]: not a known content part"),
    "image-of-openai": Bad(
        b'{"agent_id":"a","input":[{"type":"image_url","image_url":{"url":"u"}}]}',
        'OpenAI\'s image_url is {"type": "image", "source": {"type": "url", "url": "https://..."}}',
    ),
    "null": Bad(b"null", "a request is a JSON object, not NoneType"),
    "no-agent": Bad(b'{"input":"x"}', "agent_id: Field required"),
    "unknown-agent": Bad(b'{"agent_id":"nope","input":"x"}', "unknown agent 'nope'; known: a, b"),
    "both": Bad(b'{"agent_id":"a","input":"x","messages":[]}', "Cannot specify both 'input' and 'messages'."),
    "neither": Bad(b'{"agent_id":"a"}', "Must specify either 'input' or 'messages'."),
    "bad-role": Bad(b'{"agent_id":"a","messages":[{"role":"x","content":""}]}', "messages[0].role: Input should be"),
    "misspelt": Bad(b'{"agent_id":"a","imput":"x"}', "imput: unknown key; did you mean 'input'?"),
    "misspelt-agent": Bad(b'{"agentId":"a","input":"x"}', "agentId: unknown key; did you mean 'agent_id'?"),
    "other-name": Bad(b'{"agent_id":"a","prompt":"x"}', "prompt: unknown key; did you mean 'input'?"),
    "no-such-key": Bad(b'{"agent_id":"a","input":"x","zzz":null}', "zzz: unknown key"),
    "given-twice": Bad(b'{"agent_id":"a","input":"x","inputs":"y"}', "inputs: unknown key"),
    "misspelt-in-a-message": Bad(
        b'{"agent_id":"a","messages":[{"role":"user","content":"x"},{"role":"user","contnt":"x"}]}',
        "messages[1].contnt: unknown key; did you mean 'content'?",
    ),
    "misspelt-in-a-part": Bad(
        b'{"agent_id":"a","input":[{"type":"image","source":{"type":"url","url":"u","detial":"low"}}]}',
        "input[0].source.detial: unknown key",
    ),
    "key-with-a-line-break": Bad(b'{"agent_id":"a","input":"x","a\\nb":1}', "['a\\nb']: unknown key"),
    "without-effect": Bad(
        b'{"agent_id":"a","input":"x","include_compaction_messages":true}',
        "include_compaction_messages: has no effect here",
    ),
    "refused": Bad(b'{"agent_id":"a","input":"x","override_model":"b/c"}', "override_model: a request runs on"),
    "no-metadata": Bad(b'{"agent_id":"a","input":"x","metadata":["m"]}', "metadata: Input should be"),
    "openai-batch": Bad(
        b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"messages":[]}}',
        "an OpenAI batch line; write its body.messages as messages",
    ),
    "anthropic-batch": Bad(b'{"custom_id":"1","params":{"messages":[]}}', "an Anthropic batch entry; write its params"),
    "not-utf8": Bad(b'{"agent_id":"a","input":"\xff"}', "not UTF-8: byte 0xff at column 26"),
    "utf16": Bad(GOOD.decode().encode("utf-16"), "not UTF-8: ", "not JSON: "),
    "lone-surrogate": Bad(b'{"agent_id":"a","input":"\\ud800"}', "not JSON: "),
    "100-deep": Bad(with_value(b"[" * 100 + b"]" * 100), "nested deeper than 64 levels"),
    "1000-deep": Bad(with_value(b"[" * 1000 + b"]" * 1000), "nested deeper than 64 levels"),
    "1000-deep-objects": Bad(with_value(b'{"a":' * 1000 + b"1" + b"}" * 1000), "nested deeper than 64 levels"),
    "100000-deep": Bad(with_value(b"[" * 100_000 + b"]" * 100_000), "nested deeper than 64 levels"),
    "nan": Bad(with_value(b"NaN"), "NaN is not JSON", "not JSON: "),
    "infinity": Bad(with_value(b"-Infinity"), "-Infinity is not JSON", "not JSON: "),
    "over-64-bits": Bad(with_value(b"18446744073709551616"), "a number beyond 64 bits: 18446744073709551616"),
    "under-64-bits": Bad(with_value(b"-9223372036854775809"), "a number beyond 64 bits: -9223372036854775809"),
    "5000-digits": Bad(with_value(b"9" * 5000), "a number beyond 64 bits: 999999999999999999999999..."),
    "1e400": Bad(with_value(b"1e400"), "number is infinity"),
    "-1E+400": Bad(with_value(b"-1E+400"), "number is infinity"),
    "400-digit-float": Bad(with_value(b"1" * 400 + b".5"), "number is infinity"),
    "duplicate-key": Bad(b'{"agent_id":"a","input":"x","input":"y"}', "duplicate key 'input'"),
    "duplicate-escaped-key": Bad(b'{"agent_id":"a","input":"x","inp\\u0075t":"y"}', "duplicate key 'input'"),
    "duplicate-nested-key": Bad(with_value(b'[{"q":1,"r":{"s":1,"s":2}}]'), "duplicate key 's'"),
    "50-MB": Bad(b'{"agent_id":"a","input":"' + b"x" * 50_000_000 + b'"}', "a request of more than 32 MiB"),
}
"""Name to an invalid request."""

BAD_BODIES = {
    "two-requests-keys": (b'{"requests":[],"requests":[%s]}' % GOOD, "duplicate key 'requests'"),
    "two-callback-urls": (
        b'{"callback_url":"http://h","requests":[%s],"callback_url":"http://i"}' % GOOD,
        "duplicate key 'callback_url'",
    ),
    "bad-callback-url": (b'{"requests":[%s],"callback_url":"ftp://h"}' % GOOD, "callback_url: URL scheme should be"),
    "no-requests": (b'{"requests":[]}', "the batch is empty"),
    "requests-no-list": (b'{"requests":5}', "not a batch: expected `array`, got `int`"),
    "a-list-of-no-requests": (b'[%s, "x"]' % GOOD, "requests[1]: a request is a JSON object, not str"),
    "a-cut-off-list": (b"[%s,%s,{x]" % (GOOD, GOOD), "requests[2]: not JSON: "),
    "a-request-on-lines": (GOOD.replace(b",", b",\n"), "line 1: not JSON: unexpected end of data"),
    "an-object": (b'{"a": \n1}', 'not a batch: one JSON object; write a request on one line, or {"requests": [...]}'),
    "cut-off": (b'{"requests":[%s,' % GOOD, "neither JSON Lines nor a JSON batch: "),
    "unknown-key-of-a-body": (b'{"requests":[%s],"priority":7}' % GOOD, "unknown key 'priority' in the body; it has"),
    "more-behind-it": (b'{"requests":[%s]} x' % GOOD, "neither JSON Lines nor a JSON batch: "),
    "csv": (b"agent_id,input\na,hi\n", "line 1: not JSON: unexpected character"),
    "cr-only": (GOOD + b"\r" + GOOD + b"\r", "line 1: not JSON: unexpected content after document"),
    "zip": (b"PK\3\4...", "the input is a ZIP archive or an Excel workbook; write JSON Lines instead"),
    "utf-32": (GOOD.decode().encode("utf-32"), "the input is UTF-32; save it as UTF-8"),
    "cut-off-utf-16": (GOOD.decode().encode("utf-16")[:-1], "the input is damaged UTF-16: truncated data"),
    "cut-off-gzip": (gzip.compress(GOOD)[:-10], "the gzip data is cut off or damaged: "),
    "damaged-gzip": (gzip.compress(GOOD)[:20] + b"!!!!" + gzip.compress(GOOD)[24:], "the gzip data is cut off or dam"),
    "empty-file": (b"", "the batch is empty"),
    "blank-lines": (b"\n \n\n", "the batch is empty"),
}
"""Name to an invalid JSON body and its error."""

BAD_AGENTS_FILES: dict[str, tuple[str | bytes, str]] = {
    "not-yaml": ("agents: [\n  {id: a", "agents.yaml, line 2: is not YAML: "),
    "tab": ("agents:\n\t- id: a", "agents.yaml, line 2: is not YAML: "),
    "no-such-date": ("agents: [{id: 2024-99-99}]", "agents.yaml: is not YAML: month must be in 1..12"),
    "control-character": ("agents: \x00", "agents.yaml: is not YAML: "),
    "not-utf8": (b"agents: \xff", "agents.yaml: is not UTF-8 text"),
    "too-deep": ("[" * 50_000, "agents.yaml: is nested too deep"),
    "empty": ("", "agents.yaml: must be a mapping with the keys providers and agents"),
    "a-list": ("- id: a", "agents.yaml: must be a mapping with the keys providers and agents"),
    "no-agents": ("providers: {}", "agents.yaml: no agents in it"),
    "unknown-key": (
        "agents:\n  - id: a\n    modle: offline/rules",
        "agents.yaml, line 3, agents[0].modle: unknown key 'modle'; did you mean 'model'?",
    ),
    "unknown-top-key": ("agent: []", "agents.yaml, line 1, agent: unknown key 'agent'; did you mean 'agents'?"),
    "key-like-no-other": ("agents: [{id: a, qqq: 1}]", "agents.yaml, line 1, agents[0].qqq: unknown key 'qqq'"),
    "unknown-provider": (
        "agents: [{id: a, model: acme/m}]",
        "agents.yaml, line 1, agents[0]: agent 'a': unknown provider 'acme'; known: anthropic, offline, openai",
    ),
    "duplicate-ids": (
        "agents:\n  - {id: a, model: offline/rules}\n  - {id: a, model: offline/rules}",
        "agents.yaml, line 3, agents[1]: duplicate agent id 'a'",
    ),
    "no-id": ("agents: [{model: offline/rules}]", "agents.yaml, line 1, agents[0]: agents[0].id: Field required"),
    "id-no-text": ("agents: [{id: 5, model: offline/rules}]", "agents[0].id: Input should be a valid string"),
    "no-handle": ("agents: [{id: a, model: gpt}]", "agents[0].model: 'gpt' is not of the form provider/model"),
    "neither-model-nor-run": ("agents: [{id: a}]", "agents[0]: give exactly one of model and run"),
    "tools-of-a-function": (
        "agents: [{id: a, run: 'json:dumps', tools: ['json:loads']}]",
        "agents[0]: tools cannot be given with run, only with a model",
    ),
    "script-of-a-real-model": (
        "agents: [{id: a, model: offline/rules, script: []}]",
        "agents[0]: script belongs to the model offline/scripted",
    ),
    "cpus-in-a-lane": (
        "agents: [{id: a, model: offline/rules, num_cpus: 1}]",
        "agents[0]: num_cpus and num_gpus belong to placement: process",
    ),
    "no-tool": (
        "agents: [{id: a, model: offline/rules, tools: [{idempotent: true}]}]",
        "agents[0].tools[0]: a tool is a function, `module:function`, or {function: module:function, idempotent: true}",
    ),
    "unknown-key-of-a-tool": (
        "agents: [{id: a, model: offline/rules, tools: [{function: 'json:loads', idempotnt: true}]}]",
        "agents[0].tools[0]: unknown key 'idempotnt'",
    ),
    "no-steps": ("agents: [{id: a, model: offline/rules, max_steps: 0}]", "agents[0].max_steps: Input should be"),
    "endless-deadline": ("agents: [{id: a, model: offline/rules, deadline_s: .inf}]", "agents[0].deadline_s: "),
    "missing-key": (
        "agents: [{id: a, model: openai/gpt}]",
        "agent 'a': provider 'openai' needs its key in the environment variable OPENAI_API_KEY",
    ),
    "missing-key-of-anthropic": (
        "agents: [{id: a, model: anthropic/claude}]",
        "agent 'a': provider 'anthropic' needs its key in the environment variable ANTHROPIC_API_KEY",
    ),
    "unknown-offline-model": (
        "agents: [{id: a, model: offline/gpt}]",
        "agent 'a': no offline model 'gpt'; there are offline/rules and offline/scripted",
    ),
    "no-address": (
        "providers: {p: {protocol: openai}}",
        "agents.yaml, line 1, providers.p: providers.p: protocol openai needs a base_url",
    ),
    "bad-address-of-anthropic": (
        "providers: {p: {protocol: anthropic, base_url: 'h'}}",
        "providers.p: protocol anthropic needs a base_url that starts with http:// or https://",
    ),
    "address-of-another-protocol": (
        "providers: {p: {protocol: anthropic, base_url: 'http://h/v1/chat/completions/'}}",
        "providers.p: base_url ends in /chat/completions, which is protocol openai, not anthropic",
    ),
    "unknown-protocol": ("providers: {p: {protocol: grpc}}", "providers.p.protocol: Input should be"),
}
"""Name to an invalid agents file and its error."""
