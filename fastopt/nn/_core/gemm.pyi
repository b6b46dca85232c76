from typing_extensions import disjoint_base

@disjoint_base
class Blas:
    @property
    def name(self) -> str: ...
    @property
    def direct(self) -> bool: ...
    def __init__(
        self, name: str, sgemm: int = 0, dgemm: int = 0, sgemv: int = 0, dgemv: int = 0, ilp64: bool = False,
        get_threads: int = 0, set_threads: int = 0, small: int = 0,
    ) -> None: ...
