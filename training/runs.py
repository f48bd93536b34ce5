"""Run folders: recipe.toml, weights.safetensors, metrics.json, manifest.json, log.jsonl; `work/` while training."""

import json
import os
import platform
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from training.data.common import Source
from training.data.seen import Seen
from training.errors import RecipeInvalid, RunInvalid, TrainingError
from training.files import json_bytes, sha256_bytes, sha256_file, write_atomic

_CHECKOUT = Path(__file__).resolve().parents[1]
RELEASED = _CHECKOUT / "training" / "released"
_TOOLS = ("torch", "numpy", "scikit-learn", "scipy", "safetensors", "simplejpeg")


class Part(BaseModel):
    """A section of a recipe or of a card: it cannot be changed, and holds no setting that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(Part):
    """What every recipe has. `system` and `stage` say which code reads the rest."""

    name: str
    system: str
    stage: str
    seed: int


R = TypeVar("R", bound=Recipe)
C = TypeVar("C", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises RecipeInvalid."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RecipeInvalid(f"The recipe {path.name} cannot be read. Name an existing recipe file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeInvalid(f"The recipe {path.name} is not valid TOML: {error}.") from None


def parse_recipe(kind: type[R], values: Mapping[str, Any]) -> R:
    """A recipe's values as its typed class. Raises RecipeInvalid with the name of the first wrong setting."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        where, what = _first_fault(error)
        raise RecipeInvalid(f"The recipe's setting {where} is not valid: {what}.") from None


def parse_card(kind: type[C], path: Path, name: str, refusal: type[TrainingError]) -> C:
    """A card's file as its typed class. Raises RecipeInvalid for what is no TOML, and `refusal` where a setting is
    wrong, with the card's `name` and the setting's."""
    try:
        return kind.model_validate(read_toml(path))
    except ValidationError as error:
        where, what = _first_fault(error)
        raise refusal(f"{name} is not valid{where and f' at {where}'}: {what}.") from None


def _first_fault(error: ValidationError) -> tuple[str, str]:
    """The first wrong setting's dotted name, empty where it is no single one, and what is wrong with it."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"]


def runs_folder() -> Path:
    """Where run folders go: PATHSERVE_RUNS, or `runs` beside the checkout."""
    return Path(os.environ.get("PATHSERVE_RUNS") or _CHECKOUT.parent / "runs")


@dataclass(frozen=True, slots=True)
class Pretraining:
    """Weights that a run started from."""

    package: str
    version: str
    file: str
    sha256: str
    licence: str
    trained_on: str


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run folder, checked against its own digests."""

    path: Path
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.recipe["name"])

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def weights_sha256(self) -> str:
        return str(self.manifest["weights_sha256"])


def open_run(path: Path) -> Run:
    """A finished run folder. Raises RunInvalid where a file is missing, unreadable or differs from the manifest."""
    if not path.is_dir():
        raise RunInvalid(f"The run folder {path.name} does not exist. Train it first, or name another.")
    manifest = read_json(path, "manifest.json")
    metrics = read_json(path, "metrics.json")
    for file, key in (
        ("recipe.toml", "recipe_sha256"),
        ("weights.safetensors", "weights_sha256"),
        ("metrics.json", "metrics_sha256"),
    ):
        if not (path / file).is_file():
            raise RunInvalid(f"The run folder {path.name} holds no {file}. Copy the folder again, or train it again.")
        if sha256_file(path / file) != manifest.get(key):
            raise RunInvalid(
                f"{file} of the run folder {path.name} differs from its digest in manifest.json: "
                "it was changed or truncated. Copy the folder again, or train it again."
            )
    for key in ("git_commit", "data", "pretraining", "starts_from"):
        if key not in manifest:
            raise RunInvalid(f"manifest.json of the run folder {path.name} lacks {key}. Train it again.")
    return Run(path, read_toml(path / "recipe.toml"), manifest, metrics)


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """A JSON file of a run folder. Raises RunInvalid."""
    try:
        content = json.loads((folder / file).read_bytes())
    except OSError:
        raise RunInvalid(f"The run folder {folder.name} holds no {file}: its training has not ended.") from None
    except ValueError:
        raise RunInvalid(f"{file} of the run folder {folder.name} is truncated. Copy the folder again.") from None
    if not isinstance(content, dict):
        raise RunInvalid(f"{file} of the run folder {folder.name} is not a run's. Train it again.")
    return content


def find_run(name: str) -> Run:
    """The run of a recipe by the recipe's name: in the runs folder, else among the released ones. Raises RunInvalid."""
    if (runs_folder() / name).is_dir():
        return open_run(runs_folder() / name)
    for path in sorted(RELEASED.glob("*/recipe.toml")):
        if read_toml(path).get("name") == name:
            return open_run(path.parent)
    raise RunInvalid(f"There is no run of the recipe {name}. Train it first: it is what this recipe starts from.")


