"""How the command ends: streams that are closed, full or gone, disks without room, signals.

One process loads what the commands need; each case is a fork of it.
"""

import json

import pytest

from tests.preloaded import run_script

SCRIPT = r"""
import contextlib, io, itertools, json, os, resource, signal, sys
from pathlib import Path
import torch
import lowrank_opt as lo
from lowrank_opt.cli import main
from lowrank_opt.cli.commands import recommend
from lowrank_opt.nn import adapt, save_adapter

torch.set_num_threads(1)  # A fork of a process with threads of OpenMP would wait for them.
# As in a terminal: under nohup, and in the background of a script, signals are ignored.
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

lines = ["user,item,rating"]
lines += [f"ü{u},{i},{(u * i) % 5 + 1}" for u in range(30) for i in range(20) if (u + i) % 3]
Path("r.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
save_adapter(adapt(torch.nn.Linear(4, 2), lambda s: lo.NBLoRA(s, 1), targets=".*"), "adapter")
COMMANDS = {
    "complete": ["complete", "r.csv", "--out", "model", "--max-iterations", "3"],
    "predict": ["predict", "model", "r.csv"],
    "recommend": ["recommend", "model", "--all"],
    "evaluate": ["evaluate", "model", "r.csv"],
    "inspect": ["inspect", "adapter"],
    "completion": ["completion", "bash"],
    "--help": ["--help"],
}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for words in [*COMMANDS.values()][:5]:  # What they load, every fork has.
        main(words)

def opened(number, kind):
    # As the interpreter finds its streams.
    if kind == "closed":
        os.close(number)
        return None
    if kind == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    if kind == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)
    stream = open(number, "w", encoding="utf-8", closefd=False, buffering=1 if number == 2 else -1)
    # As under PYTHONUNBUFFERED.
    stream.reconfigure(write_through=kind == "full")
    return stream

def case(words, out="file", err="file", before=lambda: None):
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = opened(1, out), opened(2, err)
        before()
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        for stream in (sys.stdout, sys.stderr):  # As the interpreter ends.
            try:
                stream is None or stream.flush()
            except OSError:
                status = 120
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = {name: Path(name).read_text(encoding="utf-8") for name in ("out", "err")}
    return {"status": status, **said, "files": sorted(os.listdir("."))}

def no_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

def at_the_third_user(action):
    def before():
        best, asked = recommend._best, []
        def patched(*words):
            asked.append(1)
            if len(asked) == 3:
                action()
            return best(*words)
        recommend._best = patched
    return before

def kill(name):
    return lambda: os.kill(os.getpid(), getattr(signal, name))

def at_the_second_step():
    from lowrank_opt.cli.commands import complete
    complete._Progress.__call__ = lambda *_: kill("SIGTERM")()

found = {}
for name, words in COMMANDS.items():
    found[name] = case(words)
    for stream, kind in itertools.product(("out", "err"), ("closed", "full", "gone")):
        found[f"{name} {stream} {kind}"] = case(words, **{stream: kind})
found["written"] = case([*COMMANDS["recommend"], "--out", "old.csv"])
found["written"]["old"] = Path("old.csv").read_text() == found["recommend"]["out"]
Path("old.csv").write_text("old")
for end, before in {
    "no room": no_room,
    "SIGKILL": at_the_third_user(kill("SIGKILL")),
    "SIGTERM": at_the_third_user(kill("SIGTERM")),
    "SIGHUP": at_the_third_user(kill("SIGHUP")),
    "Ctrl-C": at_the_third_user(kill("SIGINT")),
    "fault": at_the_third_user(lambda: 1 / 0),
}.items():
    found[end] = case([*COMMANDS["recommend"], "--out", "old.csv"], before=before)
    found[end]["old"] = Path("old.csv").read_text()
def under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    at_the_third_user(kill("SIGHUP"))()

found["nohup"] = case([*COMMANDS["recommend"], "--out", "old.csv"], before=under_nohup)
found["nohup"]["old"] = Path("old.csv").read_text() == found["recommend"]["out"]
def content():
    return {str(p): p.read_bytes() for p in Path("model").rglob("*") if p.is_file()}

model = content()
found["model, no room"] = case(COMMANDS["complete"], before=no_room)
found["model, no room"]["kept"] = content() == model
words = ["complete", "r.csv", "--out", "stopped", "--json"]
found["model, SIGTERM"] = case(words, before=at_the_second_step)
print(json.dumps(found))
"""

COMMANDS = ("complete", "predict", "recommend", "evaluate", "inspect", "completion", "--help")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("endings")
    script = folder / "endings.py"
    script.write_text(SCRIPT, encoding="utf-8")
    run = run_script(script, folder=folder)
    assert 0 == run.returncode, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_takes_nothing_is_status_two(found: dict, command: str):
    # The parser prints its help by itself, and says nothing of a stream that is closed.
    closed = found[f"{command} out closed"]["status"]
    assert (0 if command == "--help" else 2) == closed
    assert 2 == found[f"{command} out full"]["status"]
    error = found[f"{command} out full"]["err"].splitlines()[-1]
    assert "error: the output must be writable; got standard output: No space" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_enough_is_no_error(found: dict, command: str):
    normal, ended = found[command], found[f"{command} out gone"]
    assert (normal["status"], normal["err"]) == (ended["status"], ended["err"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["closed", "full", "gone"])
def test_messages_that_nobody_takes_stop_nothing(found: dict, command: str, kind: str):
    normal, without = found[command], found[f"{command} err {kind}"]
    assert normal["status"] == without["status"]
    assert len(normal["out"].splitlines()) == len(without["out"].splitlines())


STATUSES = {"no room": 2, "SIGKILL": -9, "SIGTERM": 143, "SIGHUP": 129, "Ctrl-C": 130, "fault": 70}


@pytest.mark.parametrize("name", ["written", "nohup"])
def test_an_output_that_is_complete_takes_the_place(found: dict, name: str):
    case = found[name]
    assert (0, True) == (case["status"], case["old"])
    assert not any("part" in name for name in case["files"])


@pytest.mark.parametrize("end", STATUSES)
def test_an_output_cut_off_leaves_the_old_one_alone(found: dict, end: str):
    expected = (STATUSES[end], "old", ["adapter", "endings.py", "err", "model", "old.csv", "out"])
    case = found[end]
    files = [x for x in case["files"] if x != "r.csv" and not x.startswith("endings.py.")]
    assert expected == (case["status"], case["old"], files)
    assert ("Traceback" in case["err"]) == (end == "fault")


def test_a_model_cut_off_is_the_old_one_or_the_best_so_far(found: dict):
    full = found["model, no room"]
    assert (2, True) == (full["status"], full["kept"])
    assert full["err"].splitlines()[-1].startswith("error: ")
    stopped = found["model, SIGTERM"]
    assert (143, "INTERRUPTED") == (stopped["status"], json.loads(stopped["out"])["status"])
