"""Figures are inspected as objects: what is drawn where, not how it looks. Files are written whole or not at all."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import gpukoop as gk
from gpukoop import datasets, plot
from gpukoop.plot import animation, canvas

RNG = np.random.default_rng(0)
START = RNG.normal(size=(300, 2))
END = datasets.quadruple_well(300, random_state=0, independent=True)[0]


def titles(figure):
    return [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]


def points_of(axes):
    return np.asarray(axes.collections[-1].get_offsets())


# --- particles


def test_start_flow_end_and_density_share_their_limits():
    figure = plot.particles(START, (START + END) / 2, END, density="quadruple_well")
    assert titles(figure) == ["start, 300 particles", "flow", "end", "exact density"]
    for axes in figure.axes:
        assert axes.get_aspect() == 1
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert axes.get_ylim() == figure.axes[0].get_ylim()
    start, _, end, density = figure.axes
    np.testing.assert_allclose(points_of(start), START)
    # the densest points are drawn last, on top
    drawn = points_of(end)
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, END))
    assert (np.diff(datasets.density("quadruple_well", drawn)) >= 0).all()
    assert len(density.images) == 1


def test_paths_run_from_start_to_end_through_every_frame():
    frames = [START, START + np.array([0.5, 1.0]), END]
    flow = plot.particles(*frames).axes[1]
    lines = next(c for c in flow.collections if type(c).__name__ == "LineCollection")
    ends = np.array(lines.get_segments()).reshape(-1, 2)
    for frame in frames:
        gap = np.linalg.norm(frame[:, None] - ends[None], axis=2).min(axis=1)
        np.testing.assert_allclose(gap, 0, atol=1e-12)  # 300 < PATHS: each particle has its path
    steps = np.linalg.norm(np.diff(np.array(lines.get_segments()), axis=1)[:, 0], axis=1)
    total = sum(np.linalg.norm(b - a, axis=1).sum() for a, b in itertools.pairwise(frames))
    assert steps.sum() == pytest.approx(total)  # refined pieces add up to the straight path


def test_clouds_of_different_sizes_have_no_paths():
    flow = plot.particles(START[:100], END).axes[1]
    assert not any(type(c).__name__ == "LineCollection" for c in flow.collections)


def test_one_cloud_beside_its_data():
    figure = plot.particles(END.astype(np.float32), data=START)
    assert titles(figure) == ["300 particles", "data, 300 points"]
    assert plot.particles(np.stack([START, END])).axes[1].get_title(loc="left") == "flow"


def test_points_beyond_the_limits_are_counted():
    far = END.copy()
    far[:3] += 1e6
    figure = plot.particles(START, far, bounds=(-3, 3))
    assert any(text.get_text() == "3 outside" for text in figure.axes[2].texts)
    assert figure.axes[0].get_xlim() == (-3, 3)
    assert not figure.axes[1].texts


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_every_dimension_is_drawn(d):
    Z = RNG.normal(size=(50, d))
    before = Z.copy()
    figure = plot.particles(Z, Z + 0.1, Z + 1, data=Z)
    assert len(figure.axes) == 4
    assert (figure.axes[0].name == "3d") == (d == 3)
    if d == 5:
        np.testing.assert_allclose(points_of(figure.axes[0]), Z[:, :2])
        chosen = plot.particles(Z, Z + 1, coordinates=(4, 1)).axes[0]
        np.testing.assert_allclose(points_of(chosen), Z[:, [4, 1]])
    assert len(plot.png(figure)) > 1_000
    np.testing.assert_array_equal(Z, before)


def test_on_the_line_the_density_is_a_curve_over_the_histogram():
    Z = datasets.double_well(500, random_state=0, independent=True)[0]
    figure = plot.particles(Z, density="double_well")
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(y, datasets.density("double_well", x[:, None]))
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    inside = np.mean((Z >= edges[0]) & (Z <= edges[-1]))
    assert np.sum(heights * np.diff(edges)) == pytest.approx(inside)


@pytest.mark.parametrize(
    "Z",
    [np.zeros((1, 2)), np.zeros((20, 2)), np.zeros((20, 3)), np.ones((5, 1))],
    ids=lambda Z: str(Z.shape),
)
def test_coinciding_points_can_be_drawn(Z):
    assert plot.png(plot.particles(Z, Z, data=Z))


def test_a_figure_is_the_same_twice():
    assert plot.png(plot.particles(START, END)) == plot.png(plot.particles(START, END))


# --- numbers


def test_spectrum_has_a_dot_for_each_value_and_a_line_for_each_exact_one():
    figure = plot.spectrum([0.7, 1.5, 6.1], exact=[0.75, 1.5])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.7, 1.5, 6.1])
    exact = axes.collections[0].get_segments()
    np.testing.assert_allclose([segment[0, 1] for segment in exact], [0.75, 1.5])
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"exact", "estimated"}
    assert plot.spectrum(np.array([1.0])).axes[0].get_legend() is None


def test_complex_eigenvalues_are_drawn_in_the_plane():
    values = np.array([-0.1 + 1j, -0.1 - 1j, -2])
    line = plot.spectrum(values, exact=values).axes[0].lines[-1]
    np.testing.assert_allclose(line.get_xdata(), values.real)
    np.testing.assert_allclose(line.get_ydata(), values.imag)


def test_history_has_a_panel_for_each_quantity():
    t = np.arange(40)
    figure = plot.history(
        {
            "energy": np.exp(-t / 9.0),
            "moments": np.exp(-t / 9.0)[:, None] * [1.0, -2.0, 0.5],
            "balance": np.sin(t),
            "empty": np.zeros(0),
        },
        step_size=0.1,
    )
    assert titles(figure) == ["energy", "|moments|", "balance"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "linear"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), t * 0.1)
    assert len(figure.axes[1].lines) == 3
    assert figure.axes[1].lines[0].get_ydata().min() > 0
    assert plot.png(plot.history({"energy": np.append(np.exp(-t / 9.0), 0.0)}))


# --- files


def test_files_are_whole_or_untouched(tmp_path, monkeypatch):
    target = tmp_path / "figure.png"
    figure = plot.particles(START, END, path=target)
    with Image.open(target) as picture:
        assert picture.size == tuple(int(s * canvas.DOTS) for s in figure.get_size_inches())
    kept = target.read_bytes()

    def fails(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr(type(figure), "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        plot.spectrum([1.0], path=target)
    assert target.read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("suffix", canvas.FORMATS)
def test_every_format_is_written(tmp_path, suffix):
    target = tmp_path / f"s{suffix}"
    plot.spectrum([1.0, 2.0], path=str(target))
    assert target.stat().st_size > 1_000


def test_an_animation_has_a_picture_for_each_frame(tmp_path):
    frames = [START + s * (END - START) for s in np.linspace(0, 1, 4)]
    target = plot.flow_animation(frames, tmp_path / "flow.gif", density="quadruple_well", fps=10)
    with Image.open(target) as film:
        assert film.n_frames == 4
        assert film.info["duration"] == 100
        first = np.asarray(film.convert("RGB"), dtype=int)
        film.seek(3)
        last = np.asarray(film.convert("RGB"), dtype=int)
        assert film.info["duration"] == 1000
    assert first.shape == last.shape
    assert np.abs(first - last).max() > 50
    assert (first[0, 0] > 250).all()  # the page is white


def test_an_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs ffmpeg.*write a \.gif instead"):
        plot.flow_animation([START, END], tmp_path / "flow.mp4")
    assert not list(tmp_path.iterdir())


def test_ffmpeg_is_fed_even_sides_and_its_refusal_is_passed_on(monkeypatch):
    seen = {}

    def refuse(command, **options):
        seen.update(command=command, size=len(options["input"]))
        return subprocess.CompletedProcess(command, 1, b"", b"unknown codec")

    monkeypatch.setattr("shutil.which", lambda name: "/bin/ffmpeg")
    monkeypatch.setattr(animation.subprocess, "run", refuse)
    with pytest.raises(ValueError, match="ffmpeg refused: unknown codec"):
        animation.encode([np.zeros((7, 9, 3), np.uint8)] * 2, ".mp4", 5)
    assert "8x6" in seen["command"]
    assert seen["size"] == (2 + 5) * 8 * 6 * 3  # the last frame stays for a second


# --- matplotlib stays optional, errors say what to do


def test_matplotlib_is_imported_late_and_without_pyplot():
    code = (
        "import sys, numpy as np, gpukoop.plot as plot; print('matplotlib' in sys.modules);"
        "plot.png(plot.particles(np.zeros((3, 2)), np.ones((3, 2))));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot.particles(START),
        lambda path: plot.spectrum([1.0]),
        lambda path: plot.history({"energy": [1.0]}),
        lambda path: plot.flow_animation([START], path),
    ],
)
def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tmp_path, draw):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install gpukoop\[plot\]"):
        draw(tmp_path / "flow.gif")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plot.particles(), ValueError, "no particles to draw"),
        (
            lambda: plot.particles(START, END[:, :1]),
            ValueError,
            r"frames\[1\] has 1 features, frames\[0\]",
        ),
        (lambda: plot.particles(np.full((3, 2), np.nan)), ValueError, r"frames\[0\] contains NaN"),
        (lambda: plot.particles(START, coordinates=(0, 2)), ValueError, "columns out of 2"),
        (lambda: plot.particles(START, bounds=(1, 0)), ValueError, "bounds is"),
        (lambda: plot.particles(START, titles=["a", "b"]), ValueError, "titles has 2 entries"),
        (
            lambda: plot.particles(START, density="gauss"),
            ValueError,
            "no density is known for 'gauss'",
        ),
        (
            lambda: plot.particles(START, density="double_well", coordinates=[0]),
            ValueError,
            "a law of all 2 features",
        ),
        (
            lambda: plot.particles(np.zeros((3, 3)), density=lambda Z: Z[:, 0]),
            ValueError,
            "one or two dimensions",
        ),
        (lambda: plot.particles(START, path="figure.bmp"), ValueError, "must be one of .png"),
        (
            lambda: plot.particles(START, path="no/such/folder/figure.png"),
            ValueError,
            "does not exist",
        ),
        (lambda: plot.flow_animation([START], "flow.png"), ValueError, "must be one of .gif, .mp4"),
        (lambda: plot.flow_animation([START], "flow.gif", fps=0), ValueError, "fps is 0"),
        (lambda: plot.spectrum([]), ValueError, "at least one"),
        (lambda: plot.spectrum(None), TypeError, "eigenvalues is None, expected an array"),
        (lambda: plot.history({}), ValueError, "history is empty"),
        (lambda: plot.history(gk.KSWGD()), TypeError, "history is of type KSWGD.*pass history_"),
        (lambda: plot.history({"a": np.zeros((2, 2, 2))}), ValueError, r"history\['a'\] has shape"),
    ],
)
def test_errors_say_what_came_and_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_names_are_reached_from_the_package():
    assert gk.plot.particles is plot.particles
    assert io.BytesIO(plot.png(plot.spectrum([1.0]))).read(4) == b"\x89PNG"
