"""The examples and the scripts of the gallery run in seconds and reach their documented results."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
# Optional modules, which are hidden from the examples.
HIDDEN = ("matplotlib", "pandas", "scipy", "sklearn", "torch", "tqdm")
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({HIDDEN}))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
START_WITH_ALL = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def output(path, folder, start=START):
    """Run an example in an empty folder, in which it must write no files."""
    command = [sys.executable, "-W", "error", "-c", start, str(path)]
    environment = os.environ | {"MPLBACKEND": "agg"}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    return result.stdout


def numbers(pattern, text):
    """Return the groups of each match as floats."""
    matches = re.findall(pattern, text, re.M)
    return [tuple(map(float, m if isinstance(m, tuple) else (m,))) for m in matches]


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


CHECKS = {
    "article.py": check_article,
    "fashion_mnist.py": check_fashion_mnist,
    "optimizer_table.py": check_optimizer_table,
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


def check_evolution_strategy(out):
    (first, steps), *_, (last, _) = numbers(r"^Generation \d+: up for (\d+) of (\d+) steps$", out)
    assert first < 200 and last > 400 and steps == 500
    assert numbers(r"balances the pole in (\d+) of 20 trials$", out)[0][0] >= 15


def check_federated_averaging(out):
    rounds = numbers(r"^Round \d+: test accuracy (\S+) by FedAvg, (\S+) by FedAdam$", out)
    assert len(rounds) == 3
    assert all(adam > average for average, adam in rounds)
    assert rounds[-1][1] >= 0.88


def check_optimizers_on_surfaces(out):
    heights = dict(re.findall(r"^ +(\w+) +(\S+)$", out.partition("rosenbrock")[0], re.M))
    assert len(heights) == 6 and float(heights["momentum"]) < 0.1 < float(heights["SGD"])


def check_learning_rate_finder(out):
    found = numbers(r"^Learning rate (\S+): test accuracy (\S+) after", out)
    low, middle, high = (accuracy for _, accuracy in found)
    assert middle > 0.95 and middle > max(low, high)


def check_learning_rate_schedules(out):
    assert out == "Steps: 3   next learning rate: 0.003\n"


def check_training_curves(out):
    found = numbers(r"test accuracy (\S+)$", out)
    assert len(found) == 5 and all(accuracy > 0.95 for (accuracy,) in found)


def check_decision_boundaries(out):
    found = numbers(r"^\w+: largest difference of probabilities (\S+)$", out)
    assert len(found) == 3 and all(difference < 1e-6 for (difference,) in found)


def check_embedding_rows(out):
    times = numbers(r"^ *(\d+) rows in the table: +(\d+) µs on rows, +(\d+) µs dense$", out)
    assert [size for size, *_ in times] == [1e3, 1e4, 1e5] and times[-1][1] < times[-1][2]


def check_eight_bit_state(out):
    rows = numbers(r"^\w+ +(\S+) bytes of state per parameter, loss (\S+), test accuracy (\S+)$", out)
    assert [size for size, *_ in rows] == [8.0, 4.0, 2.15]
    assert all(loss < 0.02 and accuracy > 0.97 for _, loss, accuracy in rows)


def check_pytorch_drop_in(out):
    rows = re.findall(r"^(\S+) +loss (\S+) -> (\S+), \S+ ms per clipped step$", out, re.M)
    assert [name for name, *_ in rows] == ["torch.optim.AdamW", "fastopt.torch.AdamW"]
    theirs, ours = ([float(first), float(last)] for _, first, last in rows)
    assert ours[1] < 0.7 * ours[0] and ours == pytest.approx(theirs, abs=1e-3)


def check_scaling_over_ranks(out):
    rows = re.findall(r"^Ranks: (\d), test accuracy: (\S+), checksum of the weights: (\w{8})$", out, re.M)
    assert [ranks for ranks, *_ in rows] == ["1", "2", "4"]
    assert len({checksum for *_, checksum in rows}) == 1 and float(rows[0][1]) > 0.9


# The scripts of the gallery, and what they need in addition to matplotlib.
GALLERY_CHECKS = {
    "decision_boundaries.py": (check_decision_boundaries, "sklearn"),
    "eight_bit_state.py": (check_eight_bit_state,),
    "embedding_rows.py": (check_embedding_rows,),
    "evolution_strategy.py": (check_evolution_strategy,),
    "federated_averaging.py": (check_federated_averaging,),
    "learning_rate_finder.py": (check_learning_rate_finder,),
    "learning_rate_schedules.py": (check_learning_rate_schedules,),
    "optimizers_on_surfaces.py": (check_optimizers_on_surfaces,),
    "pytorch_drop_in.py": (check_pytorch_drop_in, "torch"),
    "scaling_over_ranks.py": (check_scaling_over_ranks, "mpi4py"),
    "training_curves.py": (check_training_curves,),
}


def test_every_example_has_a_check():
    assert {path.name for path in EXAMPLES.glob("*.py")} == CHECKS.keys() | EXTRA_CHECKS.keys()
    assert {path.name for path in GALLERY.glob("*.py")} == GALLERY_CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_example(name, tmp_path):
    CHECKS[name](output(EXAMPLES / name, tmp_path))


def skip_without(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize("name", EXTRA_CHECKS)
def test_example_with_other_libraries(name, tmp_path):
    check, *modules = EXTRA_CHECKS[name]
    skip_without(*modules)
    check(output(EXAMPLES / name, tmp_path, START_WITH_ALL))


@pytest.mark.parametrize("name", GALLERY_CHECKS)
def test_script_of_the_gallery(name, tmp_path):
    check, *modules = GALLERY_CHECKS[name]
    skip_without("matplotlib", *modules)
    if "mpi4py" in modules and shutil.which("mpiexec") is None:
        pytest.skip("mpiexec is not installed")
    check(output(GALLERY / name, tmp_path, START_WITH_ALL))
