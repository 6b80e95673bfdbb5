"""A user's script, as basedpyright sees it from elsewhere, with the package installed editable.

``python tests/editable_types.py`` fails if a public name does not resolve, is not known, or if an
ordinary script has an error in strict mode. The check runs in an empty folder: what it knows of the
package it knows from the environment of this interpreter.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lowrank_opt as lo

USE = """
import torch

import lowrank_opt as lo
import lowrank_opt.nn
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.testing import check_parameterization

observed = lo.Observations([0, 1, 2], [0, 1, 1], [1.0, 2.0, 3.0], shape=(3, 2))
ball = lo.HomogeneousBall(observed.shape, rank=1, radius=3.0)
result = lo.complete(observed, ball, bias="additive", solver=lo.solvers.LBFGS(gap=1e-3))
gap: float = result.certificate().gap
predicted: torch.Tensor = result.predict([0], [1])
inside: bool = ball.feasible_set.contains(result.operator)
layer = lowrank_opt.nn.LowRankLinear(lo.NBLoRA((3, 2), rank=1, radius=1.0))
model = lowrank_opt.nn.adapt(torch.nn.Sequential(layer), lo.Factored, targets="0")
print(gap, predicted, inside, model, MatrixCompletion(shape=(3, 2)))
check_parameterization(lo.Factored, profile="quick")
"""


def messages(script: str) -> list[dict[str, str]]:
    """Return what the type checker says of a script, in a folder with nothing else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").write_text(script)
        settings = {"typeCheckingMode": "strict", "include": ["script.py"]}
        (folder / "pyrightconfig.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
        installed = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [*command, "--outputjson"],
            cwd=folder,
            env=installed,
            capture_output=True,
            text=True,
            check=False,
        )
    return json.loads(done.stdout)["generalDiagnostics"]


def main() -> int:
    """Print what is wrong; return 0 if nothing is."""
    named = "import lowrank_opt as lo\n" + "".join(f"reveal_type(lo.{x})\n" for x in lo.__all__)
    revealed = [m for m in messages(named) if m["message"].startswith("Type of")]
    unknown = [m["message"] for m in revealed if "Unknown" in m["message"].partition(" is ")[2]]
    wrong = [m["message"] for m in messages(USE) if m["severity"] == "error"]
    if len(revealed) != len(lo.__all__):
        wrong.append(f"{len(revealed)} of {len(lo.__all__)} public names are resolved")
    print(*unknown, *wrong, sep="\n", end="\n" if unknown or wrong else "")
    print(f"{len(revealed)} public names from the installed package, {len(unknown)} unknown")
    return int(bool(unknown or wrong))


if __name__ == "__main__":
    sys.exit(main())
