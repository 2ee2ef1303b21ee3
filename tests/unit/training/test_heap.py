"""Holes in the heap go back to the system now and then, and not at every step."""

import ctypes
from types import SimpleNamespace

import pytest

from ucotron_ray.training.heap import EVERY, HeapTrim
from ucotron_ray.training.progress import resident_bytes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's alone")
def test_freed_memory_between_pieces_that_stay_is_given_back_every_so_many_steps():
    pieces = [bytearray(b"x" * 100_000) for _ in range(2000)]
    kept = pieces[::20]
    del pieces
    full = resident_bytes()

    def after(step: int) -> float:
        HeapTrim().on_step_end(None, SimpleNamespace(global_step=step), None)
        return full - resident_bytes()

    assert after(EVERY - 1) < 20e6
    assert after(EVERY) > 100e6
    assert len(kept) == 100
