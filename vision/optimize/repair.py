"""Pruning of a layer to the 2:4 pattern with repair of the remaining weights, from activations of calibration frames.

The method is that of SparseGPT (Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
One-Shot", 2023, arXiv:2301.00774). The second moments H of the inputs of a layer show which weights matter, and how the
other weights must change to restore the outputs.

Here, the layers are pruned in order. Each layer is fitted to the outputs of the unpruned model, and therefore also
corrects the errors of the previous layers. At the end, the remaining weights of each output channel are the exact
solution of the least-squares problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vision.config import ModelSpec
from vision.optimize.calibration import run
from vision.optimize.feed import Feed
from vision.optimize.frames import Frames
from vision.optimize.onnx_graph import Graph, Layer, open_session
from vision.optimize.patches import Patches
from vision.optimize.sparsity import GROUP, KEPT, prune_by_magnitude

SAMPLES: Final = 16384
"""Number of sampled output positions of a layer, over all frames. The moments are computed from their inputs."""

_DAMPING: Final = 0.01  # fraction of the mean of the diagonal of H that is added to the diagonal
_BLOCK: Final = 128  # columns after which the other columns are updated; a multiple of GROUP

Matrix = NDArray[np.float64]


class LeastSquares:
    """Pruner of layers that repairs the remaining weights, so that the outputs change as little as possible."""

    def __init__(self, dense: Graph, spec: ModelSpec, frames: Frames, count: int) -> None:
        """Prepare the repair.

        Args:
            dense: the unpruned model.
            spec: spec of the model.
            frames: calibration frames.
            count: maximum number of frames to use.
        """
        self._dense = dense
        self._spec = spec
        self._frames = frames
        self._count = min(count, len(frames.paths))

    def __call__(self, graph: Graph, layer: Layer) -> None:
        """Prune a layer of `graph`. All layers before this layer must already be pruned.

        Layers with groups are pruned by magnitude, without repair.
        """
        if layer.group > 1:
            prune_by_magnitude(graph, layer)
            return
        patches = Patches(graph, layer)
        moments = self._moments(graph, layer, patches)
        weights = patches.matrix(graph.array(layer.weights)).astype(np.float64)
        target, hessian = moments.target(weights, centered=bool(layer.bias))
        mask = sparse_gpt_mask(target, hessian)
        pruned = fit(target, hessian, mask)
        graph.replace(layer.weights, patches.weights(pruned))
        if layer.bias:
            shift = weights @ moments.dense_mean - pruned @ moments.mean
            graph.replace(layer.bias, (graph.array(layer.bias) + shift).astype(np.float32))

    def _moments(self, graph: Graph, layer: Layer, patches: Patches) -> Moments:
        """Return the `Moments` of a layer's inputs, in the unpruned model and in `graph`, which is being pruned."""
        moments = Moments(patches.columns)
        per_frame = -(-SAMPLES // self._count)
        random = np.random.default_rng(1)
        pairs = zip(self._inputs(self._dense, layer), self._inputs(graph, layer), strict=True)
        for dense, mine in pairs:
            places = patches.places(dense.shape, per_frame, random)
            moments.add(patches.rows(dense, places), patches.rows(mine, places))
        return moments

    def _inputs(self, graph: Graph, layer: Layer) -> Iterator[NDArray[Any]]:
        """Yield the input of a layer for each batch of frames."""
        session = open_session(graph.with_outputs([layer.activations]))
        for inputs, count in Feed(session, self._spec).batches(self._frames.images(self._count)):
            (values,) = run(session, inputs, self._spec.name)
            yield values[:count] if values.ndim > 2 else values


class Moments:
    """Sums of products of a layer's inputs over all samples.

    The inputs are called x in the model that is being pruned, and d (dense) in the unpruned model.
    """

    def __init__(self, columns: int) -> None:
        self._count = 0
        self._xx = np.zeros((columns, columns))
        self._dx = np.zeros((columns, columns))
        self._x = np.zeros(columns)
        self._d = np.zeros(columns)

    def add(self, dense: NDArray[np.float32], mine: NDArray[np.float32]) -> None:
        """Add the same samples (N, columns) from the unpruned model (`dense`) and the pruned model (`mine`)."""
        self._count += len(mine)
        self._xx += mine.T @ mine
        self._dx += dense.T @ mine
        self._x += mine.sum(axis=0, dtype=np.float64)
        self._d += dense.sum(axis=0, dtype=np.float64)

    @property
    def mean(self) -> Matrix:
        return self._x / self._count

    @property
    def dense_mean(self) -> Matrix:
        return self._d / self._count

    def target(self, weights: Matrix, *, centered: bool) -> tuple[Matrix, Matrix]:
        """Return the best weights (rows, columns) without the 2:4 pattern, and the damped second moments H of x.

        The best weights map x to the outputs of the unpruned layer. If `centered` is True, the bias absorbs the means.
        """
        hessian, cross = self._xx / self._count, self._dx / self._count
        if centered:
            hessian = hessian - np.outer(self.mean, self.mean)
            cross = cross - np.outer(self.dense_mean, self.mean)
        damping = _DAMPING * float(np.diag(hessian).mean()) or 1.0
        diagonal = np.diag_indices_from(hessian)
        hessian[diagonal] += damping
        cross[diagonal] += damping  # pulls the weights to the original ones, not to 0
        return np.linalg.solve(hessian, (weights @ cross).T).T, hessian


def sparse_gpt_mask(target: Matrix, hessian: Matrix) -> NDArray[np.bool_]:
    """Return a mask (rows, columns) of the weights to keep, two of every four columns, by the rule of SparseGPT.

    A weight w in column j costs ``w ** 2 / inverse[j, j] ** 2``, where `inverse` is the upper Cholesky factor of the
    inverse of `hessian`. After each column, the columns to its right are changed to make up for the pruned weights.
    """
    weights = target.copy()
    mask = np.ones(weights.shape, bool)
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for start in range(0, weights.shape[1], _BLOCK):
        end = min(start + _BLOCK, weights.shape[1])
        errors = np.zeros((len(weights), end - start))
        for column in range(start, end):
            if column % GROUP == 0:
                group = slice(column, column + GROUP)
                cost = weights[:, group] ** 2 / np.diag(inverse)[group] ** 2
                dropped = np.argsort(cost, axis=1, kind="stable")[:, : GROUP - KEPT]
                np.put_along_axis(mask[:, group], dropped, False, axis=1)
            pruned = np.where(mask[:, column], 0.0, weights[:, column]) / inverse[column, column]
            weights[:, column:end] -= np.outer(pruned, inverse[column, column:end])
            errors[:, column - start] = pruned
        weights[:, end:] -= errors @ inverse[start:end, end:]
    return mask


def fit(target: Matrix, hessian: Matrix, mask: NDArray[np.bool_]) -> Matrix:
    """Return the weights whose outputs are closest to those of the weights `target`, if `mask` limits them.

    The weights are zero where `mask` is False. `hessian` contains the second moments of the layer's inputs.
    """
    right = target @ hessian
    result = np.zeros_like(target)
    for row, kept in enumerate(mask):
        columns = np.flatnonzero(kept)
        result[row, columns] = np.linalg.solve(hessian[np.ix_(columns, columns)], right[row, columns])
    return result
