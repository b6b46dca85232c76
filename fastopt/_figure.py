"""The class of the figures that `fastopt.plots` returns, which is imported only when matplotlib is needed."""

from io import StringIO

from matplotlib.figure import Figure

__all__ = ["NotebookFigure"]


class NotebookFigure(Figure):
    """A figure that notebooks display although pyplot did not create it."""

    def _repr_svg_(self) -> str:
        with StringIO() as file:
            self.savefig(file, format="svg")
            return file.getvalue()
