"""Print what the project measures of its own form, and fail where a limit is passed.

Lengths of functions, classes, the training loop and the README; which folders import a model's package; words that the
glossary in CONTRIBUTING.md replaces; ``print`` in the library; errors without a code. Which part may import which is
checked by ``lint-imports`` (pyproject.toml).
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_CLASS = 250
MOST_LINES_OF_THE_LOOP = 300
MOST_LINES_OF_THE_README = 100

LOOP = Path("src/train/trainer.py")
MODEL_PACKAGES = {"sam2", "training", "transformers"}

IDENTIFIERS = {
    "told": "messages, logged, format_error",
    "Whole": "BatchTotals",
    "Piece": "LossTerms",
    "run_piece": "an objective's losses",
    "labelled_piece": "supervised_loss",
    "distilled_piece": "distillation_loss",
    "penalty_piece": "weight_penalty",
    "Beginning": "AdapterSetup",
    "together": "process_group",
    "meet": "barrier",
    "first_alone": "main_process_first",
    "from_first": "broadcast_object",
    "on_first": "main_process_only, of a callback",
    "check_alike": "assert_consistent",
    "is_first": "is_main_process",
    "Part": "Shard",
    "WHOLE": "ALL",
    "Distiller": "Distillation",
    "_Lesson": "TeacherTarget",
    "taught": "teacher_out",
    "said": "student_out",
    "teaches": "is_due",
    "things_on": "propose_masks",
    "find_things": "pseudo_labels",
    "SAME_THING": "NMS_IOU",
    "SURE": "LOGIT_CLAMP",
    "ROOM": "CACHE_BYTES",
    "weaken": "scale_adapters",
    "weakened": "scaled_adapters",
    "strength": "adapter_scale",
    "strengths": "adapter_scales",
    "Watch": "ValidationMonitor",
    "look": "evaluate_extra",
    "Board": "TensorBoardLogger",
    "Stops": "GracefulShutdown",
    "Address": "SampleKey",
    "addresses": "keys",
    "is_known": "is_cached",
    "move_earlier_run_aside": "archive_previous_run",
    "patience_is_over": "should_stop_early",
    "judged_differently": "eval_settings_changed",
    "unmoved_loss": "check_loss_plateau",
    "chosen_EN": "selected_EN",
    "evenness": "load_balance",
    "record_use": "measure_utilization",
    "GroupedLinear": "MultiAdapterLinear",
    "add_group": "add_adapter",
    "name_adapters": "set_adapter",
    "UNNAMED": "DEFAULT_ADAPTER",
    "adapters_disabled": "disable_adapters",
    "put_adapters_in": "inject_adapters",
    "_put_in": "inject_adapters",
    "_what_was_loaded": "load_summary",
    "other_light": "photometric_jitter",
    "lights": "photometric augmentations",
    "make_lean": "use_fast_cpu_kernels",
    "make_stock": "use_reference_kernels",
    "following": "track_video",
    "follow": "track_video",
    "Places": "ExpertMapRecorder",
    "Contents": "DatasetFingerprint",
    "Finding": "Issue",
    "findings": "issues",
    "Log": "IssueLog",
    "Look": "DatasetSummary",
    "look_at": "summarize",
    "Footage": "FrameStream",
    "Material": "DemoInput",
    "AT_HAND": "LRU_MIN_ITEMS",
    "_Recent": "LRUCache",
    "kept_domains": "retention_domains",
    "pooled": "aggregate",
}
"""Names of earlier versions, and what to call the thing. Words with other meanings, such as ``total``, are left out."""

IDENTIFIERS_BY_PLACE = {
    "src/train/trainer.py": {"window": "micro_batches", "place": "micro_step"},
    "src/train/step.py": {"window": "micro_batches", "place": "micro_step"},
    "src/gating": {"describe": "gate_features"},
}
"""Names that are fine elsewhere."""

PHRASES = {
    r"told": "logged, reported, listed",
    r"anew": "again",
    r"lies": "is, is stored in",
    r"the house": "the architecture, the code",
    r"what came out": "results",
    r"the base's word": "the model's prediction",
    r"to and fro": "reflect (ping-pong) padding",
    r"turned back": "reflect (ping-pong) padding",
    r"of which [^.;:]{1,60} that of": "a second sentence",
}
"""Patterns of prose, and what to write."""


@dataclass(frozen=True)
class Measure:
    """A number with a limit, and the lines that say what passes it."""

    name: str
    value: int
    limit: int
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        mark = "ok  " if self.value <= self.limit else "FAIL"
        lines = [f"{mark} {self.name}: {self.value} (at most {self.limit})"]
        return "\n       ".join([*lines, *self.details])


def measure(root: Path = ROOT) -> list[Measure]:
    """Return all measures of a clone."""
    files = sorted((root / "src").rglob("*.py"))
    trees = {file.relative_to(root): ast.parse(file.read_text(encoding="utf-8")) for file in files}
    texts = [file for file in [root / "README.md", *sorted((root / "docs").rglob("*.md"))] if file.is_file()]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        _longest("longest function of src", trees, functions, MOST_LINES_OF_A_FUNCTION),
        _longest("longest class of src", trees, (ast.ClassDef,), MOST_LINES_OF_A_CLASS),
        Measure(f"lines of {LOOP}", _lines(root / LOOP), MOST_LINES_OF_THE_LOOP),
        Measure("lines of README.md", _lines(root / "README.md"), MOST_LINES_OF_THE_README),
        _none("imports of sam2, training or transformers outside src/models", _model_imports(trees)),
        _none("print in src outside src/cli", _prints(trees)),
        _none("raise UserError without a code", _errors_without_code(trees)),
        _none("identifiers that the glossary replaces, in src", _old_identifiers(root, trees)),
        _none("phrases that the glossary replaces", _old_phrases(root, [*files, *texts])),
    ]


def _lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def _none(name: str, places: Iterable[str]) -> Measure:
    found = tuple(places)
    return Measure(name, len(found), 0, found)


def _longest(name: str, trees: dict[Path, ast.Module], kinds: tuple[type[ast.AST], ...], limit: int) -> Measure:
    """Return the length of the longest definition; the details list all that are too long."""
    lengths = {
        f"{file}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    longest = max(lengths, key=lengths.__getitem__)
    shown = [place for place in lengths if lengths[place] > limit] or [longest]
    return Measure(name, lengths[longest], limit, tuple(f"{place}: {lengths[place]} lines" for place in shown))


def _model_imports(trees: dict[Path, ast.Module]) -> Iterator[str]:
    for file, tree in trees.items():
        if not file.is_relative_to("src/models"):
            for node in ast.walk(tree):
                for package in _imported(node) & MODEL_PACKAGES:
                    yield f"{file}:{node.lineno} imports {package}"  # type: ignore[attr-defined]


def _imported(node: ast.AST) -> set[str]:
    """Return the top packages that a statement or a call of ``import_module`` imports."""
    if isinstance(node, ast.Import):
        return {name.name.split(".")[0] for name in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {str(node.module).split(".")[0]}
    if isinstance(node, ast.Call) and _name(node.func) in ("import_module", "find_spec", "__import__"):
        return {str(each.value).split(".")[0] for each in node.args if isinstance(each, ast.Constant)}
    return set()


def _name(node: ast.AST) -> str:
    """Return the last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _prints(trees: dict[Path, ast.Module]) -> Iterator[str]:
    for file, tree in trees.items():
        if not file.is_relative_to("src/cli"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    yield f"{file}:{node.lineno}"


def _errors_without_code(trees: dict[Path, ast.Module]) -> Iterator[str]:
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) == "UserError":
                named = any(keyword.arg in ("code", None) for keyword in node.keywords)
                if len(node.args) < 2 and not named:
                    yield f"{file}:{node.lineno}"


