"""Batches of the ONNX runner are values: padding, joining, dropping and uneven steps change no row's logits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ucotron_ray.models.runner import OnnxRunner, pick

pytestmark = pytest.mark.filterwarnings("ignore::Warning")

ROWS = [list(range(5, 45)), [7, 9, 11], list(range(100, 160, 3)), [42]]
TOLERANCE = 2e-5


@pytest.fixture(params=["qwen2", "qwen3"])
def runner(request, tiny_bundle) -> OnnxRunner:
    return OnnxRunner(tiny_bundle(request.param) / "model.onnx", num_threads=1)


def alone(runner: OnnxRunner, ids: list[int]) -> np.ndarray:
    return runner.logits(ids)[-1]


def test_a_padded_batch_gives_each_row_what_it_gives_alone(runner):
    state = runner.prefill(ROWS)
    assert state.lengths_B.tolist() == [len(row) for row in ROWS]
    for row, logits_V in zip(ROWS, state.logits_BV, strict=True):
        assert np.abs(logits_V - alone(runner, row)).max() < TOLERANCE


def test_logits_of_a_batch_are_those_of_every_position(runner):
    for row, logits_SV in zip(ROWS, runner.logits_of(ROWS), strict=True):
        assert logits_SV.shape[0] == len(row)
        assert np.abs(logits_SV - runner.logits(row)).max() < TOLERANCE


def test_rows_may_read_different_numbers_of_tokens_in_a_step(runner):
    state = runner.step(runner.prefill(ROWS), [[1], [2, 3, 4], [5], [6, 7]])
    state = runner.step(state, [[8, 9], [1], [1], [1]])
    grown = [[1, 8, 9], [2, 3, 4, 1], [5, 1], [6, 7, 1]]
    for row, more, logits_V in zip(ROWS, grown, state.logits_BV, strict=True):
        assert np.abs(logits_V - alone(runner, row + more)).max() < TOLERANCE


def test_rows_come_and_go_between_steps_and_holes_close(runner):
    first = runner.step(runner.prefill(ROWS[:2]), [[1, 2, 3, 4], [5]])
    state = pick([(first, [1]), (runner.prefill([ROWS[2]]), [0]), (first, [0])])
    assert state.rows == 3
    assert state.mask_BT.shape[1] == state.lengths_B.max()
    state = runner.step(state, [[10], [11], [12]])
    whole = [[*ROWS[1], 5, 10], [*ROWS[2], 11], [*ROWS[0], 1, 2, 3, 4, 12]]
    for row, logits_V in zip(whole, state.logits_BV, strict=True):
        assert np.abs(logits_V - alone(runner, row)).max() < TOLERANCE
    # The state that was given lives on.
    again = runner.step(first, [[9], [9]])
    assert np.abs(again.logits_BV[0] - alone(runner, [*ROWS[0], 1, 2, 3, 4, 9])).max() < TOLERANCE


def test_answering_needs_neither_torch_nor_transformers(tiny_bundle):
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'onnx', 'onnxscript', 'ray'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from pathlib import Path\n"
        "from ucotron_ray.evaluation import onnx_answers\n"
        "from ucotron_ray.models import served\n"
        f"model = served.load(Path({str(tiny_bundle('qwen2'))!r}), num_threads=1)\n"
        "ids = model.chat_ids([{'role': 'user', 'content': 'Ana'}])\n"
        "print(len(model.generate([ids, ids[:3]], max_new_tokens=5)))\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2", done.stderr[-2000:]
