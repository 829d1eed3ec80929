"""The same sums over the workers of a Dask cluster: several machines, or several GPUs."""

from gpukoop.distributed.cluster import use_cluster

__all__ = ["use_cluster"]
