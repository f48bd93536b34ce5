"""Golden inputs replayed through Triton: its own word for ready proves nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import numpy as np

from gateway.inference.contract import Array, Contract
from gateway.inference.repository import Golden
from gateway.operations.errors import InferenceError, ModelRefused

Ask = Callable[[Contract, Mapping[str, Array], float], Awaitable[dict[str, Array]]]


async def replay(contract: Contract, golden: Golden, ask: Ask, deadline_s: float) -> None:
    """Ask for the golden answers, once for each instance at least. Raises ModelRefused, CallFailed."""
    try:
        contract.check(golden.inputs)
    except InferenceError as error:
        raise ModelRefused(
            f"The model {contract.name} is refused: its golden.npz does not fit. {error.detail}"
        ) from None
    times = 1 if contract.instances == 1 else 2 * contract.instances
    for answer in await _together(contract, golden.inputs, ask, deadline_s, times):
        for output, expected in golden.expected.items():
            if not _equal(answer[output], expected, golden.tolerance):
                raise ModelRefused(
                    f"The model {contract.name} is refused: its answers to golden.npz are not the exporter's. Export "
                    "it again for this host."
                )


async def canary(contract: Contract, golden: Golden, ask: Ask, deadline_s: float) -> None:
    """Ask each instance for one golden row, at little cost: does it still answer at all? Raises CallFailed."""
    rows = {name: array[:1] if contract.max_batch_size else array for name, array in golden.inputs.items()}
    await _together(contract, rows, ask, deadline_s, contract.instances)


async def _together(
    contract: Contract, batch: Mapping[str, Array], ask: Ask, deadline_s: float, times: int
) -> list[dict[str, Array]]:
    """Ask the same several times at once, and wait for all before the first failure is raised."""
    answers = await asyncio.gather(*(ask(contract, batch, deadline_s) for _ in range(times)), return_exceptions=True)
    good = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        good.append(answer)
    return good


def _equal(answer: Array, expected: Array, tolerance: float) -> bool:
    if answer.shape != expected.shape:
        return False
    difference = np.abs(answer.astype(np.float64) - expected.astype(np.float64))
    # A NaN compares false: it never passes.
    return bool((difference <= tolerance).all())
