"""What changes where one version of a model takes the place of another, and what may not."""

from gateway.domain.model import ModelCard
from gateway.inference import Contract, ModelRepository
from gateway.operations.errors import ModelNotLoaded, ModelRefused


def changes(repository: ModelRepository, old: str, new: str) -> tuple[str, ...]:
    """Sentences about what users will see of folder `new` in place of `old`; none where only the answers differ.

    Nothing can be said where the old one cannot be read any more. Raises ModelNotLoaded, and ModelRefused where the new
    one cannot be read, or where it is another kind of model, so that the protocol could not use it.
    """
    after, after_contract = repository.card(new), repository.contract(new)
    try:
        before, before_contract = repository.card(old), repository.contract(old)
    except (ModelNotLoaded, ModelRefused):
        return ()
    if after.kind != before.kind or _form(after_contract) != _form(before_contract):
        raise ModelRefused(
            f"The model {new} cannot take the place of {old}: it is of another kind, or takes and gives other tensors. "
            "Promote a version of the same form."
        )
    return tuple(_differences(before, after))


def _form(contract: Contract) -> tuple[frozenset[tuple[str, str, int]], frozenset[tuple[str, str, int]]]:
    """The tensors by name, type and rank; sizes are the card's matter (tile, labels)."""
    inputs, outputs = (
        frozenset((spec.name, spec.datatype, len(spec.dims)) for spec in specs)
        for specs in (contract.inputs, contract.outputs)
    )
    return inputs, outputs


def _differences(before: ModelCard, after: ModelCard) -> list[str]:
    found = []
    if (before.mpp, before.tile_px) != (after.mpp, after.tile_px):
        sizes = [f"{card.tile_px} px at {card.mpp:g} µm" for card in (before, after)]
        found.append(f"Tiles change: {sizes[0]} before, {sizes[1]} after.")
    codes = [
        {(label.code.scheme, label.code.code): label.code.display for label in card.labels if label.supported}
        for card in (before, after)
    ]
    gone = [display for code, display in codes[0].items() if code not in codes[1]]
    fresh = [display for code, display in codes[1].items() if code not in codes[0]]
    if gone or fresh:
        found.append(
            "Report codes change: "
            + "; ".join(f"{what} {', '.join(names)}" for what, names in (("no more", gone), ("new", fresh)) if names)
            + "."
        )
    points = [{point.name: point.min_probability for point in card.operating_points} for card in (before, after)]
    if points[0] != points[1]:
        shown = [", ".join(f"{name} {value:g}" for name, value in each.items()) or "none" for each in points]
        found.append(f"Operating points change: {shown[0]} before, {shown[1]} after.")
    if before.intended_use != after.intended_use:
        found.append("The intended use changes: compare `pathserve models show` of both versions.")
    return found
