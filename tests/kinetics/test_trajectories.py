"""Lists of trajectories: no pair across a seam, lags in the user's time, streams in bounded memory."""

import resource

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.lagged import cut
from gpukoop.spectrum import GeneratorEDMD, KernelEDMD, Monomials
from gpukoop.spectrum.trajectory import MOST_BLOCKS


def ornstein_uhlenbeck(n, step, rng):
    """Exact samples of dX = -X dt + sqrt(2) dW, stationary: eigenvalues 1, 2, 3, ..."""
    decay = np.exp(-step)
    kicks = np.sqrt(1 - decay**2) * rng.normal(size=n)
    path = np.empty(n)
    path[0] = rng.normal()
    for i in range(1, n):
        path[i] = decay * path[i - 1] + kicks[i]
    return path[:, None]


def test_no_pair_crosses_a_seam():
    lengths, lag = [7, 3, 12, 4], 3
    runs = [np.stack([np.full(n, float(i)), np.arange(float(n))], 1) for i, n in enumerate(lengths)]
    X, Y = gk.datasets.pairs(runs, lag)
    assert len(X) == sum(max(0, n - lag) for n in lengths)
    assert (X[:, 0] == Y[:, 0]).all()
    assert (Y[:, 1] - X[:, 1] == lag).all()
    X, Y = gk.datasets.pairs(runs, lag, stride=2)
    assert (X[:, 1] % 2 == 0).all()
    assert (X[:, 0] == Y[:, 0]).all()
    assert (Y[:, 1] - X[:, 1] == lag).all()


