"""`deploy`: the lines work on the simulator as they stand, and the probe tells the model from what only looks like it."""

import json
import tomllib

import pytest
from aiohttp import web

from tests.registered import base_directory, make_bundle
from tests.teacher import serving
from ucotron_ray import cli
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.run import Run
from ucotron_ray.data import wire
from ucotron_ray.data.records import RawRow, Relation
from ucotron_ray.evaluation import endpoint
from ucotron_ray.graph import probe
from ucotron_ray.serving import deployment
from ucotron_ray.simulators import ucotron as simulator

STUDIED = Relation(subject="Marta Ruiz", predicate="studied_at", object="Lisbon Polytechnic", confidence=0.97)


def call(store, capsys, *arguments: str) -> tuple[int, dict, str]:
    code = cli.main([*arguments, "--set", f"store={store.root}", "--set", "api.retry_delay=0.001", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "store")
    make_bundle(made, "mine", base_directory(tmp_path / "base"))
    return made


def model(relations: list[Relation], status: int = 200) -> tuple[web.Application, list[dict]]:
    asked: list[dict] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append({**await request.json(), "key": request.headers.get("Authorization")})
        message = {"message": {"content": wire.format_answer(relations)}, "finish_reason": "stop"}
        return web.json_response({"choices": [message]}, status=status)

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    return application, asked


def test_the_lines_have_the_servers_keys_and_the_gguf_stands_alone(store, tmp_path, capsys):
    out = tmp_path / "out"
    code, _, err = call(store, capsys, "deploy", "mine", "--output", str(out), "--gguf", "f16")
    assert code == 0, err
    lines = tomllib.loads((out / "ucotron.toml").read_text(encoding="utf-8"))["models"]
    assert lines == {
        "fine_tuned_re_model": "mine",
        "fine_tuned_re_endpoint": "http://127.0.0.1:8000/v1",
        "fine_tuned_re_api_key_env": "UCOTRON_RE_API_KEY",
    }
    gguf = tomllib.loads((out / "ucotron-gguf.toml").read_text(encoding="utf-8"))["models"]
    directory = out / "models" / gguf["llm_model"]
    assert gguf["models_dir"] == str(out / "models")
    assert [path.name for path in directory.iterdir()] == ["mine-f16.gguf"]
    assert (directory / "mine-f16.gguf").read_bytes() == b"GGUFf16"
    notes = (out / "DEPLOY.md").read_text(encoding="utf-8")
    assert "dead" in notes
    assert "llm_loaded: true" in notes
    # The other precision beside it would be a matter of chance for the server.
    code, _, err = call(store, capsys, "deploy", "mine", "--output", str(out), "--gguf", "q8_0")
    assert (code, "another GGUF file" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mine", "--endpoint", "http://h:1/v1/"], 2, "as it stands"),
        (["mine", "--endpoint", "127.0.0.1:8000/v1"], 2, "no http or https address"),
        (["mine", "--endpoint", "http://example.com/v1"], 2, "http is not encrypted"),
        (["mine", "--endpoint", "https://169.254.169.254/v1"], 2, "metadata address"),
        (["mine", "--key-env", "my-key"], 2, "no name of an environment variable"),
        (["nothing"], 2, "no bundle 'nothing'"),
        (["mine", "--gguf", "q2"], 2, "no GGUF file in q2"),
        (["mine", "--server", "http://127.0.0.1:9"], 2, "cannot be reached"),
    ],
)
def test_mistakes_are_said_in_one_block(store, tmp_path, capsys, arguments, code, said):
    found, _, err = call(store, capsys, "deploy", *arguments, "--output", str(tmp_path / "out"))
    assert (found, said in err) == (code, True), err


def test_a_key_in_place_of_its_variables_name_is_written_nowhere_and_not_shown(store, tmp_path, capsys):
    code, result, err = call(
        store, capsys, "deploy", "mine", "--output", str(tmp_path / "out"), "--key-env", "fw_s3cret"
    )
    assert code == 2
    assert "fw_s3cret" not in err + json.dumps(result)
    assert not (tmp_path / "out").exists()


