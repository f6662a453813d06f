"""Classification with a frozen encoder: what ``frepa classify`` supplies to a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from frepa.downstream.classification.data import ClassificationData, check_classes, open_data
from frepa.downstream.classification.features import FeatureSource, FixedFeatures, LiveFeatures, common_side
from frepa.downstream.classification.model import TASK, Classifier
from frepa.downstream.classification.page import fill_page
from frepa.downstream.classification.summary import summarise_heads, tables, verdicts
from frepa.downstream.classification.testing import TestedClassifier, shares
from frepa.downstream.classification.training import (
    ClassificationOptions,
    build_classifier,
    plan_training,
    predict_rows,
    train_classifier,
)
from frepa.downstream.contract import Place, Prepared, Progress, Round, Table, Task
from frepa.downstream.page import RunPage
from frepa.encoders.contract import Encoder


class Classification(Task[ClassificationData, Classifier, TestedClassifier]):
    """One class per image, or several; what the frozen encoder makes of each image is computed once for all heads.

    Writes ``confusion.png`` besides, where classes exclude each other.
    """

    name = TASK
    verb = "classify"
    unit = "image"
    options: ClassificationOptions

    def __init__(self, options: ClassificationOptions) -> None:
        self.options = options
        self.encoding_seconds = 0.0
        self._features: FeatureSource | None = None
        self._side = options.data.image_size

    def open(self, dims: int, progress: Progress) -> ClassificationData:
        """Images and classes; no pixel is read."""
        data, run = self.options.data, self.options.run
        assert isinstance(data.source, str)
        return open_data(data.source, dims=dims, seed=run.seed, how=data.how)

    def check(self, data: ClassificationData, where: str) -> list[str]:
        """Classes that cannot be learnt or tested."""
        return check_classes(data, where)

    def build(self, encoder: Encoder, data: ClassificationData, seed: int, device: torch.device) -> Classifier:
        """A classifier for images of one size, by default the largest that is found."""
        if self._side is None:
            self._side = common_side(data.source, data.records, slices=encoder.stacks)
        return build_classifier(encoder, data, self.options, self._side, seed, device)

    def prepare(self, models: Sequence[Classifier], data: ClassificationData) -> Prepared:
        """Encode every image, or read it where it is encoded anew for every batch."""
        since = time.perf_counter()
        workers, quiet = self.options.run.num_workers, self.options.run.quiet
        augment = bool(self.options.fit.augment)
        if not models[0].trains_blocks and not augment and models[0].tuning is None:
            self._features = FixedFeatures(models[0], data.source, data.records, workers=workers, quiet=quiet)
        else:
            self._features = LiveFeatures(
                models[0], data.source, data.records, augment=augment, workers=workers, quiet=quiet
            )
        self.encoding_seconds = time.perf_counter() - since
        return Prepared(self._features.unreadable, [])

    def close(self) -> None:
        """Stop reading ahead."""
        if self._features is not None:
            self._features.close()

    def describe(self, divided: Sequence[ClassificationData]) -> Iterable[str]:
        """Classes, parts, and images without a label."""
        data = divided[0]
        kind = "classes that do not exclude each other" if data.several else "classes"
        shown = "; ".join(data.classes[:8])
        yield f"{self.options.data.source}: {len(data.classes)} {kind} ({shown}), from {data.origin}."
        counts = f"{len(data.records):,} images"
        if len(divided) == 1:
            counts = ", ".join(f"{n:,} {part}" for part, n in data.sizes().items())
        yield f"{counts}. Split: {data.split_note}."
        if data.unlabelled:
            yield f"{data.unlabelled:,} images without a label are left out."

    def plan_sentences(self, model: Classifier, data: ClassificationData) -> Iterable[str]:
        """To which size images are brought."""
        what = "Slices" if model.encoder.stacks else "Images"
        yield f"{what} are brought to {model.settings.image_size} px a side, aspect kept, zeros around."

    def train_and_test(
        self, model: Classifier, data: ClassificationData, round: Round, place: Place
    ) -> TestedClassifier:
        """Train on what was encoded, save, and give the probabilities of the test images."""
        assert self._features is not None
        plan = plan_training(model, data, self.options, round.seed)
        training = train_classifier(
            model,
            self._features,
            data,
            plan,
            place.metrics,
            marks=round.marks,
            states=place.states,
            quiet=self.options.run.quiet,
        )
        extra = {"best_step": training.best_step, "shares": shares(data).tolist()}
        model.save(place.folder, place.reference, {**extra, **round.kept})
        found = predict_rows(model, self._features, data, data.rows("test"), plan.batch_size)
        return TestedClassifier(round, place, data, model, training, found)

    def summarise(self, tested: Sequence[TestedClassifier]) -> dict[str, Any]:
        """See `summary.summarise_heads`."""
        own = summarise_heads(tested, seed=self.options.run.seed)
        return own | {"encoding_seconds": self.encoding_seconds}

    def tables(self, tested: Sequence[TestedClassifier]) -> Iterable[Table]:
        """A line per test case and head."""
        return tables(tested)

    def fill_page(self, page: RunPage, summary: Mapping[str, Any], tested: Sequence[TestedClassifier]) -> None:
        """See `page.fill_page`."""
        fill_page(page, summary)

    def verdicts(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """ACC and AUC."""
        return verdicts(summary)
