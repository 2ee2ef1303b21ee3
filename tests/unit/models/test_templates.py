"""Chat templates in the manner of the families that people use: rendered as transformers does, the same on any day."""

import datetime as dates
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import jinja2
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tests.tiny_models import tokenizer_of
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import write_json
from ucotron_ray.data import wire
from ucotron_ray.export.bundle import prompt_contract
from ucotron_ray.models import base as base_models
from ucotron_ray.models import inspection, prompts, served, templates
from ucotron_ray.simulators import demo_world

TEMPLATES = {
    "dated": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "no clock" %}
    {%- endif %}
{%- endif %}
{%- if tools is not none or documents is not none %}{{- "tools" }}{%- endif %}
{#- a remark #}
{{- "<|im_start|>system\\nToday: " + date_string + "\\n" }}
{%- for message in messages %}
    {%- if message.role == "system" %}
        {{- message.content | trim }}<|im_end|>
    {%- else %}
        {{- "<|im_start|>" + message["role"] + "\\n\\n" + message["content"] | trim + "<|im_end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n\\n" }}
{%- endif %}
""",
    "thinking": """\
{%- set seen = namespace(users=0, last=none) %}
{% for message in messages %}
    {% if message.role == "user" %}{% set seen.users = seen.users + 1 %}{% endif %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% set seen.last = message.role %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}
<think>{{ seen.users }} {{ seen.last }}</think>

{% endif %}
{% endif %}
""",
    "no system": """\
{{ bos_token }}{% if messages[0]["role"] == "system" %}{{ raise_exception("no system turn here") }}{% endif %}
{% for message in messages %}
{% if (message["role"] == "user") != (loop.index0 % 2 == 0) %}{{ raise_exception("take turns") }}{% endif %}
<turn>{{ "model" if message["role"] == "assistant" else message["role"] }}
{{ message["content"] | trim + "<end>
" }}{% endfor %}
{% if add_generation_prompt %}<turn>model
{% endif %}""",
    "turns alone": """\
{{ bos_token }}
{%- for message in messages %}
{%- if (message.role == "user") != (loop.index0 is even) %}{{ raise_exception("take turns, " + message.role) }}{% endif %}
{%- if message.role == "user" %}[ASK] {{ message.content }} [/ASK]
{%- else %} {{ message.content }}{{ eos_token }}{% endif %}
{%- endfor %}""",
    "system into user": """\
{%- set system = messages[0].content if messages[0].role == "system" else "" %}
{%- set turns = messages[1:] if system else messages %}
{%- for message in turns %}
    {%- if loop.last and system %}
        {{- "[ASK]" + system + "\\n\\n" + message.content + "[/ASK]" }}
        {%- break %}
    {%- endif %}
    {%- if message.role not in ("user", "assistant") %}{%- continue %}{%- endif %}
    {{- "[ASK]" ~ message.content ~ "[/ASK]" if message.role == "user" else message.content ~ eos_token }}
{%- endfor %}
""",
    "generation": """\
{% set mode = "/no_think" if not enable_thinking else "/think" %}
{% set name = "outside" %}
<|im_start|>system
Date: {{ strftime_now("%A, %d %B %Y %H:%M") }}, {{ mode }}
{% for message in messages %}
{% if message.role == "assistant" %}
{% generation %}
{% set name = "inside" %}
<|im_start|>assistant
  {{ message.content }}{{ name }}<|im_end|>
{% endgeneration %}
  {% if name == "outside" %}{{ name }}{% endif %}
{% else %}
<|im_start|>{{ message.role }}
{{ message.content }}{{ name }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{%- generation -%}   <|im_start|>assistant
{% endgeneration %}{{ name }}
{% endif %}
""",
    "json": """\
{% for message in messages %}
{{ message | tojson }}
{{ message | tojson(indent=2) }}
{{ message | tojson(ensure_ascii=true) }}
{{ message | tojson(separators=(",", ":"), sort_keys=true) }}
{{ {"b": [1, 2.5, none, true], "a": "<é & '>"} | tojson(false, 4, none, true) }}
{{ dict(role=message.role).items() | list }} {{ dict.fromkeys("ab", 0) }}
{% endfor %}""",
    "tokens": """\
{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}{{ frame }}{{ unk_token is defined }}{{ nothing }}
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}""",
}
DATED = ("dated", "generation")
DAYS = (dates.datetime(2025, 2, 3, 4, 5), dates.datetime(2031, 12, 24, 18, 0))
ROW = next(demo_world.rows(demo_world.graph_world(1), 1, seed=1))
USER = {"role": "user", "content": '  <b>Zoë\'s</b> "R&D"\n\n {{ 1 }}  '}
SAID = {"role": "assistant", "content": "[]"}
CONVERSATIONS = {
    "server": wire.chat_messages(ROW.text, ROW.entities),
    "user": [USER],
    "turns": [USER, SAID, USER],
    "all": [{"role": "system", "content": "Be brief."}, USER, SAID, USER],
}


@cache
def saved_tokenizer() -> Path:
    """With a special token of each kind: known to all, called `*_token`, and by another name in a list of its own."""
    directory = Path(tempfile.mkdtemp())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of("llama").backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        image_token="<image>",
    )
    tokenizer.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**settings, "extra_special_tokens": {"frame": "<frame>"}})
    return directory


def tokenizer_with(template) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(saved_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def on(day: dates.datetime, monkeypatch) -> None:
    """That day for transformers, and for us were we to ask."""

    class Clock(dates.datetime):
        @classmethod
        def now(cls, tz=None):
            return day

    for module in (chat_template_utils, templates, prompts):
        monkeypatch.setattr(module, "datetime", Clock)


def by_transformers(tokenizer, messages) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


@pytest.fixture
def bundle_of(tmp_path, monkeypatch):
    """The bundle of a tokenizer, whose graph is never run."""
    monkeypatch.setattr(served, "OnnxRunner", lambda graph, num_threads: None)

    def made(tokenizer, *, vocabulary: int | None = None) -> served.BundleModel:
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / served.GRAPHS["fp32"]).touch()
        contract = {"eos_token_id": tokenizer.eos_token_id, "vocabulary": vocabulary or len(tokenizer)}
        write_json(tmp_path / served.IO_CONTRACT, contract)
        return served.load(tmp_path)

    return made


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_it_is_what_transformers_renders(name, conversation, monkeypatch):
    tokenizer, messages = tokenizer_with(TEMPLATES[name]), CONVERSATIONS[conversation]
    on(DAYS[0], monkeypatch)
    found = prompts.chat_text(messages, tokenizer, now=DAYS[0])
    if name in ("no system", "turns alone") and messages[0]["role"] == "system":
        with pytest.raises(jinja2.TemplateError):
            by_transformers(tokenizer, messages)
        system, user, *rest = messages
        messages = [{"role": "user", "content": system["content"] + "\n\n" + user["content"]}, *rest]
    assert found == by_transformers(tokenizer, messages)
    assert (name in DATED) == ("2025" in found)
    prompts.check_rendering(tokenizer, name)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_training_and_bundle_ask_the_same_on_any_day(name, conversation, bundle_of, tmp_path, monkeypatch):
    tokenizer, messages = tokenizer_with(TEMPLATES[name]), CONVERSATIONS[conversation]
    seen, others = set(), set()
    for day in DAYS:
        on(day, monkeypatch)
        templates.template.cache_clear()
        bundle = bundle_of(tokenizer)
        again = base_models.load_tokenizer(base_models.BaseModel("again", "directory", tmp_path, ""))
        ids = prompts.chat_ids(messages, tokenizer)
        assert bundle.chat_ids(messages) == ids
        # transformers 5.24 forgets names like `frame` when it reads what it has saved.
        assert name == "tokens" or prompts.chat_ids(messages, again) == ids
        if conversation == "server":
            assert prompts.prompt_ids(prompts.server_row(ROW, "chat"), tokenizer) == ids
        seen.add(tuple(ids))
        try:
            others.add(by_transformers(tokenizer, messages))
        except jinja2.TemplateError:
            others.add("refused")
    assert len(seen) == 1
    assert len(others) == (2 if name in DATED else 1)
    if name == "dated":
        assert "Today: 26 Jul 2024\n" in tokenizer.decode(ids)


def test_the_contract_shows_the_prompt_and_names_its_day():
    contract = prompt_contract(tokenizer_with(TEMPLATES["dated"]))["chat"]
    assert "Today: 26 Jul 2024\n" in contract["rendered"]
    assert contract["date"].startswith("2024-07-26")


def test_of_several_templates_the_default_is_taken(bundle_of, tmp_path):
    messages = CONVERSATIONS["server"]
    expected = prompts.chat_ids(messages, tokenizer_with(TEMPLATES["thinking"]))
    several = tokenizer_with({"tool_use": TEMPLATES["json"], "default": TEMPLATES["thinking"]})
    assert prompts.chat_ids(messages, several) == expected
    assert bundle_of(several).chat_ids(messages) == expected
    # As old files have them.
    (tmp_path / "chat_template.jinja").unlink()
    shutil.rmtree(tmp_path / "additional_chat_templates")
    several.save_pretrained(tmp_path, save_jinja_files=False)
    settings = tmp_path / "tokenizer_config.json"
    assert isinstance(json.loads(settings.read_text(encoding="utf-8"))["chat_template"], list)
    assert served.load(tmp_path).chat_ids(messages) == expected
    assert prompts.chat_ids(messages, AutoTokenizer.from_pretrained(tmp_path)) == expected
    for none in ({"tool_use": "x"}, [{"name": "rag", "template": "x"}], None):
        with pytest.raises(InputError, match="called 'default'"):
            templates.default_of(none)


def test_what_a_template_refuses_either_way_is_said_in_its_words():
    tokenizer = tokenizer_with(TEMPLATES["no system"])
    for messages in ([USER, USER], [CONVERSATIONS["all"][0], USER, USER]):
        with pytest.raises(InputError) as refused:
            prompts.chat_text(messages, tokenizer)
        assert refused.value.found == "take turns"
    with pytest.raises(InputError, match="no system turn here"):
        prompts.chat_text([CONVERSATIONS["all"][0], SAID], tokenizer)
    with pytest.raises(InputError, match="line 2"):
        prompts.chat_text([USER], tokenizer_with("\n{% if %}"))


@pytest.mark.parametrize(
    "template",
    [
        '{% set it = namespace(_a=1) %}{{ "set" }}',
        '{% set it = namespace() %}{% set it.__class__ = dict %}{{ "set" }}',
        "{{ dict.update(messages[0], {'role': 'x'}) }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__self__ }}{{ strftime_now.__self__.year }}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(template):
    tokenizer = tokenizer_with(template)
    with pytest.raises(InputError):
        prompts.chat_text([USER], tokenizer)
    with pytest.raises(jinja2.TemplateError):
        by_transformers(tokenizer, [USER])


@pytest.mark.parametrize("more", [-2, 0, 3])
def test_a_bundle_loads_whatever_tokens_its_tokenizer_has_beside_the_models_words(bundle_of, more):
    tokenizer = tokenizer_with(TEMPLATES["thinking"])
    bundle = bundle_of(tokenizer, vocabulary=len(tokenizer) + more)
    # The model could not read a token beyond its words; their text is spelled.
    assert max(bundle.ids("<image><frame>")) < len(tokenizer) + more
    assert bundle.text(bundle.ids("a <frame>")) == ("a <frame>" if more < 0 else "a ")
    user = CONVERSATIONS["server"][1]["content"]
    for decoding in ("entities", "vocabulary"):
        assert bundle.constraint(user, decoding).allowed_V().shape == (len(tokenizer) + more,)


def test_another_rendering_is_shown_where_it_begins(monkeypatch):
    tokenizer = tokenizer_with("{% for message in messages %}{{ message | tojson }}{% endfor %}")
    monkeypatch.setattr(templates, "_to_json", lambda value, *_, **__: json.dumps(value))
    templates.template.cache_clear()
    with pytest.raises(InputError) as different:
        prompts.check_rendering(tokenizer, "some/model")
    templates.template.cache_clear()
    assert different.value.where.startswith("some/model, character ")
    assert "Zoë" in different.value.expected
    assert r"Zo\\u00eb" in different.value.found


def test_a_dry_run_compares_what_is_on_this_machine_and_fetches_nothing(tiny_model, monkeypatch):
    import huggingface_hub

    equal = "as transformers renders it, character by character"
    assert inspection.check(base_models.located(str(tiny_model))) == equal
    hub = base_models.located("some/model")
    assert inspection.check(hub).startswith("not compared")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, file, revision: str(tiny_model / file))
    assert inspection.check(hub) == equal