def _old_identifiers(root: Path, trees: dict[Path, ast.Module]) -> Iterator[str]:
    for file in trees:
        old = dict(IDENTIFIERS)
        for folder, names in IDENTIFIERS_BY_PLACE.items():
            if file.is_relative_to(folder):
                old |= names
        source = (root / file).read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME and token.string in old:
                yield f"{file}:{token.start[0]} {token.string} → {old[token.string]}"


def _old_phrases(root: Path, files: Iterable[Path]) -> Iterator[str]:
    """Look through comments and strings of modules, and through all of other files."""
    patterns = {
        re.compile(rf"\b{pattern}\b".replace(" ", r"\s+"), re.IGNORECASE): advice for pattern, advice in PHRASES.items()
    }
    for file in files:
        for first, text in _prose(file):
            for pattern, advice in patterns.items():
                for found in pattern.finditer(text):
                    line = first + text.count("\n", 0, found.start())
                    yield f"{file.relative_to(root)}:{line} {' '.join(found[0].split())} → {advice}"


def _prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yield texts for people, each with the number of its first line."""
    source = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        yield 1, source
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help="the clone (default: this one)")
    measures = measure(parser.parse_args().root)
    print("\n".join(map(str, measures)))
    return int(any(each.value > each.limit for each in measures))


if __name__ == "__main__":
    sys.exit(main())
