"""CSVLogger."""

import pytest
from callback_helpers import X, Y, make_trainer, read_table, run

from fastopt.callbacks import CSVLogger, LambdaCallback


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_equals_the_history(tmp_path, separator):
    path = tmp_path / "log.csv"
    history = run(make_trainer([0.1, 1 / 3], CSVLogger(path, separator))).history
    rows = read_table(path, separator)
    assert [row.pop("epoch") for row in rows] == ["0", "1"]
    assert {name: [float(row[name]) for row in rows] for name in rows[0]} == history
    assert path.read_text().count(separator) == 3 * len(history)


def test_csv_is_written_after_each_epoch(tmp_path):
    lines = []

    def look(epoch, logs):
        lines.append(len((tmp_path / "log.csv").read_text().splitlines()))

    run(make_trainer([1.0] * 3, CSVLogger(tmp_path / "log.csv"), LambdaCallback(on_epoch_end=look)))
    assert lines == [2, 3, 4]


def test_csv_of_further_fits_and_new_metrics(tmp_path):
    path = tmp_path / "log.csv"
    trainer = make_trainer([0.5, 0.25], CSVLogger(path))
    trainer.fit(X, Y, verbose=0)
    run(trainer, 1)
    trainer.fit(X, Y, verbose=0)
    rows = read_table(path)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["val_loss"] for row in rows] == ["NA", "0.5", "NA"]
    assert list(rows[0]) == ["epoch", "loss", "lr", "seconds", "val_loss"]


@pytest.mark.parametrize(("append", "epochs"), [(False, ["0"]), (True, ["0", "1", "0"])])
def test_csv_is_appended_or_replaced(tmp_path, append, epochs):
    path = tmp_path / "log.csv"
    run(make_trainer([1.0, 2.0], CSVLogger(path)))
    run(make_trainer([3.0], CSVLogger(path, append=append)))
    assert [row["epoch"] for row in read_table(path)] == epochs
    assert read_table(path)[-1]["val_loss"] == "3.0"


def test_another_trainer_replaces_the_csv(tmp_path):
    log = CSVLogger(tmp_path / "log.csv")
    run(make_trainer([1.0, 2.0], log))
    run(make_trainer([3.0], log))
    assert [row["val_loss"] for row in read_table(tmp_path / "log.csv")] == ["3.0"]


def test_csv_of_a_resumed_run_after_an_older_run(tmp_path):
    path = tmp_path / "log.csv"
    run(make_trainer([9.0] * 4, CSVLogger(path)))
    first = make_trainer([1.0, 2.0, 3.0], CSVLogger(path, append=True))
    run(first, 1)
    state = first.state_dict()
    run(first, 2)  # undone by a crash
    second = make_trainer([4.0, 5.0], CSVLogger(path, append=True))
    second.load_state_dict(state)
    run(second, 2)
    assert [row["epoch"] for row in read_table(path)] == ["0", "1", "2", "3", "0", "1", "2"]
    assert [row["val_loss"] for row in read_table(path)[4:]] == ["1.0", "4.0", "5.0"]


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_resumed_run_writes_the_whole_file(tmp_path, epochs):
    """Whatever has happened to it: lines of epochs that are undone, half a line, other numbers, removal."""
    path = tmp_path / "log.csv"
    first = make_trainer([1.0, 2.0, 3.0], CSVLogger(path))
    run(first, 1)
    state, text = first.state_dict(), path.read_text()
    for damage in (text.replace("1.0", "1.5"), text[:-4], text + text, "name,age\n", None):
        path.unlink() if damage is None else path.write_text(damage)
        second = make_trainer([4.0, 5.0], CSVLogger(path))
        second.load_state_dict(state)
        run(second, epochs)
        assert path.read_text().startswith(text)
        assert [row["val_loss"] for row in read_table(path)] == ["1.0", "4.0", "5.0"][: 1 + epochs]


def test_a_line_that_could_not_be_written_is_written_later(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    trainer = make_trainer([1.0, 2.0, 3.0], CSVLogger(path))
    run(trainer, 1)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", None)    # calling it is a TypeError
        with pytest.raises(TypeError):
            run(trainer, 1)
    run(trainer, 1)
    assert [row["val_loss"] for row in read_table(path)] == ["1.0", "2.0", "3.0"]


def test_append_to_a_file_without_a_last_line_break(tmp_path):
    path = tmp_path / "log.csv"
    run(make_trainer([1.0], CSVLogger(path)))
    path.write_text(path.read_text().removesuffix("\n"))
    run(make_trainer([2.0], CSVLogger(path, append=True)))
    assert [row["val_loss"] for row in read_table(path)] == ["1.0", "2.0"]


def test_csv_logger_refuses_invalid_arguments_and_files(tmp_path):
    with pytest.raises(ValueError, match="separator: expected one character, got ', '"):
        CSVLogger("log.csv", separator=", ")
    (tmp_path / "other.csv").write_text("name,age\n")
    for log, error in (
        (CSVLogger(tmp_path / "no" / "log.csv"), FileNotFoundError),
        (CSVLogger(tmp_path / "other.csv", append=True), ValueError),
    ):
        trainer = make_trainer([1.0], log)
        with pytest.raises(error, match="filename: "):
            run(trainer)
        assert trainer.net.weight == 0.0
    assert (tmp_path / "other.csv").read_text() == "name,age\n"
