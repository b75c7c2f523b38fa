"""Break one line at a time and see whether the tests notice.

    python tools/mutants.py                    each mutant against the fast tests, and what survives against the others too
    python tools/mutants.py --list             only tell what is broken, and where
    python tools/mutants.py NAME ...           only these

Works in a copy of the tree. The tests of the broken module's own folder run first, then all others; the first failure ends a
run. Exit code 1 where a mutant survives both.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = {"fast": [], "others": ["-m", "slow or browser"]}
LEFT_OUT = shutil.ignore_patterns(
    ".git", "__pycache__", ".pytest_cache", ".ruff_cache", "output", "site", "node_modules"
)


@dataclass(frozen=True)
class Mutant:
    """One broken line. file: in the package; old: text that stands there once; what: what is wrong then."""

    name: str
    file: str
    old: str
    new: str
    what: str


MUTANTS = (
    # engine
    Mutant(
        "closed form",
        "engine/attention.py",
        "factors = (weights / (1 - weights).clamp_min(0.25))",
        "factors = (weights / (1 - weights).clamp_min(0.75))",
        "differences of keys with much weight are too small",
    ),
    Mutant(
        "dominant key",
        "engine/attention.py",
        "recomputed = inside & (weights[heads, row] > 0.5)",
        "recomputed = inside & (weights[heads, row] > 0.9)",
        "the dominant key's difference is not formed from the logits",
    ),
    Mutant(
        "remainder",
        "engine/attention.py",
        "differences.add_(attention.remainder.view(n_groups, -1, head_dim)).mul_(factors)",
        "differences.mul_(factors)",
        "what rounding took from the output is lost",
    ),
    Mutant(
        "cosine",
        "engine/attention.py",
        "cosine = torch.where(parallel >= 0, acute, 1 - parallel / masked)",
        "cosine = 1 - parallel / masked",
        "small cosine distances cancel",
    ),
    Mutant(
        "norm",
        "engine/riding/norms_and_gates.py",
        "scale = -growth / (root * masked_root * (root + masked_root))  # r' - r",
        "scale = -growth / (2 * root * root * root)  # r' - r",
        "the norm's difference is of first order only",
    ),
    Mutant(
        "silu",
        "engine/riding/norms_and_gates.py",
        "return (differences * (1 + masked_tanh) + gate * sigmoid_difference) / 2",
        "return (differences * (1 + half_tanh) + gate * sigmoid_difference) / 2",
        "the sigmoid before the change is taken",
    ),
    Mutant(
        "attention branch",
        "engine/riding/arithmetic.py",
        "_full(d + (other_d if other_factor == 1 else other_d * other_factor), total)",
        "_full(other_d if other_factor == 1 else other_d * other_factor, total)",
        "a sum has the differences of one operand alone: Full lacks a branch",
    ),
    Mutant(
        "self-check",
        "engine/riding/boarding.py",
        "self_check=(errors / sizes.clamp_min(1e-30)).max(),",
        "self_check=(errors / sizes.clamp_min(1e-30)).min(),",
        "the self-check takes the smallest difference",
    ),
    Mutant(
        "padding",
        "engine/riding/engine.py",
        "n_positions = self._held + self._fed - plan.padding",
        "n_positions = self._held + self._fed",
        "left padding counts as positions",
    ),
    Mutant(
        "window",
        "engine/masked_attention.py",
        "open_here = self._last >= layer",
        "open_here = self._last > layer",
        "a window of layers ends one too early",
    ),
    Mutant(
        "mean value",
        "engine/masked_attention.py",
        "mean = total / seen.sum(dim=-1, keepdim=True)",
        "mean = total / n_keys",
        "the mean of the values counts keys that can't be seen",
    ),
    Mutant(
        "sliding window",
        "engine/taps.py",
        "up_to_own(n_rows, n_keys, device, -window)",
        "up_to_own(n_rows, n_keys, device, -window - 1)",
        "a windowed kernel sees one key more",
    ),
    # results
    Mutant(
        "row order",
        "results/tables.py",
        "positions = np.tile(np.repeat(step.positions.astype(np.int32), n_variants), n_layers)",
        "positions = np.tile(np.tile(step.positions.astype(np.int32), n_variants), n_layers)",
        "rows get the wrong positions",
    ),
    Mutant(
        "checksum",
        "results/store.py",
        'if checksum(*step.of_layers(layers)) != about["distances_crc32"]:',
        "if False:",
        "a table of another run is taken",
    ),
    Mutant(
        "all or nothing",
        "results/files.py",
        "_unlink(created)\n        if isinstance(error, OSError):",
        "pass\n        if isinstance(error, OSError):",
        "a failed write leaves files behind",
    ),
    Mutant(
        "killed while naming",
        "results/files.py",
        "_note_moves(last, temporaries, remove)\n        for",
        "for",
        "a killed run leaves files of two runs under one name",
    ),
    Mutant(
        "other question",
        "results/siblings.py",
        "_question_of(about) != question",
        "False",
        "files of another question stay beside the new ones",
    ),
    Mutant(
        "digits",
        "results/distance_files.py",
        "l2.slice(first, ROWS_PER_CHUNK).cast(pa.string()),",
        "pc.round(l2, 6).slice(first, ROWS_PER_CHUNK).cast(pa.string()),",
        "distances lose digits in CSV and JSON",
    ),
    Mutant(
        "foreign steps",
        "results/foreign_tables.py",
        "first_step, n_layers = int(step.min()), int(layer.max()) + 1",
        "first_step, n_layers = 0, int(layer.max()) + 1",
        "a table that counts steps from 1 is misread",
    ),
    Mutant(
        "schema lengths",
        "results/schema_parts.py",
        "if len(values) != n:",
        "if False:",
        "a list that is too short is taken",
    ),
    Mutant(
        "schema positions",
        "results/schema_parts.py",
        "if not 0 <= number < n:",
        "if False:",
        "a position behind the sequence is taken",
    ),
    Mutant(
        "rows read",
        "results/table_reading.py",
        "if len(table) > n_rows:",
        "if False:",
        "a table with more rows than its meta file says is taken",
    ),
    Mutant(
        "sink rule",
        "results/sinks.py",
        "(known >= least) & (known >= MIN_RATIO * others)",
        "known >= least",
        "short prompts have sinks that are none",
    ),
    # findings
    Mutant(
        "share",
        "findings/impact.py",
        "counted=~np.isin(record.positions, result.sinks if left_out is None else left_out),",
        "counted=np.ones(len(record.positions), dtype=bool),",
        "sinks are counted in the ranking",
    ),
    Mutant(
        "weights",
        "findings/impact.py",
        "return totals if self.comparable else",
        "return np.ones_like(totals) if self.comparable else",
        "a layer counts as much as any other, however little it reads",
    ),
    Mutant(
        "depth",
        "findings/alignment.py",
        "min(high, (layer + 1) * n_bands) - max(low",
        "min(high, (layer + 1) * n_bands) - min(low",
        "layers are put into the wrong bands",
    ),
    Mutant(
        "chance", "findings/chance.py", "n = x.shape[1]", "n = x.shape[0]", "correlations are given for too few tokens"
    ),
    # prompts and models
    Mutant(
        "image marks",
        "prompts/marks.py",
        "if n_marks not in (0, n_images):",
        "if n_marks > n_images:",
        "fewer marks than images are let through",
    ),
    Mutant(
        "phrase",
        "prompts/groups.py",
        "run[bisect_right(starts, start) - 1 : bisect_left(starts, end)]",
        "run[bisect_right(starts, start) - 1 : bisect_left(starts, end) - 1]",
        "a phrase lacks its last token",
    ),
    Mutant(
        "pickles",
        "models/sources.py",
        'any(folder.glob("*.safetensors"))',
        "any(folder.iterdir())",
        "a folder of pickled weights is not refused by name",
    ),
    # studies
    Mutant(
        "digest",
        "studies/digest.py",
        '"dtype": model.dtype,',
        '"dtype": "",',
        "another dtype passes for the same run",
    ),
    Mutant(
        "precedence",
        "studies/config.py",
        "values |= self._flags",
        "values = self._flags | values",
        "files win over flags",
    ),
    Mutant(
        "errors file",
        "studies/dataset_study.py",
        "errors.add_problem(problem)",
        "pass",
        "rows that are no jobs are not recorded",
    ),
    Mutant(
        "last parts",
        "studies/writer.py",
        "number >= first and",
        "number > first and",
        "a part of a longer dataset is left behind",
    ),
    Mutant(
        "padding budget",
        "studies/batching.py",
        "(len(group) + 1) * prompt.encoded.n_tokens <= budget",
        "len(group) * prompt.encoded.n_tokens <= budget",
        "a shared forward may exceed its tokens",
    ),
    Mutant(
        "poison",
        "studies/crew.py",
        "self.deaths[at] += 1",
        "self.deaths[at] = 1",
        "a prompt that ends its worker ends one worker after the other",
    ),
    Mutant(
        "worker's company",
        "studies/ray_worker.py",
        "failed, groups = plan(self._loaded, some, block.wanted)",
        "failed, groups = plan(self._loaded, [task for task in some if task.key in block.wanted])",
        "what shares a forward pass depends on what was there",
    ),
    Mutant(
        "lease",
        "studies/lease.py",
        'return read_note(self._note).get("run") == self._run',
        "return True",
        "a run that was taken over goes on to write",
    ),
    # views and commands
    Mutant(
        "escape", "views/text.py", "char if char.isprintable() else _code(char)", "char", "a token can move the cursor"
    ),
    Mutant(
        "percent", "views/text.py", "if 0 < share < 0.0005", "if 0 < share < 0.00005", "something is shown as nothing"
    ),
    Mutant(
        "summary layers",
        "findings/ranking.py",
        "return [int(layer) for layer in np.argsort(-shares",
        "return [int(layer) for layer in np.argsort(shares",
        "the weakest layers are named as the strongest",
    ),
    Mutant(
        "card reason",
        "views/card.py",
        "row = next(row for row in deciding if row.name == names[0])",
        "row = deciding[0]",
        "the card tells of one word what becomes of the answer without another",
    ),
    Mutant(
        "card outline",
        "views/card_html.py",
        "if (row, column + 1) not in cells:",
        "if (row, column) not in cells:",
        "evidence is open at its right",
    ),
    Mutant(
        "card bars",
        "views/card_html.py",
        "min(abs(one.change) / self.card.largest, 1.0)",
        "min(abs(one.change), 1.0)",
        "bars are as long as their change in nats, and the strongest are alike",
    ),
    Mutant(
        "left out",
        "results/stored.py",
        "if first == kind:",
        "if True:",
        "a file of an earlier version keeps a result from being shown",
    ),
    Mutant(
        "verdict depth",
        "findings/verdict.py",
        "(np.arange(len(by_layer)) + 0.5) / len(by_layer)",
        "np.arange(len(by_layer)) / len(by_layer)",
        "the centre of a single layer lies at its upper edge",
    ),
    Mutant(
        "page policy",
        "views/page.py",
        "hashlib.sha256(text.encode())",
        "hashlib.sha256(text.strip().encode())",
        "the browser refuses the page's own script",
    ),
    Mutant(
        "block bits",
        "views/templates/shared/blocks.js",
        ">> (7 - (i & 7))) & 1)",
        ">> (i & 7)) & 1)",
        "rounded distances are read in the wrong order on a page",
    ),
    Mutant(
        "profile",
        "views/templates/report/profile.js",
        "const place = layer * view.n + i;",
        "const place = i * view.n + layer;",
        "a page's profile shows the wrong distances",
    ),
    Mutant(
        "exit code",
        "commands/study.py",
        "return 3 if tally.failed else 0",
        "return 0",
        "failed prompts do not show in the exit code",
    ),
    Mutant(
        "late check",
        "models/loading.py",
        "    if check is not None:\n        check(reader)\n",
        "",
        "specs are refused after the weights are read",
    ),
    Mutant(
        "verdict",
        "analyses/exactness.py",
        "return all(error <= self.bound for error in errors)",
        "return any(error <= self.bound for error in errors)",
        "one good prompt passes a bad model",
    ),
)


def apply(tree: Path, mutant: Mutant) -> None:
    """Break the line; SystemExit where it is not there exactly once."""
    path = tree / "mask_impact" / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"mutant {mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run(tree: Path, mutant: Mutant, which: str) -> tuple[str | None, float]:
    """The test that noticed (None: none did), and the seconds it took."""
    own = tree / "tests" / mutant.file.split("/")[0]
    folders = sorted(path for path in (tree / "tests").iterdir() if path.is_dir() and list(path.glob("test_*.py")))
    others = [path for path in folders if path != own]
    started = time.perf_counter()
    for paths in (
        [own] if own in folders else [],
        [*others, *sorted((tree / "tests").glob("test_*.py")), tree / "test_vl_phase1.py"],
    ):
        if not paths:
            continue
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *SETS[which], *map(str, paths)]
        done = subprocess.run(
            command, cwd=tree, capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        )
        if done.returncode not in (0, 5):  # 5: no test of that kind there
            found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
            return found[1] if found else f"exit code {done.returncode}", time.perf_counter() - started
    return None, time.perf_counter() - started


def main() -> int:
    """The table of all mutants."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="only tell what is broken, and where")
    args = parser.parse_args()
    chosen = [one for one in MUTANTS if not args.names or one.name in args.names]
    if args.list:
        print("\n".join(f"{one.name:<22} {one.file:<36} {one.what}" for one in chosen))
        return 0
    caught = dict.fromkeys([*SETS, "none"], 0)
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
            apply(tree, mutant)
            for which in SETS:
                noticed, seconds = run(tree, mutant, which)
                if noticed:
                    break
            caught[which if noticed else "none"] += 1
            by = f"{which}: {noticed}" if noticed else "SURVIVES"
            print(f"{mutant.name:<22} {mutant.file:<36} {seconds:>6.0f} s  {by}", flush=True)
    print(f"{len(chosen)} mutants: " + ", ".join(f"{name} {number}" for name, number in caught.items()))
    return 1 if caught["none"] else 0


if __name__ == "__main__":
    sys.exit(main())
