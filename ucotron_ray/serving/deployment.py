"""A bundle for a Ucotron server: the lines of its configuration, the GGUF directory, and the proof that it is used."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ucotron_ray.core import addresses, variables
from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.errors import ConfigError, FireworksError, GateFailed, InputError
from ucotron_ray.core.files import write_text
from ucotron_ray.core.run import Run
from ucotron_ray.core.sections import VariableName
from ucotron_ray.data.records import RawRow, Relation
from ucotron_ray.graph import probe

log = logging.getLogger(__name__)

ENDPOINT_LINES, GGUF_LINES, NOTES = "ucotron.toml", "ucotron-gguf.toml", "DEPLOY.md"
GGUF_FOLDER = "gguf"
PROBE_RETRIES = 1


def deploy(
    run: Run,
    bundle: Artifact,
    directory: Path,
    *,
    endpoint: str,
    key_variable: str,
    precision: str,
    models_dir: Path | None,
) -> dict[str, Any]:
    """Write what a server needs into a directory; return the paths.

    The GGUF file goes alone into a directory of its own below `models_dir`, which is the server's models directory, or
    `<directory>/models` if none is given. Raises ConfigError where that directory holds another GGUF file, and before
    anything is written for an endpoint that may not be asked and for a key where its variable's name belongs.
    """
    from ucotron_ray.export.bundle import server_lines

    if endpoint.endswith("/"):
        raise ConfigError(
            "the server appends /chat/completions to the endpoint as it stands",
            where="--endpoint",
            expected=endpoint.rstrip("/"),
            found=endpoint,
        )
    # The server sends its key there, and so does the probe.
    addresses.check(endpoint, allowed=run.config.place.api.allowed_hosts, where="--endpoint")
    _check_name(key_variable)
    directory.mkdir(parents=True, exist_ok=True)
    name = bundle.manifest.name
    lines = server_lines(name, endpoint=endpoint, key_variable=key_variable)
    write_text(directory / ENDPOINT_LINES, lines)
    written = {"endpoint_lines": str(directory / ENDPOINT_LINES)}
    gguf = _gguf_of(bundle, precision)
    if gguf is not None:
        folder = (models_dir or directory / "models").absolute()
        placed = _place_alone(gguf, folder / f"{name}-gguf")
        write_text(directory / GGUF_LINES, gguf_lines(folder, placed.parent.name))
        written |= {"gguf": str(placed), "gguf_lines": str(directory / GGUF_LINES)}
    write_text(directory / NOTES, notes(name, endpoint, key_variable, has_gguf=gguf is not None))
    return {**written, "notes": str(directory / NOTES)}


def gguf_lines(models_dir: Path, llm_model: str) -> str:
    """The `ucotron.toml` lines for a GGUF directory."""
    return f"""\
# The server reads the first *.gguf of the directory models_dir/llm_model: it must be a directory, with one file in it.
# The build needs the cargo feature `llm`. A fine_tuned_re_model with its key set would win over these lines.
[models]
models_dir = {json.dumps(str(models_dir))}
llm_model = {json.dumps(llm_model)}
fine_tuned_re_model = ""
# models_dir is also where the server looks for its embedding and NER models: they have to lie there too.
"""


def notes(name: str, endpoint: str, key_variable: str, *, has_gguf: bool) -> str:
    """What to do with the files, and what the health field does not say."""
    gguf = f"""
## By GGUF

Add the lines of `{GGUF_LINES}` instead. The server then asks without chat template, 512 tokens at most, and stops at
the first `]` that ends its text.
"""
    return f"""\
# {name} on a Ucotron server

## By endpoint

1. Serve the bundle: `ucotron-ray serve {name}`, so that `{endpoint}/chat/completions` answers.
2. Add the lines of `{ENDPOINT_LINES}` to the server's configuration; `[models]` may stand in a file only once.
3. Set `{key_variable}` to the endpoint's key in the server's environment; any word will do if it has none. Unset or
   empty, the server does not use the endpoint, and says so in its log only.
4. Restart the server: it chooses its strategy once, at its start.
{gguf if has_gguf else ""}
## What the health field does not say

`GET /api/v1/health` has `models.relation_strategy`. It is the configuration, not what answers:

- `fireworks` is shown also while the endpoint is dead; every call then falls back to co-occurrence, with a warning in
  the log only. There is no counter of it.
- `llm` and `llm_loaded: true` are shown also where the GGUF file could not be loaded; co-occurrence answers.
- `co_occurrence` means that neither was found: the key variable is empty, the directory has no `*.gguf`, or the key was
  written `model_dir`, which the server ignores without a word.

