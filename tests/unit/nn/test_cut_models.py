"""Adapters of models that are cut, by a plan or in shards: two processes do what one does."""

from pathlib import Path

from tests.preloaded import run_script


def test_two_processes_do_what_one_does(tmp_path):
    done = run_script(Path(__file__).with_name("cut_models_worker.py"), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
