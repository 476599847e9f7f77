"""Blends: the newest models of the champion's line as one, whose outputs are averaged.

Takes pickled estimators, as bytes that were verified or made by this process. Gives a `Blend` with
scikit-learn's methods; its members lie in it as the very bytes that they came in, so that no class
of the user's is pickled a second time.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.errors import cause
from homeostat.records import Candidate, Task, TrainingRows
from homeostat.schema import Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

CLIP = 1e-6
"""Least probability of a member, so that one that is certain does not outvote all others."""


class Blend:
    """Fitted estimators as one: the mean of their values, or a logarithmic opinion pool.

    Of classes, P(c) = exp(m_c) / Σ exp(m_k) with m_c = mean over the members of ln max(p(c), 1e-6),
    which for two classes is the mean of logits; every member has the same `classes_`. Of numbers,
    the mean of what the members predict. With `twice` the newest member counts two times. Genest
    and Zidek (1986), Combining probability distributions: a critique and an annotated bibliography,
    Statistical Science 1:1.

    `members` are pickled, oldest first, and each is read when it is first asked.
    """

    def __init__(self, members: tuple[bytes, ...], task: Task, *, twice: bool = False) -> None:
        self.members = members
        self.task = task
        self.twice = twice

    def __getstate__(self) -> tuple[tuple[bytes, ...], Task, bool]:
        return self.members, self.task, self.twice

    def __setstate__(self, state: tuple[tuple[bytes, ...], Task, bool]) -> None:
        self.members, self.task, self.twice = state

    @cached_property
    def estimators(self) -> tuple[Any, ...]:
        """The members, read; raises what reading one of them does."""
        # The bytes came inside bytes that the reader of this blend verified.
        return tuple(pickle.loads(member) for member in self.members)  # noqa: S301 - as above

    @property
    def classes_(self) -> NDArray[Any]:
        """Those of every member."""
        return np.asarray(self.estimators[-1].classes_)

    def predict_proba(self, frame: Any) -> Floats:
        """P of each class, shape (rows, classes), in the order of `classes_`."""
        found = self._each(frame, lambda member, rows: member.predict_proba(rows))
        return pooled(np.stack(found))

    def predict(self, frame: Any) -> NDArray[Any]:
        """The likeliest class, or the value, of each row, shape (rows,)."""
        if self.task != "regression":
            return np.asarray(self.classes_[self.predict_proba(frame).argmax(axis=1)])
        found = self._each(frame, lambda member, rows: member.predict(rows))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            return np.asarray(np.stack([each.reshape(len(frame)) for each in found]).mean(axis=0))

    def _each(self, frame: Any, ask: Callable[[Any, Any], Any]) -> list[Floats]:
        """What each member says of rows of its own, since it may write into them; in the end
        the newest once more where it counts twice.
        """
        rows = (frame.copy(deep=False) if hasattr(frame, "iloc") else frame for _ in self.members)
        found = [
            np.asarray(ask(member, own), dtype=float)
            for member, own in zip(self.estimators, rows, strict=True)
        ]
        return [*found, found[-1]] if self.twice else found


def pooled(shares: Floats) -> Floats:
    """The logarithmic opinion pool of shape (members, rows, classes); see `Blend`."""
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and is refused later
        scores = np.log(np.maximum(shares, CLIP)).mean(axis=0)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Elder:
    """A model of the champion's line that a newer one may be blended with."""

    model: bytes  # verified, or made by this process
    schema: bytes
    members: tuple[TrainingRows, ...]  # the rows of each model in it, oldest first

    @classmethod
    def of(cls, candidate: Candidate) -> Elder:
        held = candidate.objects
        return cls(held["model"], held["schema"], candidate.members or (candidate.training,))

    def unlike(self, schema: Schema) -> str:
        """Why it cannot answer all that a model of this schema does; empty where it can."""
        own = Schema.from_json(self.schema)
        if own.fingerprint != schema.fingerprint:
            return "The champion's line has other features."
        if (own.target.name, own.target.task) != (schema.target.name, schema.target.task):
            return "The champion's line has another target."
        strict = {feature.name for feature in schema.features if not feature.nullable}
        for feature in own.features:
            if not feature.nullable and feature.name not in strict:
                return f"The champion's line takes no null in {feature.name!r}."
        return ""


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of joining an older model and a newer one."""

    model: bytes  # a pickled Blend, or the newer one as it came where nothing joined it
    older: tuple[TrainingRows, ...]  # of the elder's models that are in it, oldest first
    left_out: tuple[str, ...]  # why others are not


def joined(
    elder: Elder | None, new: bytes, keep: int, task: Task, *, twice: bool = False
) -> Joined:
    """The newest `keep` of the elder's models and of `new`, which is the newest.

    With `twice` that one counts as two of them: it stands for a model that is yet to be fitted.
    A model with other classes than that, or one that cannot be read, is left out. All bytes must
    have been verified.
    """
    if elder is None:
        return Joined(new, (), ())
    # Of one member it is the model itself, even where that is a blend of elsewhere.
    single = len(elder.members) == 1
    held = (elder.model,) if single else pickle.loads(elder.model).members  # noqa: S301 - verified
    newest = pickle.loads(new)  # noqa: S301 - as above
    kept: list[tuple[bytes, TrainingRows]] = []
    left_out: list[str] = []
    for member, rows in zip(reversed(held), reversed(elder.members), strict=True):
        if len(kept) >= keep - (2 if twice else 1):
            break
        why = _unfit(member, newest, task)
        if why:
            left_out.append(why)
        else:
            kept.insert(0, (member, rows))
    if not kept:
        return Joined(new, (), tuple(left_out))
    blend = Blend((*(member for member, _ in kept), new), task, twice=twice)
    older = tuple(rows for _, rows in kept)
    return Joined(pickle.dumps(blend, protocol=5), older, tuple(left_out))


def _unfit(member: bytes, newest: Any, task: Task) -> str:
    """Why the member is not blended with the newest; empty where it is."""
    try:
        estimator = pickle.loads(member)  # noqa: S301 - as above
        if task == "regression" or np.array_equal(estimator.classes_, newest.classes_):
            return ""
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - fails closed: it is left out, and why
        return f"An older model cannot be read: {cause(error)}"
    return "An older model knows other classes."
