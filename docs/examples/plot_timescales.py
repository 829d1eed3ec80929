"""
Implied timescales with error bars
==================================

Ten runs of a particle in four wells. The two slowest timescales are known: 1 / .749 = 1.335. We estimate them at several lags
with confidence bands, choose a lag, and test the model against the data at multiples of it.
"""

import matplotlib.pyplot as plt

import gpukoop as gk

runs = [
    gk.datasets.quadruple_well(2_000, lag_time=0.05, random_state=seed)[0] for seed in range(10)
]
estimator = gk.KernelEDMD(n_components=3, n_landmarks=150, random_state=0)

times = gk.kinetics.implied_timescales(
    runs, [1, 2, 4, 8, 12], estimator=estimator, frame_time=0.05, n_bootstrap=50
)
figure = gk.plot.implied_timescales(times)
figure.axes[0].axhline(1 / 0.749, c="k", lw=0.8, ls=":", label="exact")
figure.axes[0].legend(frameon=False, fontsize=9)
plt.show()

# %%
# The estimates hardly depend on the lag, so a short one serves: four frames. Does a model at that lag predict what is seen later?

model = gk.kinetics.KineticModel(estimator, lag=4, frame_time=0.05).fit(runs)
for value, lower, upper in zip(model.timescales_, model.timescales_lower_, model.timescales_upper_):
    print(f"timescale {value:.2f}, 95 % band {lower:.2f} to {upper:.2f}")

states = gk.kinetics.metastable_states(model, 4)
test = gk.kinetics.chapman_kolmogorov(model, states, n_steps=4)
print("Chapman-Kolmogorov test passed:", test.passed)
figure = gk.plot.chapman_kolmogorov(test)
plt.show()
