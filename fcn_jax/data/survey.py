"""What a person's images and masks mean: classes, counts, and what is wrong.

`fcn_jax.data.folder` refuses data in which a `Survey` finds problems, and ``fcn-jax check`` prints
what it finds. Nothing is kept of an image but numbers, its `fcn_jax.data.readings.Reading`.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.classes import NO_ID, VOID, VOID_COLOR, ClassTable
from fcn_jax.data.images import LabelKind
from fcn_jax.data.readings import Color, Reading, Used
from fcn_jax.data.records import stored_as

SHOWN = 3  # examples of a problem
RARE = 1e-3  # of the pixels that count
MUCH_VOID = 0.5
MANY_IDS = 20  # of no class; more are no ids
BACKGROUNDS = ("background", "bg", "void", "unlabeled", "unlabelled", "none", "other", "others")


class Problems:
    """What is wrong, each with the files that it is true of; equal ones become one line."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, str, str, list[str]]] = {}

    def add(self, what: str, where: str = "", alone: str = "", hint: str = "") -> None:
        """Adds a file to those of a problem. Problems that differ by numbers alone are equal.

        `alone` is the line where no other file has the problem; `hint` comes last.
        """
        alone = alone or (f"{where}: {what}" if where else what)
        self._of.setdefault(re.sub(r"\d+", "0", what), (what, alone, hint, []))[-1].append(where)

    def lines(self) -> list[str]:
        """A line for every kind, with a count and three examples where there are several."""
        return [
            (
                alone
                if len(places) == 1
                else f"{len(places)} files: {what}: {examples(sorted(places))}"
            )
            + (hint and f". {hint}")
            for what, alone, hint, places in self._of.values()
        ]

    def __len__(self) -> int:
        return len(self._of)


