"""Training steps recorded as CUDA graphs: small networks are bound by launching kernels, not by computing."""

from collections.abc import Callable

import torch
from torch import Tensor

_EAGER_CALLS = 3  # libraries choose kernels and optimizers make their state, neither of which can be recorded


class Replayed:
    """A function of tensors that runs as it is a few times and is then recorded and replayed.

    It must not depend on tensor values in Python, nor wait for the GPU. Its inputs keep their shapes; what it returns
    is overwritten by the next call.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], device: torch.device) -> None:
        """Take the function; nothing runs yet.

        Args:
            function: takes tensors or None, always None for the same ones, and returns named tensors.
            device: the GPU.
        """
        self._function = function
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor | None] = []
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, *inputs: Tensor | None) -> dict[str, Tensor]:
        """Call the function, or replay it with these inputs."""
        if self._calls < _EAGER_CALLS:
            self._calls += 1
            return self._run_eagerly(inputs)
        if self._graph is None:
            self._graph = self._record(inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        self._graph.replay()
        return self._outputs

    def _run_eagerly(self, inputs: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        # On the stream of the recording, which autograd's accumulators remember.
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        caller.wait_stream(self._stream)
        return outputs

    def _record(self, inputs: tuple[Tensor | None, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = [None if given is None else given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._outputs = self._function(*self._inputs)
        return graph
