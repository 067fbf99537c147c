"""A fitted pipeline packed as a Bento: the compiled scorer, the service, nothing of the platform.

The only module of the pure half that builds with BentoML; what becomes of a Bento is in `release`.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_predict.compiling import compile_pipeline
from health_predict.release import NAME, Bento, ReleaseError
from health_predict.settings import ROOT

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def build_bento(
    pipeline: "Pipeline", facts: Mapping[str, Any], version: str, bentoml_home: Path
) -> Bento:
    """Builds the Bento of one model version.

    Args:
        pipeline: the fitted pipeline.
        facts: what the service tells of the model; JSON values only.
        version: model version, also the Bento's.
        bentoml_home: BentoML's store.

    Raises:
        ReleaseError: this process already uses another BentoML store.
    """
    bentoml = _bentoml(bentoml_home)
    tag = f"{NAME}:{version}"
    for kept in ("bentos", "models"):
        # Of an attempt that did not end well, perhaps incomplete: BentoML could not even list it.
        left = bentoml_home / kept / NAME / version
        if left.exists():
            shutil.rmtree(left)
    with bentoml.models.create(tag) as model:
        compile_pipeline(pipeline, {**facts, "bento_tag": tag}, Path(model.path))
    with tempfile.TemporaryDirectory() as context:
        # Built where it stands, BentoML would look at each of the virtual environment's files.
        _copy_build_context(Path(context))
        with contextlib.chdir(context):  # BentoML reads a Dockerfile from where it runs only
            bento = bentoml.bentos.build_bentofile(
                str(Path(context, "bentofile.yaml")),
                build_ctx=context,
                version=version,
                args={"model": tag},
                reload=True,  # or a second Bento of this process would name the first one's model
            )
    found, size = digest(bentoml_home, tag)
    return Bento(str(bento.tag), version, found, size)


def _bentoml(home: Path) -> Any:
    os.environ["BENTOML_HOME"] = str(home)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    home.mkdir(parents=True, exist_ok=True)
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer

    if Path(BentoMLContainer.bentoml_home.get()).resolve() != home.resolve():
        raise ReleaseError(
            f"this process already uses the BentoML store {BentoMLContainer.bentoml_home.get()}: "
            f"use {home} from a process of its own"
        )
    return bentoml


def _copy_build_context(folder: Path) -> None:
    import yaml

    recipe = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    docker = recipe["docker"]
    files = [
        *("bentofile.yaml", docker["dockerfile_template"], docker["setup_script"]),
        *(recipe["python"]["requirements_txt"], *recipe["include"]),
    ]
    for path in (path for name in files for path in ROOT.glob(name)):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def digest(bentoml_home: Path, tag: str) -> tuple[str, int]:
    """Returns the sha256 over names and contents of what makes a Bento, and its bytes.

    That is its source, its image recipe with the lock file, and its model.
    """
    name, version = tag.split(":")
    bento = bentoml_home / "bentos" / name / version
    total, size = hashlib.sha256(), 0
    for folder in (bento / "src", bento / "env", bentoml_home / "models" / name / version):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if path.suffix == ".pyc" or path.name == "model.yaml":  # holds the time it was made
                continue
            content = path.read_bytes()
            total.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
            size += len(content)
    return total.hexdigest(), size
