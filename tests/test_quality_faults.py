"""Faults are told apart from drift, and drift from faults, on a stream with days of its own."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from faults import FAULTS, Hit, Served

from homeostat.monitor import Subject, examine
from homeostat.monitor.units import LEVELS, change
from homeostat.profile import Profile
from homeostat.records import State, Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.settings import Monitor
from homeostat.traits import Traits

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, WEEK = 120, 7
LEVELS_OF_CITY = ["Oslo", "Rome", "Wien, AT", "Bern"]


def stream(seed):
    """Four numbers, a category and a boolean; each day has a level of its own, Sundays are
    quiet, and the price follows a slow swing.
    """
    random = np.random.default_rng(seed)
    days = np.arange(DAYS + WEEK)
    sizes = random.poisson(np.where(days % 7 == 6, 60, 150))
    day = np.repeat(days, sizes)
    level = np.cumsum(random.normal(0, 0.15, len(days))) * 0.9
    count = len(day)
    within = np.concatenate([np.sort(random.random(size)) for size in sizes])
    times = [START + DAY * float(d + w) for d, w in zip(day, within, strict=True)]
    gap = random.exponential(size=count)
    gap[random.random(count) < 0.1] = np.nan
    return pa.table(
        {
            "prediction_id": [f"id-{i:06}" for i in range(count)],
            "occurred_at": pa.array(times, TIMESTAMP),
            "recorded_at": pa.array(times, TIMESTAMP),
            "model_version": ["m"] * count,
            "temperature": pa.array(12 + 3 * level[day] + 5 * random.normal(size=count)),
            "price": pa.array(np.exp(4 + 0.1 * np.sin(day / 20) + 0.5 * random.normal(size=count))),
            "gap": pa.array(gap, from_pandas=True),
            "persons": pa.array(random.poisson(1.5, count).astype(float)),
            "city": random.choice(LEVELS_OF_CITY, count, p=[0.45, 0.3, 0.2, 0.05]),
            "member": random.random(count) < 0.4,
        }
    )


KINDS = {"city": "category", "member": "boolean"}
NAMES = ("temperature", "price", "gap", "persons", "city", "member")
BARE = Schema(
    tuple(Feature(name, KINDS.get(name, "number")) for name in NAMES),
    Target("y", "binary", "bool", ("false", "true")),
)
WINDOW = Window(START + DAYS * DAY, START + (DAYS + WEEK) * DAY)


class Silent:
    def evidently(self, reference, current, schema):
        return {}


class Scene:
    def __init__(self, seed=0):
        rows = stream(seed)
        first = pa.compute.less(rows["occurred_at"], pa.scalar(WINDOW.start, TIMESTAMP))
        self.reference, self.rows = rows.filter(first), rows.filter(pa.compute.invert(first))
        schema = BARE.learned_from(self.reference)
        self.subject = Subject(
            "m",
            schema,
            Profile.of(self.reference, schema, block=DAY),
            self.reference.slice(0, 100),
            None,
            traits=Traits.of(self.reference, schema, block=DAY),
        )
        self.last = None
        before = Window(WINDOW.start - WEEK * DAY, WINDOW.start)
        keep = pa.compute.greater_equal(
            self.reference["occurred_at"], pa.scalar(before.start, TIMESTAMP)
        )
        self.last = self.look(Served(self.reference.filter(keep)), before)

    def look(self, served, window=WINDOW, **settings):
        return examine(
            self.subject,
            served.rows,
            window,
            refused=served.refused,
            last=self.last,
            settings=Monitor(**settings),
            mature_until=window.start,
            now=window.end + served.late,
            reporter=Silent(),
        )

    def hit(self, number, seed=1):
        values = self.reference[number].drop_null().to_numpy()
        return Hit(number, values, "city", "Bern", np.random.default_rng(seed))


@pytest.fixture(scope="module", params=[0, 1])
def scene(request):
    return Scene(request.param)


def blocking(found):
    return {finding.check for finding in found.findings if finding.severity == "block"}


def test_the_stream_itself_is_never_called_broken(scene):
    assert blocking(scene.look(Served(scene.rows))) == set()
    assert blocking(scene.last) == set()


@pytest.mark.parametrize("number", ["temperature", "price"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_and_is_not_called_drift(scene, fault, number):
    found = scene.look(fault.inject(Served(scene.rows), scene.hit(number)))
    assert blocking(found) & set(fault.checks)
    assert found.state is State.BROKEN_DATA
    for finding in found.findings:
        assert finding.message.endswith(".")
        assert finding.value >= finding.threshold or finding.check in ("row_volume", "row_gap")


def with_(rows, **columns):
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(
            place, name, pa.array(values, rows.schema.field(name).type, from_pandas=True)
        )
    return rows


def moved(name, change, share=1.0):
    def do(rows, random):
        values = rows[name].to_numpy().copy()
        struck = random.random(len(values)) < share
        return with_(rows, **{name: np.where(struck, change(values), values)})

    return do


def levels(level, share):
    def do(rows, random):
        values = np.array(rows["city"].to_pylist(), dtype=object)
        values[random.random(len(values)) < share] = level
        return with_(rows, city=values)

    return do


def nulls(share):
    def do(rows, random):
        values = rows["temperature"].to_numpy().copy()
        values[random.random(len(values)) < share] = np.nan
        return with_(rows, temperature=values)

    return do


def thinned(share):
    return lambda rows, random: rows.filter(pa.array(random.random(rows.num_rows) < share))


def doubled(rows, random):
    """Twice the traffic: the rows of a week, and others like them."""
    again = rows.take(pa.array(random.permutation(rows.num_rows)))
    other = with_(
        again,
        prediction_id=[f"more-{i}" for i in range(rows.num_rows)],
        price=again["price"].to_numpy() * random.lognormal(0, 0.01, rows.num_rows),
    )
    both = pa.concat_tables([rows, other])
    return both.sort_by([("occurred_at", "ascending")])


def shuffled(rows, random):
    return with_(rows, price=random.permutation(rows["price"].to_numpy()))


def began_late(rows, random):
    """The service starts on the fourth day of the window."""
    since = pa.scalar(WINDOW.start + 3 * DAY, TIMESTAMP)
    return rows.filter(pa.compute.greater_equal(rows["occurred_at"], since))


def some_again(rows, random):
    place = np.arange(rows.num_rows)
    struck = random.random(rows.num_rows) < 0.05
    place[struck] = np.maximum(place[struck] - 1, 0)
    taken = rows.take(pa.array(place))
    return with_(taken, prediction_id=rows["prediction_id"].to_pylist())


def other_zone(rows, random):
    times = rows["occurred_at"].cast(pa.timestamp("us", "Asia/Tokyo"))
    return rows.set_column(rows.schema.get_field_index("occurred_at"), "occurred_at", times)


VARIETY = {
    "nothing": lambda rows, random: rows,
    "half a deviation warmer": moved("temperature", lambda v: v + 2.5),
    "one deviation warmer": moved("temperature", lambda v: v + 5),
    "three deviations warmer": moved("temperature", lambda v: v + 15),
    "one deviation colder": moved("temperature", lambda v: v - 5),
    "variance doubled": moved("temperature", lambda v: v.mean() + (v - v.mean()) * 2**0.5),
    "deviation halved": moved("temperature", lambda v: v.mean() + (v - v.mean()) / 2),
    "prices up by a third": moved("price", lambda v: v * 1.33),
    "prices down by a third": moved("price", lambda v: v / 1.33),
    "a heavier tail": moved("price", lambda v: v * 20, 0.03),
    "a subset warmer": moved("temperature", lambda v: v + 12, 0.2),
    "whole degrees": moved("temperature", np.round),
    "one person more": moved("persons", lambda v: v + 1),
    "a level takes over": levels("Rome", 0.7),
    "a level is gone": lambda rows, random: rows.filter(pa.compute.not_equal(rows["city"], "Bern")),
    "a new level": levels("Paris", 0.3),
    "more nulls": nulls(0.3),
    "a sensor off for a day": nulls(0.14),
    "half the traffic": thinned(0.5),
    "a quarter of the traffic": thinned(0.25),
    "twice the traffic": doubled,
    "a column shuffled": shuffled,
    "a service that began in the window": began_late,
    "some rows sent twice": some_again,
    "another zone's clock": other_zone,
    "members only at times": lambda rows, random: with_(
        rows, member=random.random(rows.num_rows) < 0.8
    ),
}


@pytest.mark.parametrize("name", VARIETY)
def test_drift_and_variety_are_not_called_broken(scene, name):
    found = scene.look(Served(VARIETY[name](scene.rows, np.random.default_rng(3))))
    assert blocking(found) == set()
    assert found.state in (State.STABLE, State.DRIFT)


def test_degrees_of_another_scale_are_told(scene):
    fahrenheit = with_(scene.rows, temperature=scene.rows["temperature"].to_numpy() * 1.8 + 32)
    found = scene.look(Served(fahrenheit))
    assert found.reason == (
        "Broken data: 'temperature' looks multiplied by 1.8 and shifted by 32, as by another unit; "
        "hardly anything else changed."
    )
    kelvin = with_(scene.rows, temperature=scene.rows["temperature"].to_numpy() + 273.15)
    assert "shifted by 27" in scene.look(Served(kelvin)).reason


def test_a_sign_that_was_turned_is_told(scene):
    turned = with_(scene.rows, price=-scene.rows["price"].to_numpy())
    assert "'price' looks multiplied by -" in scene.look(Served(turned)).reason


def test_a_unit_that_the_reference_went_through_is_no_change():
    random = np.random.default_rng(0)
    here = np.quantile(random.lognormal(size=2_000), LEVELS)
    values = 10 * random.lognormal(size=2_000)
    assert change(values, here, here[None]).factor == pytest.approx(10, rel=0.2)
    assert change(values, here, np.array([here, 9 * here])) is None


def test_a_release_without_traits_is_looked_at_as_far_as_its_counts_go(scene):
    bare = Scene()
    bare.subject = replace(bare.subject, traits=None)
    assert bare.look(Served(bare.rows)).state in (State.STABLE, State.DRIFT)
    assert blocking(bare.look(FAULTS[4].inject(Served(bare.rows), bare.hit("price"))))


def test_faults_that_come_in_another_order_are_found_alike(scene):
    fault = next(fault for fault in FAULTS if fault.name == "stuck for 80 %")
    hurt = fault.inject(Served(scene.rows), scene.hit("price"))
    order = np.random.default_rng(0).permutation(hurt.rows.num_rows)
    assert scene.look(replace(hurt, rows=hurt.rows.take(pa.array(order)))).findings == (
        scene.look(hurt).findings
    )


def test_traits_are_kept_as_they_were(scene):
    kept = scene.subject.traits
    again = Traits.from_bytes(kept.to_bytes())
    assert again.to_bytes() == kept.to_bytes()
    assert (again.repeats == kept.repeats).all()
    with pytest.raises(Exception, match="no traits"):
        Traits.from_bytes(b"{}")
    with pytest.raises(Exception, match="format 99"):
        Traits.from_bytes(kept.to_bytes().replace(b'"format":1', b'"format":99'))