class RunWriter:
    """A run folder while its training goes on. `finish` makes it whole."""

    def __init__(self, path: Path, recipe_text: bytes, *, resume: bool) -> None:
        self.path, self._recipe_sha256 = path, sha256_bytes(recipe_text)
        present = path.is_dir() and any(path.iterdir())
        if present and not resume:
            raise RunInvalid(f"The run folder {path.name} is not empty. Say --resume, or choose another with --out.")
        if present and (path / "recipe.toml").is_file() and (path / "recipe.toml").read_bytes() != recipe_text:
            raise RunInvalid(f"The run folder {path.name} was begun with another recipe. Choose another with --out.")
        if (path / "manifest.json").is_file():
            raise RunInvalid(f"The run {path.name} is finished: there is nothing to resume. Choose another with --out.")
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "recipe.toml", recipe_text)
        self._mend_log()
        self._cpu_start_s = time.process_time() - self._spent_s()
        self._git_commit, self._git_changed_files = _git_state()
        self._begun = self._first_start()

    @property
    def work(self) -> Path:
        """Checkpoints and caches; removed when the run is finished."""
        return self.path / "work"

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"

    def _first_start(self) -> dict[str, Any] | None:
        """At which commit, with how many changed files, the run was begun: it may be finished at another. None where
        a run has logged and not kept it."""
        kept = self.work / "begun.json"
        if not kept.is_file() and (self.path / "log.jsonl").is_file():
            return None
        if not kept.is_file():
            now = {"git_commit": self._git_commit, "git_changed_files": self._git_changed_files}
            write_atomic(kept, json_bytes(now))
        return read_json(self.work, kept.name)

    def _mend_log(self) -> None:
        """Cut off a last line that a killed process did not finish."""
        log = self.path / "log.jsonl"
        if log.is_file() and (text := log.read_bytes()) and not text.endswith(b"\n"):
            write_atomic(log, text[: text.rfind(b"\n") + 1])

    def _spent_s(self) -> float:
        """CPU time of the run's earlier processes, as far as they logged it."""
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        return float(json.loads(lines[-1])["cpu_s"]) if lines else 0.0

    def log(self, event: str, **values: Any) -> None:
        """One line of log.jsonl."""
        line = {"event": event, "cpu_s": round(time.process_time() - self._cpu_start_s, 2), **values}
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(
        self,
        *,
        metrics: Mapping[str, Any],
        seed: int,
        data: Iterable[Source] = (),
        pretraining: Iterable[Pretraining] = (),
        starts_from: Mapping[str, Run] | None = None,
        seen: Seen | None = None,
    ) -> Run:
        """Write metrics and, last, the manifest; remove `work/`. A run that learns from images says by `seen` which
        groups and pictures they were: the bench's leakage rules read it. What the runs that it starts from were made
        of is written down as `inherited`, since their licences bind it and their folders may be gone."""
        cpu_s = round(time.process_time() - self._cpu_start_s, 1)
        write_atomic(self.path / "metrics.json", json_bytes({**metrics, "cpu_s": cpu_s}))
        manifest = {
            "schema": "pathserve-run-1",
            "recipe_sha256": self._recipe_sha256,
            "weights_sha256": sha256_file(self.weights_path),
            "metrics_sha256": sha256_file(self.path / "metrics.json"),
            "seed": seed,
            "git_commit": self._git_commit,
            "git_changed_files": self._git_changed_files,
            **({"begun": self._begun} if self._begun else {}),
            "data": [asdict(source) for source in data],
            "pretraining": [asdict(entry) for entry in pretraining],
            "starts_from": {
                role: {"recipe": run.name, "weights_sha256": run.weights_sha256}
                for role, run in (starts_from or {}).items()
            },
            "inherited": {key: _united(starts_from or {}, key) for key in ("data", "pretraining")},
            **({"seen": seen.record()} if seen else {}),
            "tools": {"python": platform.python_version()} | {name: metadata.version(name) for name in _TOOLS},
        }
        write_atomic(self.path / "manifest.json", json_bytes(manifest))
        shutil.rmtree(self.work)
        return open_run(self.path)


def resealed(run: Run, out: Path, recipe_text: bytes, metrics: Mapping[str, Any], files: Mapping[str, bytes]) -> Run:
    """A finished run once more, in the folder `out`: the same weights and log, with another recipe's text, figures and
    `files` beside them. The manifest keeps by which recipe the weights were trained (`trained_as`), and when they were
    begun; its commit is that at which the figures were made. Raises RunInvalid where the folder is not empty."""
    if out.is_dir() and any(out.iterdir()):
        raise RunInvalid(f"The run folder {out.name} is not empty. Choose another with --out.")
    out.mkdir(parents=True, exist_ok=True)
    commit, changed_files = _git_state()
    before = {key: run.manifest[key] for key in ("git_commit", "git_changed_files")}
    written = {
        "recipe.toml": recipe_text,
        "weights.safetensors": run.weights_path.read_bytes(),
        "log.jsonl": (run.path / "log.jsonl").read_bytes(),
        "metrics.json": json_bytes(metrics),
        **files,
    }
    manifest = {
        **run.manifest,
        "recipe_sha256": sha256_bytes(recipe_text),
        "metrics_sha256": sha256_bytes(written["metrics.json"]),
        "git_commit": commit,
        "git_changed_files": changed_files,
        "begun": run.manifest.get("begun", before),
        "trained_as": run.manifest.get("trained_as", {"recipe_sha256": run.manifest["recipe_sha256"]}),
    }
    for name, data in written.items():
        write_atomic(out / name, data)
    write_atomic(out / "manifest.json", json_bytes(manifest))
    return open_run(out)


def _united(parents: Mapping[str, Run], key: str) -> list[dict[str, Any]]:
    """The parents' own entries and those that they have inherited, each once."""
    entries = [
        entry
        for run in parents.values()
        for entry in (*run.manifest[key], *run.manifest.get("inherited", {}).get(key, ()))
    ]
    return list({tuple(entry.items()): entry for entry in entries}.values())


def _git_state() -> tuple[str, int]:
    """The commit of the checkout ("unknown" outside git) and how many training files differ from it."""
    git = ("git", "-C", str(_CHECKOUT))
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "training/*.py", "training/recipes"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown", 0
    return commit, len(changed)