The proof is in the graph: `ucotron-ray deploy {name} --server URL` lets the server learn two sentences in a namespace
of their own, reads `GET /api/v1/export` back, and looks for the model's predicate and confidence.
"""


def prove(
    run: Run, bundle: Artifact, server: str, endpoint: str, key: str | None, namespace: str | None
) -> dict[str, Any]:
    """Probe a server. Raises GateFailed if the model is not what answers."""
    addresses.check(server, allowed=run.config.place.api.allowed_hosts, where="the Ucotron server")
    learned = probe.learn(server, api_key=variables.value("UCOTRON_API_KEY"), namespace=namespace)
    strategy = str(learned.health.get("relation_strategy", "unknown"))
    # Without a model the server can only have guessed; of a GGUF model nobody knows the answer beforehand.
    expected: list[Relation] | None = [] if strategy == "co_occurrence" else None
    if strategy == "fireworks":
        expected = _own_answers(run, bundle, learned.rows, endpoint, key)
    found, why = probe.verdict(learned, expected)
    said = {
        "server": server,
        "verdict": found,
        "why": why,
        "health": strategy,
        "namespace": learned.namespace,
        "relations": [relation.model_dump() for relation in learned.relations],
        "expected": None if expected is None else [relation.model_dump() for relation in expected],
    }
    if found != "model":
        raise GateFailed(
            "the server does not use the model"
            if found == "co-occurrence"
            else "nothing shows that the server uses the model",
            where=server,
            expected="a relation with the model's predicate and confidence in the graph",
            found=f"{why}; its health field says {strategy}",
            next_step="look for a warning in the server's log, and for the request in the endpoint's",
        )
    return said


def _own_answers(
    run: Run, bundle: Artifact, rows: list[RawRow], endpoint: str, key: str | None
) -> list[Relation] | None:
    """What the endpoint answers to the very prompts that the server sent; None if it cannot be asked from here."""
    from ucotron_ray.core.network import Network
    from ucotron_ray.data.wire import parse_answer
    from ucotron_ray.evaluation import endpoint as asked
    from ucotron_ray.teacher.endpoint import Endpoint

    api = run.config.place.api
    served = Endpoint(endpoint, bundle.manifest.name, key, None, (), Network(tuple(api.allowed_hosts)))
    asking = asked.Asking(timeout=api.timeout, max_retries=PROBE_RETRIES, retry_delay=api.retry_delay)
    questions = [asked.question(row, asking) for row in rows if len(row.entities) > 1]
    try:
        replies = asked.replies(served, questions, asking)
    except FireworksError as error:
        log.warning("deploy: the endpoint refuses: %s", error.problem)
        return None
    if any(reply.error for reply in replies):
        log.warning("deploy: %s does not answer from here", endpoint)
        return None
    return [relation for reply in replies for relation in parse_answer(reply.text) or []]


def _check_name(key_variable: str) -> None:
    """Refuse a key where its variable's name belongs: it would be written into files. It is not shown either."""
    try:
        TypeAdapter(VariableName).validate_python(key_variable)
    except ValidationError:
        raise ConfigError(
            "this is no name of an environment variable",
            where="--key-env",
            expected="the name of the variable that holds the key, in capitals: UCOTRON_RE_API_KEY",
            found="something else; it is not shown, since it may be a key",
            next_step="put the key into a variable, and name that",
        ) from None


def _gguf_of(bundle: Artifact, precision: str) -> Path | None:
    """The bundle's GGUF file of a precision; None if it has none at all."""
    files = sorted((bundle.path / GGUF_FOLDER).rglob("*.gguf"))
    if not files:
        return None
    for file in files:
        if file.stem.endswith(f"-{precision}"):
            return file
    raise InputError(
        f"the bundle has no GGUF file in {precision}",
        where=str(bundle.path / GGUF_FOLDER),
        found=", ".join(file.name for file in files),
        next_step="name one of these with --gguf",
    )


def _place_alone(file: Path, directory: Path) -> Path:
    """A copy of the file in a directory that holds no other GGUF: the server takes the first one that it finds."""
    directory.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in directory.glob("*.gguf") if path.name != file.name)
    if others:
        raise ConfigError(
            "the directory holds another GGUF file, and the server takes the first one that it finds",
            where=str(directory),
            expected=f"no file beside {file.name}",
            found=", ".join(others),
            next_step="remove it, or choose another --models-dir",
        )
    target = directory / file.name
    aside = directory / f".{file.name}.partial"
    shutil.copyfile(file, aside)
    aside.replace(target)
    return target