@pytest.mark.parametrize(
    ("trajectories", "lag", "words"),
    [
        ([], 1, "is empty"),
        ([np.ones((5, 2)), np.ones((5, 3))], 1, r"trajectories\[1\] has 3 features"),
        ([np.ones(5)], 1, "reshape"),
        ([np.ones((5, 2))], 5, "longest run has 5"),
        ([np.array([[0.0], [np.nan], [1.0]])], 1, r"trajectories\[0\] contains NaN"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused_in_words(trajectories, lag, words):
    with pytest.raises(ValueError, match=words):
        gk.datasets.pairs(trajectories, lag)


def test_pieces_cover_every_pair_once_and_stay_in_their_run():
    lengths, lag = [100, 7, 35, 3], 5
    for length, most in ((10, 100), (10, 4), (1000, 100)):
        pieces = cut(lengths, lag, length, most)
        seen = {(p.run, i) for p in pieces for i in range(p.first, p.last)}
        assert (
            len(seen)
            == sum(p.last - p.first for p in pieces)
            == sum(max(0, n - lag) for n in lengths)
        )
        assert all(p.last + lag <= lengths[p.run] for p in pieces)
        assert {p.block for p in pieces} == set(range(1 + max(p.block for p in pieces)))
        assert max(p.block for p in pieces) < most


def test_a_list_of_runs_is_fitted_as_its_pairs():
    """The same landmarks and pairs, other blocks of summation: equal to rounding."""
    rng = np.random.default_rng(0)
    runs = [ornstein_uhlenbeck(n, 0.1, rng) for n in (1500, 400, 900)]
    lag, frame_time = 3, 0.1
    settings = {"n_components": 3, "n_landmarks": 100, "reg": 0.1, "random_state": 0}
    listed = KernelEDMD(**settings).fit(runs, lag=lag, frame_time=frame_time)
    # runs as one array would pair the end of one with the beginning of the next
    X, Y = gk.datasets.pairs(runs, lag)
    moments = KernelEDMD(**settings, kernel=gk.Gaussian(listed.scale_))
    moments.fit(X, successors=Y)
    assert listed.lag_time_ == pytest.approx(0.3)
    assert np.allclose(listed.timescales_, 1 / listed.eigenvalues_)
    # another choice of landmarks, so not the same bits
    assert np.allclose(listed.mu_[:2], moments.mu_[:2], atol=0.02)
    assert abs(np.log(listed.timescales_[0])) < 4 * np.sqrt(2 / 280)  # 280 relaxation times


def test_seams_matter():
    """Runs that jump from one to the next by far would look fast if a pair crossed the seam."""
    rng = np.random.default_rng(1)
    runs = [ornstein_uhlenbeck(40, 0.1, rng) for _ in range(60)]
    settings = {"n_components": 1, "n_landmarks": 100, "reg": 0.2, "random_state": 0}
    right = KernelEDMD(**settings).fit(runs, lag=10, frame_time=0.1)
    wrong = KernelEDMD(**settings).fit(np.concatenate(runs), lag=10, frame_time=0.1)
    # a quarter of the pairs of the one array cross a seam and are independent: mu falls by a quarter
    assert wrong.mu_[0] < 0.9 * right.mu_[0]


def test_memory_mapped_runs_are_the_same_runs(tmp_path):
    rng = np.random.default_rng(2)
    runs = [ornstein_uhlenbeck(n, 0.2, rng) for n in (20_000, 5_000)]
    files = []
    for i, run in enumerate(runs):
        np.save(tmp_path / f"{i}.npy", run)
        files.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    settings = {"n_components": 2, "n_landmarks": 60, "random_state": 0}
    a, b = (KernelEDMD(**settings).fit(r, lag=2, frame_time=0.2) for r in (runs, files))
    assert np.array_equal(a.eigenvalues_, b.eigenvalues_)
    assert np.allclose(a.timescales_, [1, 1 / 2], rtol=0.15)


def test_a_stream_of_chunks_is_one_run():
    """Chunks that continue each other give the pairs of the whole run: the same dictionary, so equal to rounding."""
    rng = np.random.default_rng(3)
    path = ornstein_uhlenbeck(12_000, 0.1, rng)
    settings = {"n_components": 2, "n_landmarks": 60, "reg": 0.1, "random_state": 0}
    chunks = np.split(path, [3_000, 3_004, 7_001, 7_002, 10_000])  # some shorter than the lag
    stream = KernelEDMD(**settings)
    for i, chunk in enumerate(chunks):
        stream.partial_fit(chunk, lag=5, frame_time=0.1, continues=i > 0)
    first = KernelEDMD(**settings).partial_fit(chunks[0], lag=5, frame_time=0.1)
    whole = first.partial_fit(path[3_000:], lag=5, frame_time=0.1, continues=True)
    assert np.allclose(stream.mu_, whole.mu_, rtol=1e-10)
    from_iterator = KernelEDMD(**settings).partial_fit(iter(chunks), lag=5, frame_time=0.1)
    assert np.allclose(from_iterator.mu_, whole.mu_, rtol=1e-10)
    assert stream.timescales_[0] == pytest.approx(1, abs=4 * np.sqrt(2 / 1200))


def test_chunks_of_other_runs_share_no_pair():
    rng = np.random.default_rng(4)
    runs = [ornstein_uhlenbeck(3_000, 0.1, rng) for _ in range(3)]
    stream = KernelEDMD(n_components=1, n_landmarks=60, reg=0.1, random_state=0)
    for run in runs:
        stream.partial_fit(run, lag=5)
    assert sum(block.m for block in stream._stream.blocks) == 3 * (3_000 - 5)


def test_a_stream_forgets_at_fit_and_keeps_its_lag():
    path = ornstein_uhlenbeck(3_000, 0.1, np.random.default_rng(5))
    stream = KernelEDMD(n_components=1, n_landmarks=60, reg=0.1, random_state=0)
    stream.partial_fit(path[:1500], lag=5)
    with pytest.raises(ValueError, match="a fit has one lag"):
        stream.partial_fit(path[1500:], lag=6)
    before = stream.mu_
    with pytest.raises(ValueError, match="NaN"):
        stream.partial_fit(np.full((10, 1), np.nan), lag=5)
    assert stream.mu_ is before
    stream.fit(path, lag=6)
    assert not hasattr(stream, "_stream")


def test_the_memory_of_a_stream_does_not_grow():
    """40 to 80 blocks of p^2 numbers, whatever the number of chunks; the process grows by less than the frames are."""
    rng = np.random.default_rng(6)
    stream = KernelEDMD(n_components=1, n_landmarks=20, reg=0.3, random_state=0)
    noise = lambda: iter([rng.normal(size=(2**14, 1)) for _ in range(5)])
    stream.partial_fit(ornstein_uhlenbeck(2**14, 0.1, rng), lag=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        stream.partial_fit(noise(), lag=1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert MOST_BLOCKS // 2 <= len(stream._stream.blocks) <= MOST_BLOCKS
    assert sum(block.m for block in stream._stream.blocks) > 1.6e6
    assert grown < 100  # MB; coordinates of all frames would be 20 * 8 * 1.6e6 = 260


def test_kswgd_learns_from_a_list_of_runs():
    rng = np.random.default_rng(7)
    runs = [ornstein_uhlenbeck(n, 0.1, rng) for n in (1_500, 1_000)]
    flow = gk.KSWGD(n_components=4, n_landmarks=100, random_state=0)
    flow.fit(runs, lag=5, frame_time=0.1)
    assert flow.spectrum_.lag_time_ == pytest.approx(0.5)
    assert isinstance(flow.spectrum_, KernelEDMD)
    assert flow.eigenvalues_[0] == pytest.approx(1, rel=0.4)  # 225 relaxation times
    with pytest.raises(ValueError, match="pass one of them"):
        flow.fit(runs, lag=5, successors=runs)


def test_increments_stand_for_the_coefficients_of_a_generator():
    """The increments of frames .01 apart: bias of order .01, noise sqrt(2 / 600) of the drift's slope."""
    rng = np.random.default_rng(8)
    runs = [ornstein_uhlenbeck(n, 0.01, rng) for n in (40_000, 20_000)]
    general = GeneratorEDMD(Monomials(2), n_components=2).fit(runs, lag=1, frame_time=0.01)
    assert general.eigenvalues_[0] == pytest.approx(1, abs=4 * np.sqrt(2 / 600))
    reversible = GeneratorEDMD(n_components=1, n_landmarks=60, random_state=0)
    reversible.fit([run[::2][:5_000] for run in runs], lag=1, frame_time=0.02)
    # mean phi'^2 a over the variance: the variance is known to sqrt(2 / 200) of itself, the runs being 200 long
    assert reversible.eigenvalues_[0] == pytest.approx(1, abs=4 * np.sqrt(2 / 200))
