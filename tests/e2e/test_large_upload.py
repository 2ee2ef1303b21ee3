"""200 MB to a signed address, with the connection reset in the middle: whole, and once."""

import hashlib
import json
import resource
import subprocess
import sys

import pytest

from tests.vendor import environment, vending
from ucotron_ray import cli

MEGABYTES = 200


@pytest.mark.slow
def test_200_megabytes_with_a_reset_in_the_middle_arrive_whole_and_once(tmp_path, monkeypatch, capsys):
    path = tmp_path / "train_sft.jsonl"
    with path.open("w") as file:
        for number in range(MEGABYTES * 100):
            turns = [{"role": "user", "content": f"{number} " + "x" * 10_400}, {"role": "assistant", "content": "[]"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    assert path.stat().st_size > MEGABYTES * 1024**2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with vending(monkeypatch, cut_uploads=1) as vendor:
        arguments = ["fireworks", "upload", str(path), *vendor.settings(tmp_path / "store"), "--json"]
        assert cli.main(arguments) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (result["rows"], result["sent"]) == (MEGABYTES * 100, True)
        assert cli.main(arguments) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["sent"] is False
        control = vendor.control()
        assert control["created"] == {"datasets": 1}
        assert list(control["stored"].values()) == [path.stat().st_size]
        # The address was asked for twice, as the first one was cut off.
        assert control["requests"]["POST /v1/accounts/{account}/datasets/{name}"] == 3
        stored = next(iter(control["stored"]))
        script = (
            "import sys,hashlib\nfrom ucotron_ray.fireworks import FireworksFineTuner\nfrom ucotron_ray.fireworks import datasets\n"
            "ft = FireworksFineTuner()\n"
            "print(hashlib.sha256(datasets.download(ft.account, sys.argv[1])['train_sft.jsonl']).hexdigest())"
        )
        read = subprocess.run(
            [sys.executable, "-c", script, stored.split("/")[0].rpartition("~")[2]],
            capture_output=True, text=True, check=True, env=environment(vendor), timeout=120,
        )  # fmt: skip
        assert read.stdout.strip() == hashlib.sha256(path.read_bytes()).hexdigest()
    # Neither side held the file: the simulator runs in this process too.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
