"""What the verbs of `fireworks` take, and what they refuse before anything is imported or asked."""

import pytest

from ucotron_ray import cli
from ucotron_ray.core import generators


@pytest.mark.parametrize("task", ["relation_extractoin", "path_reward"])
def test_a_task_that_no_teacher_answers_is_refused_with_those_that_one_does(task, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["fireworks", "batch", task])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert task in said
    assert all(name in said for name in generators.ASKED)