def test_a_host_that_is_allowed_may_be_asked_also_where_its_name_resolves(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UCOTRON_RE_API_KEY", "k")
    arguments = ["deploy", "mine", "--output", str(tmp_path / "out"), "--set", "api.allowed_hosts=[model.internal]"]
    assert call(store, capsys, *arguments, "--endpoint", "http://model.internal/v1")[0] == 0
    asked = []
    monkeypatch.setattr(endpoint, "replies", lambda served, *rest: asked.append(served) or [])
    run = Run(config.load(overrides=[("api.allowed_hosts", ["model.internal"])]), verb="deploy", name="d")
    deployment._own_answers(run, store.get("bundle", "mine"), [], "http://model.internal/v1", "UCOTRON_RE_API_KEY")
    assert [served.network.allowed_hosts for served in asked] == [("model.internal",)]


def test_a_damaged_bundle_is_not_deployed(store, tmp_path, capsys):
    (store.path("bundle", "mine") / "model.onnx_data").write_bytes(b"x")
    code, _, err = call(store, capsys, "deploy", "mine", "--output", str(tmp_path / "out"))
    assert (code, "damaged" in err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_the_written_lines_make_the_server_use_the_model_and_the_probe_proves_it(store, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    application, asked = model([STUDIED])
    with serving(application) as endpoint:
        written = ["deploy", "mine", "--output", str(out), "--endpoint", f"{endpoint}/v1"]
        assert call(store, capsys, *written)[0] == 0
        monkeypatch.setenv("UCOTRON_RE_API_KEY", "any word")
        settings = simulator.settings_of(out / "ucotron.toml")
        with serving(simulator.make_app(settings)) as server:
            code, result, err = call(store, capsys, *written, "--server", server)
    assert code == 0, err
    assert result["probe"]["verdict"] == "model"
    assert "studied_at 0.970" in result["probe"]["why"]
    # The server's request and the probe's own are the same, to the byte that JSON gives.
    by_server, by_probe = asked
    assert by_server["messages"] == by_probe["messages"]
    assert by_server["key"] == "Bearer any word"
    assert {key: by_server[key] for key in ("model", "max_tokens")} == {"model": "mine", "max_tokens": 512}


def test_a_dead_endpoint_looks_healthy_and_is_found_out(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UCOTRON_RE_API_KEY", "k")
    out = tmp_path / "out"
    application, _ = model([STUDIED], status=500)
    with serving(application) as endpoint:
        written = ["deploy", "mine", "--output", str(out), "--endpoint", f"{endpoint}/v1"]
        assert call(store, capsys, *written)[0] == 0
        with serving(simulator.make_app(simulator.settings_of(out / "ucotron.toml"))) as server:
            code, result, err = call(store, capsys, *written, "--server", server)
    assert (code, result["status"]) == (1, "failed")
    assert "its health field says fireworks" in err


def test_without_the_key_the_server_guesses_and_the_probe_says_so(store, tmp_path, capsys):
    out = tmp_path / "out"
    application, asked = model([STUDIED])
    with serving(application) as endpoint:
        written = ["deploy", "mine", "--output", str(out), "--endpoint", f"{endpoint}/v1"]
        assert call(store, capsys, *written)[0] == 0
        with serving(simulator.make_app(simulator.settings_of(out / "ucotron.toml"))) as server:
            code, _, err = call(store, capsys, *written, "--server", server)
    assert code == 1
    assert "the server does not use the model" in err
    assert asked == []


def test_a_gguf_directory_is_found_but_health_proves_nothing(store, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(store, capsys, "deploy", "mine", "--output", str(out))[0] == 0
    settings = simulator.settings_of(out / "ucotron-gguf.toml")
    assert settings.strategy == "llm"
    with serving(simulator.make_app(settings)) as server:
        code, _, err = call(store, capsys, "deploy", "mine", "--output", str(out), "--server", server)
    # The simulator loads no GGUF: as on a server that could not, health says llm and co-occurrence answers.
    assert code == 1
    assert "its health field says llm" in err
    assert "nothing shows that the server uses the model" in err
    (out / "models" / "mine-gguf" / "mine-q8_0.gguf").unlink()
    assert simulator.settings_of(out / "ucotron-gguf.toml").strategy == "co_occurrence"


def learned(*relations: Relation) -> probe.Learned:
    return probe.Learned("n", [RawRow(text="Marta Ruiz.", entities=[], expected_relations=list(relations))], {})


def test_the_verdict_needs_the_models_own_words_or_words_that_nobody_else_has():
    works = Relation(subject="Nils Berg", predicate="works_at", object="Kite Labs", confidence=0.9)
    assert probe.verdict(learned(), None)[0] == "nothing"
    assert probe.verdict(learned(STUDIED), None)[0] == "model"
    assert probe.verdict(learned(works), None)[0] == "unproven"
    assert probe.verdict(learned(works), [works])[0] == "model"
    # f32 of the server.
    assert probe.verdict(learned(works.model_copy(update={"confidence": 0.8999999762})), [works])[0] == "model"
    assert probe.verdict(learned(works), [works.model_copy(update={"confidence": 0.7})])[0] == "co-occurrence"


def test_an_empty_answer_stays_empty_and_an_error_is_guessed_over():
    """As the server does: only an error makes it fall back."""
    for status, names in ((200, set()), (503, {"works_at", "born_in", "located_in", "related_to"})):
        application, _ = model([], status=status)
        with serving(application) as endpoint:
            settings = simulator.Settings(endpoint=f"{endpoint}/v1", endpoint_model="m", endpoint_key="k")
            with serving(simulator.make_app(settings)) as server:
                found = {relation.predicate for relation in probe.learn(server, api_key=None).relations}
        assert found <= names
        assert bool(found) == bool(names)
