"""What ``gpukoop code`` prints: the text that runs, for every backend that writes one."""

from pathlib import Path

import numpy as np
import pytest

from gpukoop import cli
from gpukoop.cli.listing import listing
from gpukoop.kernels.cpu import reduce as reduce_cpu
from gpukoop.kernels.formula.catalogue import CATALOGUE
from gpukoop.kernels.operation import OPERATIONS

GOLDEN = Path(__file__).parent / "golden"
TEXTS = sorted(GOLDEN.rglob("*.txt"))
BACKENDS = ("numba-cuda", "numba-cpu", "keops")


def test_every_backend_that_writes_code_has_golden_texts():
    assert {path.parent.name for path in TEXTS} == {"golden", "numba-cpu", "keops"}
    assert all(len([p for p in TEXTS if p.parent.name == name]) >= 2 for name in BACKENDS[1:])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_code_that_runs_is_what_it_was(path):
    """To accept a change: gpukoop code KERNEL OPERATION -d D --backend B > tests/sums/golden/B/KERNEL_OPERATION_dD.txt, and read the difference.

    Texts of numba-cuda stand in tests/sums/golden itself.
    """
    backend = "numba-cuda" if path.parent == GOLDEN else path.parent.name
    name = next(k for k in CATALOGUE if path.stem.startswith(f"{k}_"))
    op, _, d = path.stem.removeprefix(f"{name}_").rpartition("_d")
    assert listing(name, op, int(d), backend=backend).strip() == path.read_text().strip()


@pytest.mark.parametrize(
    ("backend", "place", "words"),
    [
        ("numba-cuda", ".", "exp2(q)"),
        ("numba-cpu", "numba-cpu", "for j in range(nj):"),
        ("keops", "keops", "SqDist(X,Y)"),
    ],
)
def test_the_command_line_prints_it(backend, place, words, capsys):
    assert cli.main(["code", "gaussian", "product", "-d", "3", "--backend", backend]) == 0
    text = (GOLDEN / place / "gaussian_product_d3.txt").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert words in text


def test_what_cannot_be_printed_is_said_in_words(capsys):
    for words in (["gauss", "product"], ["gaussian", "sum"], ["energy", "logsumexp"]):
        assert cli.main(["code", *words]) == 2
    for backend in ("numpy", "fourier", "auto"):
        capsys.readouterr()
        assert cli.main(["code", "gaussian", "product", "--backend", backend]) == 2
        assert "numba-cuda, numba-cpu and keops do" in capsys.readouterr().err


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize(("d", "t", "dtype"), [(3, 1, "float32"), (30, 3, "float64")])
def test_what_is_printed_for_the_cpu_is_what_is_compiled(op, d, t, dtype, monkeypatch):
    compiled = []

    def load(text):
        compiled.append(text)
        return lambda *_: None

    monkeypatch.setattr(reduce_cpu, "load", load)
    monkeypatch.setattr(reduce_cpu, "_runs", {})
    X, V = np.ones((2, d), dtype), np.ones((2, t), dtype)
    operation, kernel = OPERATIONS[op], CATALOGUE["matern52"]()
    with np.errstate(all="ignore"):
        reduce_cpu.reduce(kernel, operation, X, X, V[:, 0] if operation.log else V)
    assert listing("matern52", op, d, t, dtype, "numba-cpu") == "\n\n".join(compiled)


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("name", ["laplace", "energy"])
def test_what_is_printed_for_keops_is_what_it_is_asked(op, name, monkeypatch):
    from gpukoop.kernels.keops import reduce as reduce_keops

    operation, kernel, asked = OPERATIONS[op], CATALOGUE[name](), []
    if operation.log and not kernel.positive:
        pytest.skip("no logarithm")

    class Reduction:
        def __init__(self, formula, aliases, **options):
            self.formula, self.aliases = formula, aliases
            asked.append((formula, aliases, options))

    n, d, columns = 5, 4, 1 if operation.log else 2
    numbers = 2 + d if operation.log else columns * (1 + d)
    monkeypatch.setattr(reduce_keops, "genred", lambda: Reduction)
    monkeypatch.setattr(reduce_keops, "call", lambda *_: np.ones((n, numbers)))
    X, V = np.ones((n, d)), np.ones((n, columns))
    reduce_keops.reduce(kernel, operation, X, X, V[:, 0] if operation.log else V)
    ((formula, aliases, options),) = asked
    second = [options["formula2"]] if "formula2" in options else []
    head = f"{options['reduction_op']} over j (float64)"
    expected = [head, *aliases, formula, *second]
    assert listing(name, op, d, 2, "float64", "keops").splitlines() == expected
