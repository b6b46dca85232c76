"""The examples run with NumPy only, in seconds, and reach their documented results."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# Optional modules, which are hidden from the examples.
HIDDEN = ("matplotlib", "pandas", "scipy", "sklearn", "torch", "tqdm")
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({HIDDEN}))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
START_WITH_ALL = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def output(name, folder, *arguments, start=START):
    """Run an example in an empty folder, in which it must write no files."""
    command = [sys.executable, "-W", "error", "-c", start, str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    return result.stdout


def numbers(pattern, text):
    """Return the groups of each match as floats."""
    matches = re.findall(pattern, text, re.M)
    return [tuple(map(float, m if isinstance(m, tuple) else (m,))) for m in matches]


def check_numpy_loop(out):
    losses = [loss for loss, _ in numbers(r"^Epoch \d+: loss (\S+), norm of the gradient (\S+)$", out)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert len(numbers(r"^Test accuracy of .*: (\S+)$", out)) == 2
    assert all(right >= 0.96 for (right,) in numbers(r"^Test accuracy of .*: (\S+)$", out))


def check_evolution_strategy(out):
    (first, steps), *_, (last, _) = numbers(r"^Generation \d+: up for (\d+) of (\d+) steps$", out)
    assert first < 200 and last > 400 and steps == 500
    assert numbers(r"balances the pole in (\d+) of 20 trials$", out)[0][0] >= 15


def check_federated_server(out):
    rounds = numbers(r"^Round \d+: test accuracy (\S+) by FedAvg, (\S+) by FedAdam$", out)
    assert len(rounds) == 3
    assert all(adam > average for average, adam in rounds)
    assert rounds[-1][1] >= 0.88


def check_article(out):
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"]
    assert all(float(loss) < 0.25 and float(right) >= 0.94 for _, _, loss, right, _ in rows)
    assert len({len(line) for line in out.splitlines()}) == 1


def check_fashion_mnist(out):
    assert numbers(r"^Test accuracy (\S+) after", out)[0][0] >= 0.96
    assert max(map(len, out.splitlines())) <= 80


def check_optimizer_table(out):
    rows = [list(map(float, line.replace("%", "").split())) for line in out.splitlines()[1:-1]]
    assert [row[0] for row in rows] == [1, 0.1, 0.01, 0.001, 0.0001]
    errors = {name: [row[k] for row in rows] for k, name in enumerate(("sgd", "mom", "ada", "adadelta"), 1)}
    assert all(min(column) < 10 for name, column in errors.items())
    assert errors["sgd"][-1] > 50 > 10 > errors["ada"][2]


def check_torch_transformer(out):
    pattern = r"^(\S.*\S) +loss (\S+) -> (\S+), (\S+) ms per clipped step$"
    rows = re.findall(pattern, out, re.M)
    assert [name for name, *_ in rows][::2] == ["torch.optim.AdamW", "fastopt.torch.AdamW"]
    first, last = ({row[k] for row in rows} for k in (1, 2))
    assert max(map(float, last)) < 0.9 * min(map(float, first))
    assert max(map(float, last)) - min(map(float, last)) < 2e-4


CHECKS = {
    "article.py": check_article,
    "evolution_strategy.py": check_evolution_strategy,
    "fashion_mnist.py": check_fashion_mnist,
    "federated_server.py": check_federated_server,
    "optimizer_table.py": check_optimizer_table,
    "numpy_loop.py": check_numpy_loop,
}


def check_dask_search(out):
    found = numbers(r"^Learning rate (\S+): validation accuracy (\S+)$", out)
    assert [rate for rate, _ in found] == [1.0, 0.1, 0.01, 0.003]
    assert found[2][1] > 0.94 and found[2][1] >= found[0][1]
    assert numbers(r"^Test accuracy after chunks: (\S+)$", out)[0][0] > 0.94


def check_mpi_classifier(out):
    assert numbers(r"^Test accuracy (\S+), checksum [0-9a-f]{8}$", out)[0][0] > 0.94


def check_ray_actor(out):
    ((first, second),) = numbers(r"^Test accuracy of the 2 actors: (\S+), (\S+)$", out)
    assert min(first, second) > 0.94


# Examples that need other libraries.
EXTRA_CHECKS = {
    "dask_search.py": (check_dask_search, "dask", "sklearn"),
    "mpi_classifier.py": (check_mpi_classifier, "sklearn"),
    "ray_actor.py": (check_ray_actor, "ray", "sklearn"),
}


def test_every_example_has_a_check():
    checked = [*CHECKS, *EXTRA_CHECKS, "torch_transformer.py"]
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(checked)


@pytest.mark.parametrize("name", CHECKS)
def test_example(name, tmp_path):
    CHECKS[name](output(name, tmp_path))


@pytest.mark.parametrize("name", EXTRA_CHECKS)
def test_example_with_other_libraries(name, tmp_path):
    check, *modules = EXTRA_CHECKS[name]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    check(output(name, tmp_path, start=START_WITH_ALL))


def test_example_with_torch(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    check_torch_transformer(output("torch_transformer.py", tmp_path, "--steps", "30", start=START_WITH_ALL))
