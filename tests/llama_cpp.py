"""llama.cpp itself, by the wheel `xllamacpp`: how it splits texts and what it answers greedily.

In a process of its own, `python -m tests.llama_cpp FILE TEXTS TOKENS THREADS CONTEXT LIKELIEST` with texts as JSON: the
library has threads.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any


def llama_cpp(
    file: Path, texts: Sequence[str], *, max_new_tokens: int, threads: int = 0, context: int = 2048, likeliest: int = 0
) -> list[dict[str, Any]]:
    """For each text its token `ids`, begin of sequence and special tokens included, and the `tokens` of its answer.

    `likely`: for the first tokens of the answer the `likeliest` ones there, each with the logarithm of its probability.
    `speed` is tokens a second of the answer. 0 threads = as many as llama.cpp chooses; `context` tokens have room.
    """
    command = [sys.executable, "-m", "tests.llama_cpp", str(file), json.dumps(list(texts)), str(max_new_tokens)]
    done = subprocess.run(
        [*command, str(threads), str(context), str(likeliest)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def llama_cpp_speed(file: Path, texts: Sequence[str], *, max_new_tokens: int, threads: int) -> float:
    """Tokens a second of answering over all texts."""
    answers = llama_cpp(file, texts, max_new_tokens=max_new_tokens, threads=threads)
    tokens = [len(answer["tokens"]) for answer in answers]
    return sum(tokens) / sum(count / answer["speed"] for count, answer in zip(tokens, answers, strict=True))


def main() -> None:
    import xllamacpp

    file, texts = sys.argv[1], json.loads(sys.argv[2])
    max_new_tokens, threads, context, likeliest = (int(given) for given in sys.argv[3:])
    given = xllamacpp.CommonParams()
    given.model.path = file
    given.n_ctx, given.n_parallel, given.warmup, given.verbosity, given.port = context, 1, False, 0, 0
    if threads:
        given.cpuparams.n_threads = threads
    server = xllamacpp.Server(given)

    def ask(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    answers = []
    for text in texts:
        ids = ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        asked = {"prompt": ids, "n_predict": max_new_tokens, "temperature": 0.0, "n_probs": likeliest}
        made = ask("/completion", **asked, return_tokens=True)
        listed = made.get("completion_probabilities", ())
        # Those of a token that ends within a character are left out: after it, places are not known.
        known = takewhile(lambda pair: pair[0] == pair[1]["id"], zip(made["tokens"], listed, strict=False))
        likely = [[(entry["id"], entry["logprob"]) for entry in found["top_logprobs"]] for _, found in known]
        speed = made["timings"]["predicted_per_second"]
        answers.append({"ids": ids, "tokens": made["tokens"], "likely": likely, "speed": speed})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
