"""A tiny detector's recipe, for a run of seconds or a network that nobody trained."""


def detector_recipe(*, name: str, queries: int, data_mpp: float, merging: str, training: str) -> str:
    """In TOML: a convolutional backbone of two levels on fields of 64 pixels. `merging`, `training`: what stands in
    these tables, the training's beside batch, rate and warm-up."""
    return f"""
name = "{name}"
system = "smartccs"
stage = "detect"
seed = 5
network.backbone = {{arch = "conv", widths = [8, 16], levels = 2}}
network.width = 32
network.heads = 2
network.layers = 1
network.ffn = 16
network.queries = {queries}
data = {{side_px = 64, mpp = {data_mpp}, overlap_px = 16}}
merging = {{{merging}}}
training = {{batch = 2, rate = 1e-3, warmup = 1, {training}}}
"""