def examples(names: Collection[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more


class Survey:
    """All readings of a folder, and what follows from them.

    Args:
        readings: Of every split, by id.
        table: The classes.
        numbered: Whether the class file gives ids.
        counted: Whether the id of the first class is given.
        colored: Whether their colours are given.
        void: Further ids that are void.
        kind: How masks store classes.

    Attributes:
        classes: The classes with the ids that the masks turned out to have.
        counts: The pixels of each class in each mask of each split; of void in the last column.
        pixels: The pixels of every label in each split.
        masks: The masks that hold the label, likewise.
        unknown: Ids of no class: their pixels, and the masks that hold them.
        problems: What must be mended before training.
        warnings: What a person should look at.
        notes: What was understood without being told.
        proposals: Options that mend problems.
    """

    def __init__(
        self,
        readings: Mapping[str, Mapping[str, Reading]],
        table: ClassTable,
        *,
        numbered: bool,
        counted: bool,
        colored: bool,
        void: Sequence[int],
        kind: LabelKind,
    ) -> None:
        self.readings = readings
        self.problems = Problems()
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.proposals: dict[str, Any] = {}
        self._all = [reading for ids in readings.values() for reading in ids.values()]
        stored = {i for reading in self._all if reading.stored for i in reading.ids}
        self._stored = stored - {NO_ID, *void}  # the ids that files hold, and that may count
        shaded = colored and kind != "index"
        table = table if VOID in void else self._black_and_white(table, numbered, shaded)
        self.classes = table.with_void(void)
        for reading in self._all:
            for problem in reading.problems:
                self.problems.add(*problem)
        holders = self._count()
        hint = "" if numbered or counted else self._find_shift(table)
        self._find_unknown(holders, hint)
        if kind != "index":
            self._compare_palettes()
        self._find_copies()
        if not self.unknown:
            self._weigh()

    def _black_and_white(self, table: ClassTable, numbered: bool, shaded: bool) -> ClassTable:
        """The table with the ids of masks in black and white, or in the greys of its colours."""
        if not all(reading.stored for reading in self._all) or self._stored <= set(table.ids):
            return table
        greys = [row.color[0] for row in table.rows if len(set(row.color)) == 1]
        if shaded and len(set(greys)) == len(table.rows) and self._stored <= set(greys):
            self.notes.append("masks hold the grey values that the class file gives as colours")
            return table.with_ids(greys)
        if not numbered and table.ids == (0, 1) and self._stored == {0, VOID}:
            self.notes.append(
                f"masks hold 0 and {VOID} alone: {VOID} is the class {table.rows[1].name}, not void"
            )
            return table.with_ids((0, VOID))
        return table

    def _count(self) -> list[str]:
        """Counts labels; returns the masks that hold ids of no class."""
        known = {*self.classes.ids, *self.classes.void_ids}
        void = self.classes.num_classes
        columns = np.minimum(self.classes.to_labels(np.array([*known])), void)
        column_of = dict(zip(known, columns.tolist(), strict=True))
        self.counts = {
            split: np.zeros((len(of), void + 1), np.int64) for split, of in self.readings.items()
        }
        self.unknown: dict[int, tuple[int, int]] = {}
        holders = []
        for split, readings in self.readings.items():
            for number, reading in enumerate(readings.values()):
                for raw_id, count in reading.ids.items():
                    if raw_id in known:
                        self.counts[split][number, column_of[raw_id]] += count
                    else:
                        pixels, masks = self.unknown.get(raw_id, (0, 0))
                        self.unknown[raw_id] = pixels + count, masks + 1
                holders += [reading.mask] if reading.ids.keys() - known else []
        self.pixels, self.masks = (
            {split: np.zeros(256, np.int64) for split in self.counts} for _ in range(2)
        )
        for split, counts in self.counts.items():
            self.pixels[split][[*range(void), VOID]] = counts.sum(axis=0)
            self.masks[split][[*range(void), VOID]] = (counts > 0).sum(axis=0)
        return holders

    def _find_unknown(self, holders: Iterable[str], hint: str) -> None:
        ids = sorted(self.unknown)
        void = VOID if VOID in self.classes.void_ids else NO_ID
        what = f"label values {', '.join(map(str, ids[:10]))}{', ...' * (len(ids) > 10)} "
        what += f"belong to no class (known ids: {ranges(self.classes.ids)}; {void} is void)"
        if len(ids) > MANY_IDS:
            hint = "So many look like a photograph, or like masks resized smoothly or kept as JPEG"
        elif not hint:
            hint = f"If they do not count, give void={(*ids,)}; else give them classes"
        for mask in holders:
            self.problems.add(what, mask, hint=hint)

    def _find_shift(self, table: ClassTable) -> str:
        """A hint where the masks' ids begin with another number than the class file's."""
        ids = self._stored - {VOID} | (self._stored & set(table.ids))
        if not ids:
            return ""
        first, low, high, many = table.rows[0].name, min(ids), max(ids), len(table.rows)
        has_background = table.rows[0].ignored or first.lower() in BACKGROUNDS
        start = 1 if high <= many else low
        if low > 0 and high < many and not has_background:
            self.proposals["first_id"] = 1
            self.problems.add(
                f"no mask holds 0, the id of the first class {first}. If masks number the classes "
                "from 1, give first_id=1; if it does not occur, first_id=0"
            )
        elif low > 0 and many <= high < start + many:
            self.proposals["first_id"] = start
            return f"Masks hold ids from {low} to {high}; give first_id={start}"
        elif low == 0 and high == many and not has_background:
            return (
                f"If {high} does not count, give void=({high},). If the classes are 1 to {high} "
                "and 0 is background, write background in the first line of the class file; if 0 "
                "does not count, give first_id=1 and void=(0,)"
            )
        return ""

    def _compare_palettes(self) -> None:
        renumbered = [each.mask for each in self._all if each.colors and not each.stored]
        classes = {VOID_COLOR, *(row.color for row in self.classes.rows)}
        for reading in self._all if renumbered else ():
            # Alone it could be decoration; among renumbered palettes its indices mean nothing.
            others = sorted({*(reading.colors or {}).values()} - classes) if reading.stored else []
            if others:
                self.problems.add(
                    f"its palette has {others[0]}, the colour of no class, and masks such as "
                    f"{renumbered[0]} have renumbered palettes. Give that colour in the class "
                    "file, or mask_kind='index' if all indices are the ids",
                    reading.mask,
                )
        first: dict[int, tuple[Color, str]] = {}
        for reading in self._all:
            for raw_id, color in (reading.colors or {}).items() if reading.stored else ():
                known, other = first.setdefault(raw_id, (color, reading.mask))
                if known != color:
                    self.problems.add(
                        f"palettes differ: {raw_id} is {color} here and {known} in {other}. Give "
                        "the classes' colours in a class file (name,r,g,b), or mask_kind='index' "
                        "if the colours mean nothing",
                        reading.mask,
                    )
                    break

    def look_at_images(self, used: Used, value_range: Sequence[float]) -> None:
        """Compares bands and types, and tells the range of images that are not 8-bit RGB."""
        forms = collections.Counter(reading.form for reading in self._all if reading.form)
        if not forms:
            return
        (usual, _), *others = forms.most_common()
        for reading in self._all if others else ():
            if reading.form not in (None, usual):
                self.problems.add(
                    f"an image of {reading.form}, where most are of {usual}",
                    reading.image,
                    hint="All images of a set need the same bands of one type. Whether the last "
                    "band of some is alpha is said by alpha='drop' or alpha='band'",
                )
        if others or usual == stored_as(None):
            return
        text = f"images are of {usual}"
        if value_range:
            text += ", of which {:g} is black and {:g} white".format(*value_range)
        elif usual in used:
            try:
                ends = ", ".join(f"{low:g}..{high:g}" for low, high in used[usual].found())
            except ValueError as error:
                self.problems.add(str(error))
                return
            text += (
                f", and use {ends}: what the training images use becomes black and white, unless "
                "value_range=(low, high) is given"
            )
        self.notes.append(text)

    def _find_copies(self) -> None:
        first: dict[str, tuple[str, str]] = {}
        twice = []
        for split, readings in self.readings.items():
            for reading in filter(lambda reading: reading.digest, readings.values()):
                other_split, other = first.setdefault(reading.digest, (split, reading.image))
                if other_split != split:
                    where = f"in {split} and in {other_split}"
                    self.problems.add(
                        f"the same image {where}",
                        f"{reading.image} (= {other})",
                        f"{reading.image}: the same image as {other}, {where}",
                    )
                elif other != reading.image:
                    twice.append(f"{reading.image} (= {other})")
        if twice:
            self.warnings.append(f"{len(twice)} images are there twice: {examples(twice)}")

    def _weigh(self) -> None:
        """What the shares of the classes mean for training."""
        names = self.classes.names
        nothing = np.zeros(256, np.int64)
        total, train = sum(self.pixels.values(), nothing), self.pixels.get("train", nothing)
        present = [names[label] for label in np.flatnonzero(train[: len(names)])]
        if not train.any():
            return
        if len(present) < 2:
            what = f"all pixels of all masks to train on are {present[0] if present else 'void'}"
            if present and train[VOID]:
                what += " or void"
            if self._stored == {0, VOID} and len(names) == 1:
                what += (
                    ": give the other pixels a class too, such as background in the first line of "
                    "the class file"
                )
            elif VOID in self._stored and VOID not in self.classes.ids:
                what += (
                    f". {VOID} is void; if it is a class in your masks, give its id in classes.csv "
                    f"(name,id, then background,0 and thing,{VOID})"
                )
            self.problems.add(what)
            return
        counted = max(int(total[: len(names)].sum()), 1)
        absent = [name for label, name in enumerate(names) if not total[label]]
        if absent:
            self.warnings.append(
                f"{len(absent)} of {len(names)} classes have no pixel: {examples(absent)}. They "
                "cannot be learned or scored: add images of them, or give scored=false"
            )
        for split in self.pixels:
            missing = [
                name
                for label, name in enumerate(names)
                if total[label] and not self.pixels[split][label]
            ]
            if missing:
                effect = "cannot be learned" if split == "train" else "have no score there"
                self.warnings.append(
                    f"{len(missing)} classes have no pixel in {split} and {effect}: "
                    f"{examples(missing)}. Move images of them there"
                )
        masks = sum(self.masks.values(), nothing)
        rare = [
            f"{name} ({total[label]} pixels in {masks[label]} of {len(self._all)} masks)"
            for label, name in enumerate(names)
            if 0 < total[label] < RARE * counted
        ]
        if rare:
            self.warnings.append(
                f"{len(rare)} of {len(names)} classes are rare: {examples(rare)}. What helps: more "
                "images of them; a larger scale where they are small; joining classes; "
                "--config.copy_paste=0.5"
            )
        if total[VOID] > MUCH_VOID * total.sum():
            self.warnings.append(f"{100 * total[VOID] / total.sum():.0f} % of all pixels are void")


def ranges(ids: Iterable[int]) -> str:
    """Ids in few words: "0..20, 255"."""
    if not (values := np.sort([*ids])).size:
        return ""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
